"""The `config.json` of transformers beside a weight file, as arguments of the builders here.

What the tensors' shapes depend on must agree with the card; numbers that no tensor shows are taken from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.api import WeightsError, arguments_from, settings_of
from zoo_lm.llama import PLAIN, SIZES, positions_of

Arguments = Mapping[str, Any]


def llama(path: Path, arguments: Arguments) -> dict[str, Any]:
    """Of `LlamaConfig`. Raises WeightsError for another model's, UsageError for rotary positions that are not known here."""
    return _rotary(path, arguments, "llama", {**PLAIN}, {})


def mixtral(path: Path, arguments: Arguments) -> dict[str, Any]:
    """Of `MixtralConfig`. Raises as `llama`."""
    return _rotary(
        path,
        {"experts_per_token": 2, **arguments},
        "mixtral",
        {"hidden_act": "silu", "quantization_config": None, "sliding_window": None},
        {"num_local_experts": "experts"},
    )


def gpt2(path: Path, arguments: Arguments) -> dict[str, Any]:
    """Of `GPT2Config`. Raises WeightsError for another model's."""
    origin, said = _config(path, "gpt2")
    return arguments_from(
        said,
        {"epsilon": 1e-5, "hidden": 4 * arguments["width"], **arguments},
        origin=origin,
        same={"n_layer": "layers", "n_embd": "width", "n_head": "heads", "n_inner": "hidden", "vocab_size": "vocabulary",
              "n_positions": "context"},
        used={"layer_norm_epsilon": "epsilon"},
        only={"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": True,
              "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    )  # fmt: skip


def _rotary(
    path: Path, arguments: Arguments, kind: str, only: Mapping[str, Any], same: Mapping[str, str]
) -> dict[str, Any]:
    origin, said = _config(path, kind)
    if not said:
        return {}
    sizes = {field: argument for field, argument in {**SIZES, **same}.items() if argument != "context"}
    known = {"kv_heads": arguments["heads"], "epsilon": 1e-5, "theta": 10_000.0, "scaling": None, **arguments}
    known["head_width"] = known.get("head_width") or arguments["width"] // arguments["heads"]
    theta, scaling = positions_of(said)
    changed = arguments_from(
        {"rms_norm_eps": 1e-6, **said, "rope_theta": theta},
        known,
        origin=origin,
        same={**sizes, "num_key_value_heads": "kv_heads", "head_dim": "head_width"},
        used={
            "rms_norm_eps": "epsilon",
            "rope_theta": "theta",
            "max_position_embeddings": "context",
            "num_experts_per_tok": "experts_per_token",
        },
        only=only,
    )
    return changed if scaling == known["scaling"] else {**changed, "scaling": scaling}


def _config(path: Path, kind: str) -> tuple[Path, Mapping[str, Any]]:
    """The file and what it says, if it is there. Raises WeightsError for one of another architecture."""
    origin = path.parent / "config.json"
    said = settings_of(path, beside=origin.name)
    if said and said.get("model_type") != kind:
        raise WeightsError(
            f"{origin} is that of another model: model_type is {said.get('model_type')!r:.60}, the model is built as {kind!r} alone"
        )
    return origin, said
