"""The types of GGUF's tensors: blocks of so many weights in so many bytes, and the numbers that they stand for.

The layouts are those of ggml.h; the peer is the library gguf, which the tests hold this to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from zoo.errors import UsageError, WeightsError
from zoo.weights.formats.mapped import forget_pages

SHOWN_CHARACTERS = 80
# Dequantised at a time: what one step writes is still in the processor's cache for the next, and it is too little for torch
# to share out to threads, which on a busy machine wait for each other twenty times as long as the work takes.
CHUNK_WEIGHTS = 1 << 15

# number in the file -> name, weights in a block, bytes of a block. From ggml.h; the tests compare it with the library's.
# fmt: off
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}
# fmt: on
BLOCKS = {name: (weights, size_bytes) for name, weights, size_bytes in TYPES.values()}
PLAIN = {  # one number after another, as torch has them too
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def quantised_type(key: str) -> tuple[str, str | None]:
    """`<name>:<TYPE>` as `gguf.read_tensors` has it -> (name, TYPE); (key, None) for the key of plain numbers."""
    name, _, kind = key.rpartition(":")
    return (name, kind) if kind in BLOCKS and kind not in PLAIN else (key, None)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight as a file holds it: blocks of one type, uint8[N, bytes of a row], which stand for float32[N, K].

    Rows can be chosen and put in another order, since no block reaches over two of them. It stands where a state dict has a tensor.
    """

    rows: torch.Tensor
    kind: str

    @property
    def shape(self) -> torch.Size:
        """[N, K] of the weight."""
        weights, size_bytes = BLOCKS[self.kind]
        return torch.Size((self.rows.shape[0], self.rows.shape[1] // size_bytes * weights))

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that they stand for."""
        return torch.float32

    def dequantise(self) -> torch.Tensor:
        """The weight, float32[N, K]."""
        return dequantise(self.rows, self.kind)

    def release(self) -> None:
        """Give back the memory of the bytes, where a file holds them."""
        forget_pages(self.rows)


def published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | Blocks]:
    """What `zoo.api.read_state_dict` made of a file, with a value for each name: its tensor, or its blocks."""
    values: dict[str, torch.Tensor | Blocks] = {}
    for key, tensor in state.items():
        name, kind = quantised_type(key)
        values[name] = tensor if kind is None else Blocks(tensor, kind)
    return values


def dequantise(blocks: torch.Tensor, type: str) -> torch.Tensor:  # noqa: A002 - what GGUF calls it
    """Blocks uint8[rows, row_bytes] of one type -> the numbers they stand for, float32[rows, columns].

    Exactly those of the library gguf, which computes them for the types that have no code here (the K and IQ families).
    Raises UsageError for a tensor of another shape, and WeightsError for a type that cannot be dequantised.
    """
    if type not in BLOCKS:
        raise WeightsError(f"no GGUF type is called {shown(type)}, the types are {', '.join(BLOCKS)}")
    block_weights, block_bytes = BLOCKS[type]
    if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] % block_bytes:
        raise UsageError(
            f"blocks of {type} must be uint8[rows, a multiple of {block_bytes}], got {blocks.dtype}{list(blocks.shape)}"
        )
    rows, columns = blocks.shape[0], blocks.shape[1] // block_bytes * block_weights
    blocks = blocks.contiguous()
    if blocks.storage_offset() % 8:  # wider numbers are read in place, from their own multiples only
        blocks = blocks.clone()
    if type in PLAIN:
        return blocks.view(PLAIN[type]).to(torch.float32)
    if type not in _UNPACK:
        return _dequantise_by_library(blocks, type)
    weights_RK = torch.empty(rows, columns, dtype=torch.float32)
    if blocks.numel():
        blocks_NS, weights_NK = blocks.view(-1, block_bytes), weights_RK.view(-1, block_weights)
        chunk = CHUNK_WEIGHTS // block_weights
        for first in range(0, len(blocks_NS), chunk):
            _UNPACK[type](blocks_NS[first : first + chunk], weights_NK[first : first + chunk])
    return weights_RK


def _unpack_q4_0(blocks_NS: torch.Tensor, into_NK: torch.Tensor) -> None:
    """Scale, 16 bytes: (nibble - 8) * scale. The low nibbles are the first 16 weights; so they are below."""
    _nibbles(blocks_NS[:, 2:], into_NK)
    into_NK.sub_(8).mul_(_half(blocks_NS, 0))


def _unpack_q4_1(blocks_NS: torch.Tensor, into_NK: torch.Tensor) -> None:
    """Scale, minimum, 16 bytes: nibble * scale + minimum, in two steps: a fused one would round differently."""
    _nibbles(blocks_NS[:, 4:], into_NK)
    into_NK.mul_(_half(blocks_NS, 0)).add_(_half(blocks_NS, 2))


def _unpack_q5_0(blocks_NS: torch.Tensor, into_NK: torch.Tensor) -> None:
    """Scale, 32 fifth bits, 16 bytes: (number - 16) * scale."""
    _nibbles(blocks_NS[:, 6:], into_NK)
    into_NK.add_(_fifth_bits(blocks_NS[:, 2:6])).sub_(16).mul_(_half(blocks_NS, 0))


def _unpack_q5_1(blocks_NS: torch.Tensor, into_NK: torch.Tensor) -> None:
    """Scale, minimum, 32 fifth bits, 16 bytes: number * scale + minimum."""
    _nibbles(blocks_NS[:, 8:], into_NK)
    into_NK.add_(_fifth_bits(blocks_NS[:, 4:8])).mul_(_half(blocks_NS, 0)).add_(_half(blocks_NS, 2))


def _unpack_q8_0(blocks_NS: torch.Tensor, into_NK: torch.Tensor) -> None:
    """Scale, 32 signed bytes: byte * scale."""
    into_NK.copy_(blocks_NS[:, 2:].view(torch.int8)).mul_(_half(blocks_NS, 0))


_UNPACK = {
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q5_0": _unpack_q5_0,
    "Q5_1": _unpack_q5_1,
    "Q8_0": _unpack_q8_0,
}


def _half(blocks_NS: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at a byte of each block, float32[N, 1]."""
    return blocks_NS[:, at : at + 2].view(torch.float16).to(torch.float32)


def _nibbles(bytes_NS: torch.Tensor, into_NK: torch.Tensor) -> None:
    half = bytes_NS.shape[1]
    into_NK[:, :half] = bytes_NS & 15
    into_NK[:, half:] = bytes_NS >> 4


def _fifth_bits(bytes_NS: torch.Tensor) -> torch.Tensor:
    """uint8[N, 4] -> 16 where the weight's bit is set, 0 elsewhere: uint8[N, 32]."""
    shifts_K = torch.arange(8, dtype=torch.uint8)
    return ((bytes_NS[:, :, None] >> shifts_K) & 1).flatten(1) << 4


def _dequantise_by_library(blocks: torch.Tensor, type: str) -> torch.Tensor:  # noqa: A002 - as above
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise WeightsError(
            f"weights of type {type} are dequantised by the library gguf, which is not installed: pip install 'modalzoo[gguf]'"
        ) from error
    try:
        return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[type]))
    except (NotImplementedError, KeyError) as error:
        raise WeightsError(
            f"the library gguf cannot dequantise {type}: take a file with weights of another type"
        ) from error


def shown(value: Any) -> str:
    """A name or value from the file, short enough for one line."""
    if not isinstance(value, (str, int, float)):
        return f"a {type(value).__name__}"
    text = repr(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
