"""What transformers saves beside a wav2vec 2.0 or HuBERT, as arguments of the builder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.api import arguments_from, settings_of
from zoo_audio.wav2vec2 import CONVOLUTIONS

SAME = {
    "hidden_size": "width", "num_attention_heads": "heads", "num_hidden_layers": "layers", "intermediate_size": "hidden",
    "conv_bias": "convolution_bias", "feat_extract_norm": "norm", "do_stable_layer_norm": "norm_first",
    "num_conv_pos_embeddings": "position_kernel", "num_conv_pos_embedding_groups": "position_groups",
    "conv_dim": "channels", "conv_kernel": "kernels", "conv_stride": "strides",
}  # fmt: skip
ONLY = {
    "model_type": ("wav2vec2", "hubert"), "hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5,
    "conv_pos_batch_norm": False, "add_adapter": False,
}  # fmt: skip


def from_folder(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Whether sounds are normalised. Raises WeightsError for another architecture, other sizes and another sample rate."""
    channels, kernels, strides = zip(*arguments.get("convolutions", CONVOLUTIONS), strict=True)
    known = {"convolution_bias": False, "norm": "group", "norm_first": False, "position_kernel": 128, "position_groups": 16, **arguments,
             "channels": channels, "kernels": kernels, "strides": strides}  # fmt: skip
    said = settings_of(path, beside="config.json")
    arguments_from(said, known, origin=path.parent / "config.json", same=SAME, only=ONLY)
    prepared = settings_of(path, beside="preprocessor_config.json")
    numbers = dict(arguments["preprocess"])
    only = {"sampling_rate": numbers["sample_rate_hz"], "do_normalize": (True, False)}
    arguments_from(prepared, {}, origin=path.parent / "preprocessor_config.json", only=only)
    normalise = prepared.get("do_normalize")
    if normalise is None or normalise == numbers.get("normalise", False):
        return {}
    return {"preprocess": {**numbers, "normalise": normalise}}
