"""whisper.cpp's model files (`ggml-base.bin`): a header, mel filters, a vocabulary, then tensor after tensor under OpenAI's names.

Source: the reader and the converter of whisper.cpp (`src/whisper.cpp`, `models/convert-pt-to-ggml.py`). Filters and vocabulary are passed
over: the model has its own.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch

from zoo.api import WeightsError, dequantise

MAGIC = b"lmgg"
NUMBERS = 11  # of the header: vocabulary, four of each side, mels, type of the file
TYPES = {0: ("F32", 4, 1), 1: ("F16", 2, 1), 2: ("Q4_0", 18, 32), 3: ("Q4_1", 20, 32), 6: ("Q5_0", 22, 32), 7: ("Q5_1", 24, 32),
         8: ("Q8_0", 34, 32)}  # fmt: skip  # number of a type -> its name, bytes of a block, numbers in it
MAX_AXES = 4


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, float32 or float16; quantised ones as the numbers that they stand for.

    Raises WeightsError, with the path and the place, for a file that is cut off or names what is not there.
    """
    reader = _Reader(path)
    if reader.take(4, "the first bytes") != MAGIC:
        raise WeightsError(f"{path} is no ggml file: it must begin with {MAGIC!r}")
    vocabulary, *_ = reader.integers(NUMBERS, "the header")
    rows, columns = reader.integers(2, "the mel filters")
    reader.take(reader.size(4, rows, columns, what="the mel filters"), "the mel filters")
    (tokens,) = reader.integers(1, "the vocabulary")
    if not 0 <= tokens <= vocabulary:
        raise WeightsError(f"{path} is damaged: its vocabulary holds {tokens:,} tokens, and its header says {vocabulary:,}")
    for number in range(tokens):
        (length,) = reader.integers(1, f"token {number}")
        reader.take(reader.size(length, what=f"token {number}"), f"token {number}")
    tensors: dict[str, torch.Tensor] = {}
    while not reader.ended:
        name, tensor = _tensor(reader)
        if name in tensors:
            raise WeightsError(f"{path} holds {name} twice")
        tensors[name] = tensor
    return tensors


class _Reader:
    """Bytes of a mapped file, from its start to its end. What it hands out was there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.stat().st_size:
            raise WeightsError(f"{path} is empty")
        self.bytes = np.memmap(path, np.uint8, "r")
        self.at = 0

    @property
    def ended(self) -> bool:
        return self.at == len(self.bytes)

    def take(self, count: int, what: str) -> bytes:
        return self.view(count, what).tobytes()

    def view(self, count: int, what: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        if count > len(self.bytes) - self.at:
            raise WeightsError(
                f"{self.path} is cut off: {what} has {count:,} bytes, {len(self.bytes) - self.at:,} are left"
            )
        self.at += count
        return self.bytes[self.at - count : self.at]

    def integers(self, count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self.take(4 * count, what))

    def size(self, *factors: int, what: str) -> int:
        if any(factor < 0 for factor in factors):
            raise WeightsError(f"{self.path} is damaged: {what} has a negative size")
        return math.prod(factors)


def _tensor(reader: _Reader) -> tuple[str, torch.Tensor]:
    axes, length, number = reader.integers(3, "the head of a tensor")
    if not 1 <= axes <= MAX_AXES or number not in TYPES:
        known = ", ".join(name for name, _, _ in TYPES.values())
        raise WeightsError(
            f"{reader.path} is damaged, or of another type: a tensor of {axes} axes and type {number}; read are 1 to {MAX_AXES} axes of "
            f"{known}"
        )
    shape = reader.integers(axes, "the shape of a tensor")[::-1]
    name = reader.take(reader.size(length, what="a name"), "the name of a tensor").decode("utf-8", "replace")
    kind, block_bytes, per_block = TYPES[number]
    count = reader.size(*shape, what=name)
    if min(shape) < 1 or not name.isprintable():
        raise WeightsError(f"{reader.path} is damaged: a tensor {name!r:.80} of shape {list(shape)}")
    if shape[-1] % per_block:
        raise WeightsError(
            f"{reader.path} is damaged: {name!r:.80} has rows of {shape[-1]}, {kind} has blocks of {per_block}"
        )
    content = torch.from_numpy(reader.view(count // per_block * block_bytes, name).copy())
    if per_block == 1:
        tensor = content.view(torch.float32 if kind == "F32" else torch.float16).reshape(shape)
    else:
        tensor = dequantise(content.reshape(math.prod(shape[:-1]), -1), kind).reshape(shape)
    # The bias of a convolution has an axis more, along which it is repeated.
    return name, tensor.squeeze(-1) if name in ("encoder.conv1.bias", "encoder.conv2.bias") else tensor
