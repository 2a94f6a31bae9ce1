"""A GGUF file's own settings decide: the answer is that of transformers with the same setting, or the file is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import gguf
import pytest
import torch
from smollm_reference import PUBLISHED
from transformers import LlamaConfig, LlamaForCausalLM
from zoo_smollm.keys import HEAD_WIDTH

import zoo
from zoo.errors import WeightsError
from zoo.weights.cache import blobs_dir

SIZES = {"layers": 2, "width": 128, "heads": 2, "kv_heads": 1, "hidden": 96, "vocabulary": 16}
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijkl", "ab"]
SETTINGS = {
    "block_count": 2, "embedding_length": 128, "feed_forward_length": 96, "attention.head_count": 2, "attention.head_count_kv": 1,
    "vocab_size": 16, "context_length": 8192, "rope.dimension_count": HEAD_WIDTH, "rope.freq_base": 100_000.0,
    "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
IDS = torch.tensor([[3, 5, 9, 4, 8, 15, 3, 12]])


@pytest.fixture(scope="module")
def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write(path: Path, model: Any, architecture: str = "llama", **changes: Any) -> Path:
    """The model as llama.cpp's converter writes it, with other settings where they are given; None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {**SETTINGS, **changes}.items():
        key = name if name.startswith("tokenizer.") else f"{architecture}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_array("tokenizer.ggml.token_type", [3, 3, 3, *[1] * 13])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
             "up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    for key, tensor in model.state_dict().items():
        module = key.removesuffix(".weight")
        if module == "lm_head":
            continue
        *_, last = module.split(".")
        name = tops.get(module) or f"blk.{module.split('.')[2]}.{names[last]}"
        if last in ("q_proj", "k_proj"):
            pairs = tensor.reshape(-1, 2, HEAD_WIDTH // 2, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
            writer.add_tensor(f"{name}.weight", pairs.contiguous().numpy())
            continue
        writer.add_tensor(f"{name}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = zoo.build("smollm/135m-instruct", weights=path, **SIZES)(IDS)
    return answer


def reference(model: Any, **changes: Any) -> torch.Tensor:
    config = LlamaConfig(**{**model.config.to_dict(), **changes})
    other: Any = LlamaForCausalLM(config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        answer: torch.Tensor = other(IDS).logits
    return answer


@pytest.mark.parametrize(
    ("changes", "theta", "epsilon", "reported"),
    [
        ({}, 100_000.0, 1e-5, []),
        (
            {"rope.freq_base": 50.0},
            50.0,
            1e-5,
            ["theta = 50.0, which is taken in place of 100000.0 of smollm/135m-instruct"],
        ),
        ({"rope.freq_base": None}, 10_000.0, 1e-5, ["theta = 10000.0"]),  # what llama.cpp takes where a file says nothing
        ({"attention.layer_norm_rms_epsilon": 0.25}, 100_000.0, 0.25, ["epsilon = 0.25, which is taken in place of 1e-05"]),
    ],
)
def test_the_files_numbers_are_the_models(
    llama: Any, tmp_path: Path, caplog: Any, changes: dict[str, Any], theta: float, epsilon: float, reported: list[str]
) -> None:
    found = logits_of(write(tmp_path / "own.gguf", llama, **changes))
    expected = reference(llama, rope_parameters={"rope_type": "default", "rope_theta": theta}, rms_norm_eps=epsilon)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    if changes:
        plain = reference(llama, rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, rms_norm_eps=1e-5)
        assert (found - plain).abs().max() > 1e-2
    assert len(caplog.messages) == len(reported)
    assert all(said in message for said, message in zip(reported, caplog.messages, strict=True))


def test_context_and_tokenizer_are_those_of_the_file(llama: Any, tmp_path: Path) -> None:
    """Nothing of the published file is needed, and results under other settings have another identity."""
    changes: dict[str, Any] = {"context_length": 12, "tokenizer.ggml.bos_token_id": 0}
    built = zoo.open_model("smollm/135m-instruct", weights=write(tmp_path / "own.gguf", llama, **changes), **SIZES)
    module: Any = built.module
    assert (module.context, module.tokenizer.vocabulary, module.tokenizer.start_id) == (12, 16, 0)
    assert module.tokenizer.encode("abc") == [15, 5]
    assert built.files["tokenizer"] == built.files["model"]
    kept = zoo.open_model("smollm/135m-instruct", weights=tmp_path / "own.gguf", **{**SIZES, "theta": 7.0})
    assert kept.identity != built.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.head_count": 4}, "own.gguf is the file of another model: llama.attention.head_count is 4, the model has 2"),
        ({"block_count": 3, "vocab_size": 9}, "llama.block_count is 3, the model has 2; llama.vocab_size is 9, the model has 16"),
        ({"rope.dimension_count": 32}, "llama.rope.dimension_count is 32, the model is built with 64 alone"),
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn', the model is built with 'none' alone"),
        ({"attention.sliding_window": 8}, "has the settings llama.attention.sliding_window, which are not known here"),
        ({"rope.freq_base": -1.0}, "llama.rope.freq_base must be a number above 0, got -1.0"),
        ({"rope.freq_base": float("nan")}, "llama.rope.freq_base must be a number above 0, got nan"),
        ({"rope.freq_base": "10"}, "llama.rope.freq_base must be a number above 0, got '10'"),
        ({"context_length": 1 << 30}, "llama.context_length must be at most 1,048,576, got 1,073,741,824"),
        ({"tokenizer.ggml.add_bos_token": True}, "has tokenizer.ggml.add_bos_token True: its model was trained on texts with a token"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_keep_is_refused(llama: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message.replace(".", r"\.")):
        logits_of(write(tmp_path / "own.gguf", llama, **changes))


def test_another_architecture_with_the_same_tensors_is_refused(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="general.architecture is 'gemma', the model is built with 'llama' alone"):
        logits_of(write(tmp_path / "own.gguf", llama, architecture="gemma"))


def patched(data: bytes, key: str, value: bytes) -> bytes:
    name = struct.pack("<Q", len(key)) + key.encode()
    start = data.index(name) + len(name) + 4
    return data[:start] + value + data[start + len(value) :]


def test_the_published_file_with_other_settings_at_the_command_line(
    main: Callable[..., CompletedProcess[str]], tmp_path: Path, caplog: Any
) -> None:
    published = blobs_dir() / PUBLISHED
    if not published.is_file():
        pytest.skip("the weights are not on this machine; bring them with: zoo fetch smollm/135m-instruct")
    data, path = published.read_bytes(), tmp_path / "own.gguf"

    def asked(content: bytes) -> CompletedProcess[str]:
        path.write_bytes(content)
        arguments = ("--choices", "Paris,Berlin", "--json", "--weights", str(path))
        return main("generate", "The capital of France is", *arguments)

    def scores(run: CompletedProcess[str]) -> dict[str, float]:
        assert run.returncode == 0, run.stderr
        found: dict[str, float] = json.loads(run.stdout)["results"][0]["scores"]
        return found

    run = asked(data)
    assert not caplog.messages
    plain = scores(run)
    run = asked(patched(data, "llama.attention.layer_norm_rms_epsilon", struct.pack("<f", 0.5)))
    assert "its settings say epsilon = 0.5, which is taken in place of 1e-05 of smollm/135m-instruct" in caplog.text
    assert abs(scores(run)["Paris"] - plain["Paris"]) > 1e-3
    run = asked(patched(data, "general.architecture", struct.pack("<Q", 5) + b"gemma"))
    assert (run.returncode, run.stdout) == (1, "")
    assert "general.architecture is 'gemma', the model is built with 'llama' alone" in run.stderr
