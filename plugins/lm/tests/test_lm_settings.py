"""`config.json` beside a weight file: its numbers are the model's, as in transformers, or it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import zoo
from zoo.errors import UsageError, WeightsError

IDS = torch.arange(1, 25)[None]
MADE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama-tiny": (LlamaForCausalLM, LlamaConfig, {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 258, "max_position_embeddings": 256, "tie_word_embeddings": True, "initializer_range": 0.5}),
    "gpt2-tiny": (GPT2LMHeadModel, GPT2Config, {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 258, "n_positions": 256, "initializer_range": 0.5}),
    "mixtral-tiny": (MixtralForCausalLM, MixtralConfig, {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 258, "max_position_embeddings": 256, "num_local_experts": 4, "initializer_range": 0.5}),
}  # fmt: skip


def saved(folder: Path, name: str, **changes: Any) -> Any:
    kind, config, sizes = MADE[name]
    torch.manual_seed(0)
    model = kind(config(**sizes, **changes)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-tiny", {"rope_parameters": {"rope_type": "default", "rope_theta": 30.0}}),
        ("llama-tiny", {"rms_norm_eps": 0.5}),
        ("llama-tiny", {"rope_parameters": {"rope_type": "linear", "rope_theta": 30.0, "factor": 3.0}}),
        ("gpt2-tiny", {"layer_norm_epsilon": 0.5}),
        ("mixtral-tiny", {"num_experts_per_tok": 1}),
        ("mixtral-tiny", {"rope_parameters": {"rope_type": "default", "rope_theta": 30.0}, "rms_norm_eps": 0.5}),
    ],
)
@torch.no_grad()
def test_the_answer_is_that_of_transformers(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    expected = saved(tmp_path, name, **changes)(IDS).logits
    found = zoo.build(f"lm/{name}", weights=tmp_path)(IDS)
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()
    (tmp_path / "config.json").unlink()
    assert (zoo.build(f"lm/{name}", weights=tmp_path)(IDS) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-tiny", {"num_attention_heads": 8}, "num_attention_heads is 8, the model has 4"),
        ("llama-tiny", {"hidden_act": "relu"}, "hidden_act is 'relu', the model is built with 'silu' alone"),
        ("llama-tiny", {"model_type": "gemma"}, "model_type is 'gemma', the model is built as 'llama' alone"),
        ("gpt2-tiny", {"n_head": 2}, "n_head is 2, the model has 4"),
        ("gpt2-tiny", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("mixtral-tiny", {"sliding_window": 4}, "sliding_window is 4, the model is built with None alone"),
    ],
)
def test_what_the_model_cannot_keep_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    saved(tmp_path, name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsError, match=f"config.json is .* of another model: {message}"):
        zoo.build(f"lm/{name}", weights=tmp_path)


def test_rotary_positions_that_are_not_known_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "llama-tiny")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}))
    with pytest.raises(UsageError, match="rotary positions of kind 'dynamic'"):
        zoo.build("lm/llama-tiny", weights=tmp_path)


def test_a_config_that_nobody_reads_is_said(tmp_path: Path, caplog: Any) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = zoo.build("lm/bloom-tiny", weights=None).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    zoo.build("lm/bloom-tiny", weights=tmp_path)
    assert "config.json: plugin 'lm' (modalzoo-lm" in caplog.text
    assert "reads no settings for lm/bloom-tiny, which is built as its card says" in caplog.text
