"""Layers that keep their weights in GGUF's blocks, and what a kernel's `LayerFormat` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from zoo.api import UsageError
from zoo_fused import ops
from zoo_fused.blocks import TYPES, columns_of
from zoo_fused.blocks import dequantise as dequantise_blocks
from zoo_fused.native import PYTORCH, chosen_isa
from zoo_fused.quantise import quantise_q4_0, quantise_q4_1, quantise_q8_0

BLOCKS = tuple(TYPES)  # the types of GGUF that these layers take as published
QUANTISERS = {"Q4_0": quantise_q4_0, "Q4_1": quantise_q4_1, "Q8_0": quantise_q8_0}


_TILES: Any = WeakIdKeyDictionary()  # blocks, such as those of a tied table -> their tiles, while a layer has them


def tiles_of(blocks: torch.Tensor, name: str) -> torch.Tensor:
    """Blocks uint8[N, bytes] -> tiles uint8[M]; the same ones for the same tensor. Raises UsageError, and WeightsError for damaged blocks."""
    counted = not blocks.is_inference()  # torch counts the changes of no others
    version = blocks._version if counted else 0  # noqa: SLF001 - how it counts
    known, kept = _TILES.get(blocks, (None, lambda: None))
    tiles: torch.Tensor | None = kept() if counted and known == version else None
    if tiles is None:
        tiles = ops.repack(blocks, name)
        _TILES[blocks] = (version, ref(tiles))
    return tiles


class _Blocks(nn.Module):
    """A matrix in blocks, laid out in tiles. Without the native functions it becomes float32 at first use, which computes as fast."""

    tiles: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.block_name, blocks = one_block_tensor(tensors)
        self.rows, self.columns = len(blocks), columns_of(blocks, self.block_name)
        self.number_format = self.block_name.lower()
        self.plain_NK: torch.Tensor | None = None
        self.register_buffer("tiles", tiles_of(blocks, self.block_name), persistent=False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the layer was made from, bit for bit."""
        return {self.block_name: ops.unpack(self.tiles, self.block_name, self.rows, self.columns)}

    def by_pytorch(self) -> torch.Tensor | None:
        """The weights float32[N, K] where PyTorch has to compute, else None."""
        if chosen_isa() != PYTORCH:
            return None
        if self.plain_NK is None:
            self.plain_NK = dequantise(self.tensors())
        return self.plain_NK


class BlockLinear(_Blocks):
    """float32[..., K] -> float32[..., N]. Inputs are rounded to 8 bits, each 32 with a step of their own."""

    passes_gradients = True
    bias: torch.Tensor | None

    def __init__(self, tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None = None) -> None:
        super().__init__(tensors)
        self.out_features, self.in_features = self.rows, self.columns
        if bias_N is not None and bias_N.shape != (self.rows,):
            raise UsageError(f"the bias must be float[{self.rows}], got {bias_N.dtype}{list(bias_N.shape)}")
        bias = None if bias_N is None else bias_N.detach().float().contiguous().clone()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float[..., K] -> float32[..., N], autocast or not: what rounds is the blocks."""
        input_BTK = input_BTK.float()
        weight_NK = self.by_pytorch()
        if weight_NK is not None:
            return nn.functional.linear(input_BTK, weight_NK, self.bias)
        output_BTN: torch.Tensor = ops.linear(input_BTK, self.tiles, self.bias, self.block_name, self.rows)
        return output_BTN


class BlockEmbedding(_Blocks):
    """int[B, T] -> float32[B, T, K]: rows of a table in blocks."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None = None) -> None:
        super().__init__(tensors)
        if bias_N is not None:
            raise UsageError("an embedding has no bias")
        self.num_embeddings, self.embedding_dim = self.rows, self.columns

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """int[B, T] -> float32[B, T, K]."""
        weight_VK = self.by_pytorch()
        if weight_VK is not None:
            return weight_VK[tokens_BT]
        rows_BTK: torch.Tensor = ops.look_up(tokens_BT, self.tiles, self.block_name, self.rows, self.columns)
        return rows_BTK


def one_block_tensor(tensors: Mapping[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """`{"<TYPE>": uint8[N, bytes]}` -> (TYPE, blocks). Raises UsageError."""
    if len(tensors) != 1:
        raise UsageError(f"a layer in blocks has one tensor, named by its type, got {', '.join(tensors) or 'none'}")
    ((name, blocks),) = tensors.items()
    columns_of(blocks, name)
    return name, blocks


def quantise(weight_NK: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """float32[N, K] -> what a layer of that type is made from. Raises UsageError."""
    if name not in QUANTISERS:
        raise UsageError(f"weights are put into blocks of type {', '.join(QUANTISERS)}, got {name[:40]!r}")
    return {name: QUANTISERS[name](weight_NK)}


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What `quantise` gave, or a file holds, -> the weights that they stand for, float32[N, K]. Raises UsageError."""
    name, blocks = one_block_tensor(tensors)
    return dequantise_blocks(blocks, name)


def fits(name: str, outputs: int, inputs: int) -> bool:
    """Whether a weight of that size can be kept in blocks of a type."""
    return outputs > 0 and inputs > 0 and inputs % TYPES[name].weights == 0
