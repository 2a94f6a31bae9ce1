"""What a Whisper file says of its model: `dims` of a `.pt`, the header of a ggml file, CTranslate2's numbers, and the JSON beside the weights."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.api import WeightsError, arguments_from, settings_of
from zoo_whisper.openai_package import named_alignment_heads

HEADER = struct.Struct("<4s10i")  # of ggml
GGML_MAGIC = b"lmgg"
DIMS = ("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state", "n_text_head",
        "n_text_layer", "n_mels")  # fmt: skip  # in the order of ggml's header
SAME = {
    "n_vocab": "vocabulary", "n_audio_state": "width", "n_audio_head": "heads", "n_audio_layer": "layers", "n_text_ctx": "context",
    "n_text_state": "width", "n_text_head": "heads", "n_text_layer": "decoder_layers", "n_mels": "bands",
    "vocab_size": "vocabulary", "d_model": "width", "encoder_attention_heads": "heads", "decoder_attention_heads": "heads",
    "encoder_layers": "layers", "decoder_layers": "decoder_layers", "max_target_positions": "context", "num_mel_bins": "bands",
    "encoder/num_heads": "heads", "decoder/num_heads": "heads",
}  # fmt: skip
ONLY = {
    "n_audio_ctx": 1500, "max_source_positions": 1500, "activation_function": "gelu", "scale_embedding": False, "model_type": "whisper",
}  # fmt: skip
BESIDE = ("config.json", "generation_config.json")  # both may name the heads that follow the words


def from_file(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The cross-attention heads that follow the words, where the file names others than the card.

    Raises WeightsError for other sizes, other numbers of heads (which no tensor shows), and what is not Whisper's.
    """
    said = {**_own(path)}
    for name in BESIDE:
        said |= settings_of(path, beside=name)
    whole = "vocabulary" in arguments
    known = {"context": 448, **arguments, "decoder_layers": arguments.get("decoder_layers") or arguments["layers"]}
    same = {name: argument for name, argument in SAME.items() if whole or argument in ("bands", "width", "heads", "layers")}
    arguments_from(said, known, origin=path, same=same, only=ONLY)
    heads = said.get("alignment_heads")
    if not whole or heads is None:
        return {}
    if not isinstance(heads, list) or not heads or not all(_is_pair(one) for one in heads):
        raise WeightsError(f"alignment_heads beside {path} must be a list of (layer, head), got {heads!r:.80}")
    own = named_alignment_heads(known.get("alignment_heads", ()), known["decoder_layers"], known["heads"])
    return {} if sorted(map(tuple, heads)) == sorted(own) else {"alignment_heads": heads}


def _own(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if head[:4] == GGML_MAGIC and len(head) == HEADER.size:
        return dict(zip(DIMS, HEADER.unpack(head)[1:], strict=True))
    own = settings_of(path)
    dims = own.get("dims", own)
    return dims if isinstance(dims, Mapping) else {}


def _is_pair(one: Any) -> bool:
    return isinstance(one, list) and len(one) == 2 and all(type(number) is int for number in one)
