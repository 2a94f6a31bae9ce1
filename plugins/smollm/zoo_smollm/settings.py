"""What a GGUF file says of its model, as arguments of the builder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.api import WeightsError, arguments_from, settings_of
from zoo_smollm.keys import HEAD_WIDTH

ARCHITECTURE = "llama"
SAME = {
    "llama.block_count": "layers",
    "llama.embedding_length": "width",
    "llama.feed_forward_length": "hidden",
    "llama.attention.head_count": "heads",
    "llama.attention.head_count_kv": "kv_heads",
    "llama.vocab_size": "vocabulary",
}
USED = {
    "llama.context_length": "context",
    "llama.rope.freq_base": "theta",
    "llama.attention.layer_norm_rms_epsilon": "epsilon",
}
ONLY = {
    "general.architecture": ARCHITECTURE,
    "llama.rope.dimension_count": HEAD_WIDTH,
    "llama.attention.key_length": HEAD_WIDTH,
    "llama.attention.value_length": HEAD_WIDTH,
    "llama.rope.scaling.type": "none",
    "llama.attention.causal": True,
    "llama.tensor_data_layout": "Meta AI original pth",
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
}
DEFAULT_THETA = 10_000.0  # of a file that does not say, in llama.cpp


def from_gguf(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a GGUF file that differ from the card's, and the file itself as that of the tokenizer.

    Empty for a file of another format, which says nothing. Raises WeightsError for another architecture, other sizes, and a setting of
    the architecture that is not known here.
    """
    said = settings_of(path)
    if "general.architecture" not in said:
        return {}
    unknown = sorted(key for key in said if key.startswith(f"{ARCHITECTURE}.") and key not in {*SAME, *USED, *ONLY})
    if unknown:
        raise WeightsError(
            f"{path} has the settings {', '.join(unknown)[:200]}, which are not known here: the model would be another"
        )
    used = {"llama.rope.freq_base": DEFAULT_THETA, **said}
    return {
        **arguments_from(used, arguments, origin=path, same=SAME, used=USED, only=ONLY),
        **({"tokenizer_path": path} if "tokenizer.ggml.model" in said else {}),
    }
