"""GGUF, the file format of llama.cpp (versions 2 and 3, little endian), read by a walk that trusts no number in the file.

A file is `GGUF`, a version, the counts of tensors and of metadata, the metadata (key, type, value), one description for each
tensor (name, dimensions, type, offset) and, from the next multiple of the alignment on, the tensors' bytes. A quantised
tensor is a row of blocks after another: so many weights in so many bytes, scales included. The layout is that of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the peer is the library gguf, which the tests hold this to.

Every count, length and offset is compared with what the file still holds before anything is made for it, so that a few
hostile bytes cost nothing. Nothing is copied: tensors and arrays of numbers are views of the mapped file, pages that are
written to become this process's own, and the file must not be truncated while they are in use.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import torch

from zoo.errors import WeightsError
from zoo.weights.formats.gguf_blocks import PLAIN, TYPES, shown
from zoo.weights.formats.mapped import map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 << 20  # metadata and descriptions; the largest vocabularies published take some 15 MB
MAX_STRINGS = 1 << 21  # elements of string arrays, all together: an object each, however short
MAX_KEYS = MAX_TENSORS = 1 << 16
MAX_ALIGNMENT = 1 << 16
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8"}
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_LEAST_KEY_BYTES = 8 + 4 + 1  # an empty key, a type, a value of one byte
_LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8  # an empty name, no dimensions, a type, an offset


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as it lies in the file.

    shape: as torch has it, outermost dimension first. type: such as "Q4_1" or "F32", a key of `gguf_blocks.BLOCKS`.
    data: uint8[rows, row_bytes], a view of the mapped file; a row runs along the last dimension.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: torch.Tensor


@dataclass(frozen=True, slots=True)
class Gguf:
    """A GGUF file's metadata and tensors, in the file's order.

    A value of the metadata is an int, float, bool or str, for an array of strings a tuple of them, and for an array of
    anything else a read-only numpy array.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(head: bytes) -> bool:
    """Whether a file begins as GGUF does."""
    return head.startswith(MAGIC)


def read_gguf(path: Path) -> Gguf:
    """Map a GGUF file and check everything but the values of its weights.

    Raises WeightsError, with the file and the field, for a file that cannot be read, is damaged, or asks for more than any
    model does (`MAX_HEADER_BYTES`, `MAX_STRINGS`, `MAX_KEYS`, `MAX_TENSORS`), and for arrays of arrays, which llama.cpp
    refuses as well.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise WeightsError(f"{path} is not a GGUF file: it is empty")
            buffer = map_file(file)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read as a GGUF file: {error}") from error
    header = _Header(path, buffer)
    if buffer[:4] != MAGIC:
        raise WeightsError(f"{path} is not a GGUF file: it begins with {buffer[:4]!r}, expected {MAGIC!r}")
    header.offset = 4
    version = header.integer("<I", "version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        advice = "is big endian: convert it with gguf-convert-endian" if swapped in VERSIONS else "must be 2 or 3"
        header.fail("version", f"is {version}, it {advice}" if swapped not in VERSIONS else advice)
    tensor_count = header.integer("<Q", "number of tensors")
    key_count = header.integer("<Q", "number of metadata keys")
    header.expect(key_count, MAX_KEYS, _LEAST_KEY_BYTES, "number of metadata keys")
    header.expect(tensor_count, MAX_TENSORS, _LEAST_TENSOR_BYTES, "number of tensors")
    metadata: dict[str, Any] = {}
    for number in range(key_count):
        key = header.string(f"metadata key {number}")
        if key in metadata:
            header.fail(f"metadata key {shown(key)}", "occurs twice")
        metadata[key] = _value(header, key)
    tensors = _tensors(header, tensor_count, _alignment(header, metadata))
    return Gguf(MappingProxyType(metadata), MappingProxyType(tensors))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A GGUF file as a state dict; nothing is dequantised or copied.

    Plain numbers (`gguf_blocks.PLAIN`) stand under their name, with their shape and width; a quantised tensor stands as its blocks
    uint8[rows, row_bytes] under `<name>:<TYPE>`, such as `blk.0.attn_q.weight:Q4_1`. Raises WeightsError as `read_gguf`.
    """
    state: dict[str, torch.Tensor] = {}
    for tensor in read_gguf(path).tensors.values():
        plain = PLAIN.get(tensor.type)
        key = f"{tensor.name}:{tensor.type}" if plain is None else tensor.name
        if key in state:
            raise WeightsError(f"{path} is not a valid GGUF file: tensor {shown(key)}: stands for two tensors")
        state[key] = tensor.data if plain is None else tensor.data.view(plain).reshape(tensor.shape)
    return state


