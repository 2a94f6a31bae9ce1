"""Reading `model.bin` of CTranslate2: names and dense tensors, one after another.

Little endian: u32 version, text name of the specification, u32 its revision, u32 number of variables; each variable a text name, u8 rank,
u32 for each dimension, u8 type, u32 bytes, and the bytes; then u32 number of aliases, each two texts (alias, name). A text is u16 length and so many
bytes, the last of them zero. (CTranslate2, `python/ctranslate2/specs/model_spec.py`.)
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import WeightsError

if TYPE_CHECKING:
    import torch

VERSIONS = range(4, 7)
TYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16", 5: "bfloat16"}
LONGEST_NAME, MOST_DIMENSIONS = 512, 8


def is_ctranslate2(head: bytes) -> bool:
    """Whether a file begins like one: a small version, then a specification that is named as those of CTranslate2 are."""
    return len(head) >= 9 and int.from_bytes(head[:4], "little") in VERSIONS and head[6:9].isalpha()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor, aliases left out; views of the mapped file where a tensor begins at a multiple of its numbers, copies elsewhere.

    Raises WeightsError for a file that ends too early or says what cannot be.
    """
    import torch

    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    reader = _Reader(data, path)
    version = reader.number("<I")
    if version not in VERSIONS:
        raise WeightsError(f"{path}: version {version} of CTranslate2's format, expected {VERSIONS[0]} to {VERSIONS[-1]}")
    reader.text()
    reader.number("<I")
    tensors: dict[str, torch.Tensor] = {}
    for _ in range(reader.number("<I")):
        name = reader.text()
        rank = reader.number("<B")
        if rank > MOST_DIMENSIONS:
            raise WeightsError(f"{path}: {name} has {rank} dimensions: a damaged file")
        shape = [reader.number("<I") for _ in range(rank)]
        kind = reader.number("<B")
        raw = reader.take(reader.number("<I"))
        if kind not in TYPES:
            raise WeightsError(f"{path}: {name} is of the unknown type {kind}")
        dtype = getattr(torch, TYPES[kind])
        expected = dtype.itemsize
        for size in shape:
            expected *= size
        if expected != len(raw):
            raise WeightsError(f"{path}: {name} has {len(raw):,} bytes, {shape} of {TYPES[kind]} takes {expected:,}")
        if not raw:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        aligned = (reader.place - len(raw)) % dtype.itemsize == 0
        tensors[name] = torch.frombuffer(raw if aligned else bytearray(raw), dtype=dtype).view(shape)
    return tensors


def read_settings(path: Path) -> dict[str, Any]:
    """The single numbers among its variables, as `encoder/num_heads`. Raises WeightsError as `read_tensors`."""
    return {name: tensor.item() for name, tensor in read_tensors(path).items() if tensor.ndim == 0 and tensor.numel()}


class _Reader:
    """Takes values from bytes, one after another, and says where they end too early."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.place = data, path, 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.place:
            raise WeightsError(
                f"{self.path} ends too early: {count:,} bytes wanted at {self.place:,} of {len(self.data):,}"
            )
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def text(self) -> str:
        length = self.number("<H")
        if length > LONGEST_NAME:
            raise WeightsError(f"{self.path}: a name of {length} bytes at {self.place:,}: a damaged file")
        return bytes(self.take(length)).rstrip(b"\0").decode("utf-8", "replace")
