"""Types of blocks, and how their rows are laid out for the native functions: sixteen rows interleaved (native/layout.h).

What is here is plain PyTorch. It does the same as the native functions where those could not be built, and the tests hold the two together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from zoo.api import UsageError, WeightsError
from zoo.api import dequantise as dequantise_blocks

TILE_ROWS, GROUP = 16, 32
EXPONENT = 0x7C  # the bits of a float16's exponent in its upper byte


class Field(NamedTuple):
    """`pieces` of `unit` bytes each at `offset` of a block."""

    offset: int
    unit: int
    pieces: int


class BlockType(NamedTuple):
    """A type of GGUF: its number there, weights and bytes of a block, its scales and its quants, where its float16 numbers are."""

    number: int
    weights: int
    bytes: int
    head: tuple[Field, ...]
    quants: tuple[Field, ...]
    halves: tuple[int, ...]


TYPES = {
    "Q4_0": BlockType(2, 32, 18, (Field(0, 2, 1),), (Field(2, 4, 4),), (0,)),
    "Q4_1": BlockType(3, 32, 20, (Field(0, 2, 1), Field(2, 2, 1)), (Field(4, 4, 4),), (0, 2)),
    "Q8_0": BlockType(8, 32, 34, (Field(0, 2, 1),), (Field(2, 4, 8),), (0,)),
    "Q4_K": BlockType(12, 256, 144, (Field(0, 2, 1), Field(2, 2, 1), Field(4, 1, 12)), (Field(16, 4, 32),), (0, 2)),
    "Q6_K": BlockType(14, 256, 210, (Field(208, 2, 1), Field(192, 1, 16)), (Field(0, 4, 32), Field(128, 4, 16)), (208,)),
}


def block_type(name: str) -> BlockType:
    """A type by name. Raises UsageError."""
    if name not in TYPES:
        raise UsageError(f"blocks must be of type {', '.join(TYPES)}, got {name[:40]!r}")
    return TYPES[name]


def columns_of(blocks: torch.Tensor, name: str) -> int:
    """Weights in a row of blocks uint8[N, bytes]. Raises UsageError for a tensor of another shape."""
    kind = block_type(name)
    if blocks.dtype != torch.uint8 or blocks.ndim != 2 or 0 in blocks.shape or blocks.shape[1] % kind.bytes:
        raise UsageError(
            f"blocks of {name} must be uint8[rows, a multiple of {kind.bytes}], got {blocks.dtype}{list(blocks.shape)}"
        )
    return blocks.shape[1] // kind.bytes * kind.weights


def tiles_bytes(name: str, rows: int, columns: int) -> int:
    """Bytes of a matrix in tiles: those of its blocks, its rows rounded up to whole tiles. Raises UsageError for sizes that no matrix has."""
    kind = block_type(name)
    if rows < 1 or columns < 1 or columns % kind.weights:
        raise UsageError(f"{name} takes rows of a multiple of {kind.weights} weights, got {rows} rows of {columns}")
    return -(-rows // TILE_ROWS) * TILE_ROWS * (columns // kind.weights) * kind.bytes


def check_tiles(tiles: torch.Tensor, name: str, rows: int, columns: int) -> None:
    """Raise UsageError unless a tensor holds the tiles of such a matrix."""
    needed = tiles_bytes(name, rows, columns)
    if tiles.dtype != torch.uint8 or tiles.ndim != 1 or len(tiles) != needed or not tiles.is_contiguous():
        raise UsageError(
            f"tiles of {rows} rows of {columns} weights in {name} must be uint8[{needed}], got {tiles.dtype}{list(tiles.shape)}"
        )


def refuse_damaged(blocks: torch.Tensor, name: str) -> None:
    """Raise WeightsError for a block whose scale or minimum is no finite number."""
    kind = block_type(name)
    each_NBX = blocks.contiguous().numpy().reshape(len(blocks), -1, kind.bytes)
    for offset in kind.halves:
        wrong_NB = each_NBX[..., offset + 1] & EXPONENT == EXPONENT  # of the upper byte: all ones in infinity and NaN alone
        if wrong_NB.any():
            row, block = np.argwhere(wrong_NB)[0].tolist()
            raise WeightsError(f"block {block} of row {row} has a scale that is no finite number: the weights are damaged")


def repack(blocks: torch.Tensor, name: str) -> torch.Tensor:
    """Blocks uint8[N, bytes] -> tiles uint8[M]. Raises UsageError, and WeightsError for damaged blocks."""
    columns_of(blocks, name)
    refuse_damaged(blocks, name)
    kind = block_type(name)
    padded = pad(blocks, (0, 0, 0, -len(blocks) % TILE_ROWS))
    tiles_TRBX = padded.view(-1, TILE_ROWS, padded.shape[1] // kind.bytes, kind.bytes)
    parts = []
    for fields in (kind.head, kind.quants):
        pieces = [
            tiles_TRBX[..., field.offset : field.offset + field.unit * field.pieces]
            .reshape(*tiles_TRBX.shape[:-1], field.pieces, field.unit)
            .permute(0, 2, 3, 1, 4)
            .flatten(2)
            for field in fields
        ]
        parts.append(torch.cat(pieces, -1).flatten(1))
    if name == "Q8_0":
        parts[1] = parts[1] ^ 128
        parts[1].view(len(parts[1]), -1, TILE_ROWS, 4)[-1, :, len(blocks) - len(padded) + TILE_ROWS :] = 0
    return torch.cat(parts, 1).flatten()


def unpack(tiles: torch.Tensor, name: str, rows: int, columns: int) -> torch.Tensor:
    """The inverse of `repack`: tiles uint8[M] -> blocks uint8[N, bytes]. Raises UsageError."""
    check_tiles(tiles, name, rows, columns)
    kind = block_type(name)
    blocks = columns // kind.weights
    each_TX = tiles.view(-(-rows // TILE_ROWS), -1)
    head_bytes = sum(field.unit * field.pieces for field in kind.head)
    parts = each_TX.tensor_split((blocks * TILE_ROWS * head_bytes,), 1)
    whole = tiles.new_empty(len(each_TX), TILE_ROWS, blocks, kind.bytes)
    for fields, part in zip((kind.head, kind.quants), parts, strict=True):
        pieces = part.view(len(each_TX), blocks, -1)
        at = 0
        for field in fields:
            size = field.unit * field.pieces * TILE_ROWS
            piece = pieces[..., at : at + size].view(len(each_TX), blocks, field.pieces, TILE_ROWS, field.unit)
            if name == "Q8_0" and field.unit == 4:
                piece = piece ^ 128
            whole[..., field.offset : field.offset + field.unit * field.pieces] = piece.permute(0, 3, 1, 2, 4).flatten(3)
            at += size
    return whole.flatten(0, 1)[:rows].flatten(1)


def dequantise(blocks: torch.Tensor, name: str) -> torch.Tensor:
    """Blocks uint8[N, bytes] -> float32[N, K], those of the library gguf. Raises UsageError."""
    columns_of(blocks, name)
    return dequantise_blocks(blocks, name)


def round_rows(input_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a product makes of its inputs: whole numbers from -127 to 127, float32[M, K/32, 32], and a step for each 32, float32[M, K/32, 1]."""
    groups_MGX = input_MK.float().reshape(*input_MK.shape[:-1], -1, GROUP)
    steps_MG1 = groups_MGX.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(steps_MG1 >= torch.finfo(torch.float32).tiny, 1 / steps_MG1, torch.zeros_like(steps_MG1))
    return (groups_MGX * inverse).round_(), steps_MG1