def read_settings(path: Path) -> Mapping[str, Any]:
    """A GGUF file's metadata. Raises WeightsError as `read_gguf`."""
    return read_gguf(path).metadata


class _Header:
    """A place in the mapped file's header; what is read must lie inside the file and inside the most a header may be."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.limit = min(len(buffer), MAX_HEADER_BYTES)
        self.offset = 0
        self.strings = 0  # elements of string arrays so far

    def fail(self, field: str, problem: str) -> NoReturn:
        raise WeightsError(f"{self.path} is not a valid GGUF file: {field}: {problem}")

    def expect(self, count: int, most: int, least_bytes: int, field: str) -> None:
        """Refuse a count that no model needs, or whose elements, of at least so many bytes each, cannot all be there."""
        if count > most:
            self.fail(field, f"is {count:,}, at most {most:,} are read")
        if count * least_bytes > self.limit - self.offset:
            self._too_long(count * least_bytes, f"{field}: {count:,}")

    def take(self, size_bytes: int, field: str) -> int:
        """Step over so many bytes; returns where they begin."""
        start = self.offset
        if size_bytes > self.limit - start:
            self._too_long(size_bytes, field)
        self.offset = start + size_bytes
        return start

    def integer(self, layout: str, field: str) -> int:
        value: int = struct.unpack_from(layout, self.buffer, self.take(struct.calcsize(layout), field))[0]
        return value

    def string(self, field: str) -> str:
        size_bytes = self.integer("<Q", f"length of {field}")
        start = self.take(size_bytes, field)
        try:
            return self.buffer[start : self.offset].decode()
        except UnicodeDecodeError as error:
            self.fail(field, f"is no UTF-8 ({error.reason} at byte {start + error.start})")

    def string_array(self, count: int, field: str) -> tuple[str, ...]:
        """The same as `string` for each of them, unrolled: a vocabulary has 100,000."""
        self.expect(count, MAX_STRINGS - self.strings, 8, f"length of {field}")
        self.strings += count
        buffer, limit, offset = self.buffer, self.limit, self.offset
        length = struct.Struct("<Q").unpack_from
        texts: list[str] = []
        keep = texts.append
        start = offset
        try:
            for _ in range(count):
                start = offset + 8
                if start > limit:
                    start, offset = offset, start
                    break
                offset = start + length(buffer, offset)[0]
                if offset > limit:
                    break
                keep(buffer[start:offset].decode())
        except UnicodeDecodeError as error:
            self.fail(f"{field}[{len(texts)}]", f"is no UTF-8 ({error.reason} at byte {start + error.start})")
        self.offset = start
        self.take(offset - start, f"{field}[{len(texts)}]")
        return tuple(texts)

    def _too_long(self, size_bytes: int, field: str) -> NoReturn:
        what = "the file has" if self.limit == len(self.buffer) else f"a header of at most {MAX_HEADER_BYTES:,} bytes has"
        self.fail(field, f"needs {size_bytes:,} bytes at byte {self.offset:,}, {what} {self.limit - self.offset:,} left")


def _value(header: _Header, key: str) -> Any:
    """The type and value of one key of the metadata."""
    field = f"metadata {shown(key)}"
    kind = header.integer("<I", f"type of {field}")
    if kind == _STRING:
        return header.string(field)
    if kind in _NUMBERS:
        return _numbers(header, kind, 1, field)[0].item()
    if kind != _ARRAY:
        header.fail(f"type of {field}", f"is {kind}, expected 0 to 12")
    element = header.integer("<I", f"element type of {field}")
    count = header.integer("<Q", f"length of {field}")
    if element == _STRING:
        return header.string_array(count, field)
    if element == _ARRAY:
        header.fail(field, "is an array of arrays, which is not read: flatten it")
    if element not in _NUMBERS:
        header.fail(f"element type of {field}", f"is {element}, expected 0 to 8 or 10 to 12")
    return _numbers(header, element, count, field)


def _numbers(header: _Header, kind: int, count: int, field: str) -> np.ndarray[Any, Any]:
    """A view of so many numbers of one type."""
    dtype = np.dtype(_NUMBERS[kind])
    start = header.take(count * dtype.itemsize, field)
    numbers = np.frombuffer(header.buffer, np.uint8 if kind == _BOOL else dtype, count, start)
    if kind == _BOOL:
        if count and numbers.max() > 1:
            header.fail(field, f"is a bool of {numbers.max()}, expected 0 or 1")
        numbers = numbers.view(dtype)
    numbers.flags.writeable = False
    return numbers


def _alignment(header: _Header, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    valid = type(alignment) is int and 8 <= alignment <= MAX_ALIGNMENT and alignment.bit_count() == 1
    if not valid:
        header.fail(
            "metadata 'general.alignment'",
            f"is {shown(alignment)}, expected a power of two from 8 to {MAX_ALIGNMENT}",
        )
    return int(alignment)


def _tensors(header: _Header, count: int, alignment: int) -> dict[str, GgufTensor]:
    """The descriptions of all tensors, checked one by one and then against each other, with views of their bytes."""
    rows: dict[str, tuple[tuple[int, ...], str, int, int]] = {}  # name -> shape, type, offset from the first tensor, bytes
    for number in range(count):
        name = header.string(f"name of tensor {number}")
        if name in rows:
            header.fail(f"tensor {shown(name)}", "occurs twice")
        rows[name] = _description(header, f"tensor {shown(name)}", alignment)
    data_start = -(-header.offset // alignment) * alignment
    total_bytes = len(header.buffer)
    tensors: dict[str, GgufTensor] = {}
    for name, (shape, kind, offset, size_bytes) in rows.items():
        start = data_start + offset
        if start + size_bytes > total_bytes:
            header.fail(
                f"tensor {shown(name)}",
                f"{kind}{list(shape)} ends at byte {start + size_bytes:,}, the file at {total_bytes:,}: it is cut short",
            )
        data = torch.frombuffer(header.buffer, dtype=torch.uint8, count=size_bytes, offset=start)
        tensors[name] = GgufTensor(name, shape, kind, data.view(prod(shape[:-1]), -1))
    end, previous = 0, ""
    for offset, size_bytes, name in sorted((offset, size_bytes, name) for name, (_, _, offset, size_bytes) in rows.items()):
        if offset < end:
            header.fail(f"tensor {shown(name)}", f"overlaps the tensor {shown(previous)} in the file")
        end, previous = offset + size_bytes, name
    return tensors


def _description(header: _Header, field: str, alignment: int) -> tuple[tuple[int, ...], str, int, int]:
    """Shape, type, offset from the first tensor and bytes of one tensor, before they are compared with the file's size."""
    dimensions = header.integer("<I", f"number of dimensions of {field}")
    if dimensions > MAX_DIMENSIONS:
        header.fail(f"number of dimensions of {field}", f"is {dimensions}, at most {MAX_DIMENSIONS} are legal")
    # The file has the innermost dimension first.
    shape = tuple(header.integer("<Q", f"shape of {field}") for _ in range(dimensions))[::-1]
    number = header.integer("<I", f"type of {field}")
    offset = header.integer("<Q", f"offset of {field}")
    if 0 in shape:
        header.fail(f"shape of {field}", f"is {list(shape)}, each dimension must be at least 1")
    if number not in TYPES:
        header.fail(f"type of {field}", f"is number {number}, which no type has that is known here: {_known_types()}")
    kind, block_weights, block_bytes = TYPES[number]
    columns = shape[-1] if shape else 1
    if columns % block_weights:
        header.fail(f"shape of {field}", f"is {list(shape)}, of {kind} the last must be a multiple of {block_weights}")
    if offset % alignment:
        header.fail(f"offset of {field}", f"is {offset:,}, expected a multiple of the alignment {alignment}")
    return shape, kind, offset, prod(shape) // block_weights * block_bytes


def _known_types() -> str:
    return ", ".join(f"{number} {name}" for number, (name, _, _) in TYPES.items())
