"""Reading `model.bin` of CTranslate2: names and dense tensors, one after another.

Little endian: u32 version, text name of the specification, u32 its revision, u32 number of variables; each variable a text name, u8 rank,
u32 for each dimension, u8 type, u32 bytes, and the bytes; then u32 number of aliases, each two texts (alias, name). A text is u16 length and so many
bytes, the last of them zero. (CTranslate2, `python/ctranslate2/specs/model_spec.py`.)
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import WeightsError

if TYPE_CHECKING:
    import torch

VERSIONS = range(4, 7)
TYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16", 5: "bfloat16"}
LONGEST_NAME, MOST_DIMENSIONS, MOST_VARIABLES = 512, 8, 1 << 16
MOST_NUMBERS = 1 << 48


def is_ctranslate2(head: bytes) -> bool:
    """Whether a file begins like one: a small version, then a specification that is named as those of CTranslate2 are."""
    return len(head) >= 9 and int.from_bytes(head[:4], "little") in VERSIONS and head[6:9].isalpha()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor, aliases left out; views of the mapped file where a tensor begins at a multiple of its numbers, copies elsewhere.

    Raises WeightsError for a file that ends too early or too late, or says what cannot be.
    """
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    reader = _Reader(data, path)
    version = reader.number("<I")
    if version not in VERSIONS:
        raise WeightsError(f"{path}: version {version} of CTranslate2's format, expected {VERSIONS[0]} to {VERSIONS[-1]}")
    reader.text()
    reader.number("<I")
    tensors: dict[str, torch.Tensor] = {}
    for _ in range(reader.count("variables")):
        name = reader.text()
        if name in tensors:
            raise WeightsError(f"{path}: {name!r} occurs twice: a damaged file")
        tensors[name] = _tensor(reader, name)
    names = set(tensors)
    for _ in range(reader.count("aliases")):
        alias, name = reader.text(), reader.text()
        if alias in names or name not in tensors:
            raise WeightsError(f"{path}: the alias {alias!r} of {name!r} cannot be: a damaged file")
        names.add(alias)
    if reader.place != len(data):
        raise WeightsError(f"{path}: {len(data) - reader.place:,} bytes follow its end: a damaged file")
    return tensors


def read_settings(path: Path) -> dict[str, Any]:
    """The single numbers among its variables, as `encoder/num_heads`. Raises WeightsError as `read_tensors`."""
    return {name: tensor.item() for name, tensor in read_tensors(path).items() if tensor.ndim == 0 and tensor.numel()}


def _tensor(reader: _Reader, name: str) -> torch.Tensor:
    """The shape, type and numbers behind a name."""
    import torch

    rank = reader.number("<B")
    if rank > MOST_DIMENSIONS:
        raise WeightsError(f"{reader.path}: {name!r} has {rank} dimensions: a damaged file")
    shape = [reader.number("<I") for _ in range(rank)]
    kind = reader.number("<B")
    raw = reader.take(reader.number("<I"))
    if kind not in TYPES:
        raise WeightsError(f"{reader.path}: {name!r} is of the unknown type {kind}")
    if prod(size or 1 for size in shape) > MOST_NUMBERS:
        raise WeightsError(f"{reader.path}: {name!r} of {shape} is larger than any tensor: a damaged file")
    dtype = getattr(torch, TYPES[kind])
    expected = dtype.itemsize * prod(shape)
    if expected != len(raw):
        raise WeightsError(f"{reader.path}: {name!r} has {len(raw):,} bytes, {shape} of {TYPES[kind]} takes {expected:,}")
    if not raw:
        return torch.empty(shape, dtype=dtype)
    aligned = (reader.place - len(raw)) % dtype.itemsize == 0
    return torch.frombuffer(raw if aligned else bytearray(raw), dtype=dtype).view(shape)


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
        try:
            return bytes(self.take(length)).rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise WeightsError(f"{self.path}: a name at {self.place:,} is no UTF-8: a damaged file") from error

    def count(self, what: str) -> int:
        number = self.number("<I")
        if number > MOST_VARIABLES:
            raise WeightsError(f"{self.path}: it says that it has {number:,} {what}, at most {MOST_VARIABLES:,} are read")
        return number
