"""A weight file -> its tensors: the table of formats, told apart by how a file begins, never by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from zoo.errors import WeightsError
from zoo.weights.formats import ctranslate2, gguf, safetensors, torch_checkpoint

HEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One format of weight files.

    name: what messages call such a file, behind "a".
    recognises: the first `HEAD_BYTES` of a file, fewer where it is shorter -> whether the format is this one. It claims no
        more than it must: a file that two formats claim is not read.
    read: the path -> name to dense tensor on the CPU. It runs no code from the file, trusts no number in it, and raises
        WeightsError, with the path, for one that is damaged.
    """

    name: str
    recognises: Callable[[bytes], bool]
    read: Callable[[Path], Mapping[str, torch.Tensor]]


FORMATS = (
    WeightFormat("safetensors file", safetensors.is_safetensors, safetensors.read_tensors),
    WeightFormat("torch checkpoint", torch_checkpoint.is_torch_checkpoint, torch_checkpoint.read_tensors),
    WeightFormat("GGUF file", gguf.is_gguf, gguf.read_tensors),
    WeightFormat("model.bin of CTranslate2", ctranslate2.is_ctranslate2, ctranslate2.read_tensors),
)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, a torch checkpoint (unpickled with `weights_only=True`), GGUF or CTranslate2's model.bin,
    told apart by content. Of a checkpoint that holds its tensors as `state_dict` or `model_state_dict`, those are meant.

    A quantised tensor of a GGUF file stands as its blocks, uint8[rows, row_bytes], under `<name>:<TYPE>`
    (`zoo.weights.formats.gguf_blocks.dequantise` takes them); a view of the mapped file, like all of that file's tensors.
    Raises WeightsError for anything else, for a checkpoint that inflates, and for one that holds more than tensors.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for known in FORMATS:
        if known.recognises(head):
            return dict(known.read(path))
    *names, last = (f"a {known.name}" for known in FORMATS)
    raise WeightsError(f"{path} is neither {', '.join(names)} nor {last} (it begins with {head[:4]!r})")
