"""What lies beside the weights of a sentence encoder, as arguments of the builder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.api import arguments_from, settings_of
from zoo_text.minilm import NORM_EPSILON

SAME = {
    "num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads", "intermediate_size": "hidden",
    "vocab_size": "vocabulary", "max_position_embeddings": "positions", "word_embedding_dimension": "width",
}  # fmt: skip
ONLY = {
    "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": NORM_EPSILON, "position_embedding_type": "absolute", "is_decoder": False,
    "pooling_mode": "mean", "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False, "pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": False,
}  # fmt: skip
USED = {"max_seq_length": "max_tokens"}
FILES = ("config.json", "sentence_bert_config.json", "1_Pooling/config.json")


def from_folder(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Where texts are cut, and the folder's own tokenizer. Raises WeightsError for another architecture, other sizes and another pooling."""
    changed: dict[str, Any] = {}
    for name in FILES:
        said = settings_of(path, beside=name)
        changed |= arguments_from(said, arguments, origin=path.parent / name, same=SAME, used=USED, only=ONLY)
    tokenizer = path.parent / "tokenizer.json"
    return {**changed, "tokenizer_path": tokenizer} if tokenizer.is_file() else changed
