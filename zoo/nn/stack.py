"""Blocks over a sequence: what causal, bidirectional and cross-attending models share. What may be seen is settled once, here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.nn.block import Block, Visible
from zoo.nn.cache import Cache
from zoo.nn.mixture import Routing
from zoo.nn.positions import Alibi, RelativeBias, Rotary

BeforeLayer = Callable[[int, torch.Tensor], torch.Tensor]  # number of a layer, tokens float[B, T, W] -> float[B, T, W]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What a sequence is read with, from the call of a model down to its blocks.

    mask_BT: bool, True where a token is real, whichever side the padding is on; None: all are.
    cache: holds the tokens before these; they are written into the slots that its `begin` took.
    source_BSD: what cross-attention reads, with its mask. With a cache its keys and values are computed at the first call,
        and the later calls need not name it.
    routing: a list to which each mixture of experts appends what it did.
    before_layer: what happens to the tokens before each block (see `zoo.nn.gated_cross_attention`).
    """

    mask_BT: torch.Tensor | None = None
    cache: Cache | None = None
    source_BSD: torch.Tensor | None = None
    source_mask_BS: torch.Tensor | None = None
    routing: list[Routing] | None = None
    before_layer: BeforeLayer | None = None


PLAIN = Reading()


class Stack(nn.Module):
    """Blocks one after another and a last norm.

    rotary: turns queries and keys of every block. position_bias: is added to the scores of every block.
    causal: whether a token sees what comes after it.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        norm: nn.Module | None,
        rotary: Rotary | None = None,
        position_bias: Alibi | RelativeBias | None = None,
        causal: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.rotary = rotary
        self.position_bias = position_bias
        self.causal = causal

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens, in this stack's number format."""
        attention: Any = self.blocks[0].attention
        weight = next(self.parameters())
        return Cache(
            layers=len(self.blocks),
            batch=batch,
            kv_heads=attention.kv_heads,
            head_width=attention.head_width,
            capacity=capacity,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        positions_BT: torch.Tensor,
        reading: Reading = PLAIN,
    ) -> torch.Tensor:
        """float[B, T, W] -> float[B, T, W]. positions_BT: what `token_positions` or `Cache.begin` gave."""
        mask_BT, cache, source_mask_BS = reading.mask_BT, reading.cache, reading.source_mask_BS
        bias, causal = self._visible(positions_BT, mask_BT, cache, tokens_BTW.dtype)
        uniform = mask_BT is None and (cache is None or not cache.ragged)
        rotation = None if self.rotary is None else self.rotary.at(positions_BT[0] if uniform else positions_BT)
        visible = Visible(
            rotation=rotation,
            bias=bias,
            causal=causal and tokens_BTW.shape[1] > 1,
            cache=cache,
            source_bias=None if source_mask_BS is None else _safe(source_mask_BS[:, None, None, :]),
            real_BT=mask_BT,
            routing=reading.routing,
        )
        for layer, block in enumerate(self.blocks):
            if reading.before_layer is not None:
                tokens_BTW = reading.before_layer(layer, tokens_BTW)
            source = _source(block, layer, reading.source_BSD, cache)
            tokens_BTW = block(tokens_BTW, visible, layer=layer, source=source)
        return tokens_BTW if self.norm is None else self.norm(tokens_BTW)

    def _visible(
        self, positions_BT: torch.Tensor, mask_BT: torch.Tensor | None, cache: Cache | None, dtype: torch.dtype
    ) -> tuple[torch.Tensor | None, bool]:
        """(bias for attention, whether attention itself hides the future). No mask is built where none is needed."""
        count = positions_BT.shape[1]
        before = 0 if cache is None else cache.length - count
        real_BS = mask_BT
        if cache is not None:
            real_BS = cache.valid_BS[:, : cache.length] if cache.ragged else None
        seen_T1S = None
        hides_future = self.causal and count > 1
        if real_BS is not None or (hides_future and (before > 0 or self.position_bias is not None)):
            slots_S = torch.arange(before + count, device=positions_BT.device)
            own_T1 = slots_S[before:, None]
            seen_T1S = (slots_S <= own_T1) if self.causal else torch.ones_like(slots_S <= own_T1)
            if real_BS is not None:
                # A token always sees itself: a row of padding that saw nothing would be NaN.
                seen_T1S = (seen_T1S & real_BS[:, None, :]) | (slots_S == own_T1)
                seen_T1S = seen_T1S[:, None]
        if self.position_bias is None:
            return seen_T1S, hides_future and seen_T1S is None
        key_BS = positions_BT if cache is None else cache.key_positions()
        bias_BHTS = self.position_bias(positions_BT, key_BS).to(dtype)
        return (bias_BHTS if seen_T1S is None else bias_BHTS.masked_fill(~seen_T1S, float("-inf"))), False


def token_positions(mask_BT: torch.Tensor | None, batch: int, count: int, device: torch.device) -> torch.Tensor:
    """Positions int[B, T] of a sequence from its start: real tokens are counted, padding is not."""
    if mask_BT is None:
        return torch.arange(count, device=device).expand(batch, count)
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def _source(
    block: nn.Module, layer: int, source_BSD: torch.Tensor | None, cache: Cache | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Keys and values of the source for one block, computed once for a cache."""
    cross: Any = block.cross_attention
    if cross is None:
        return None
    if cache is not None and layer in cache.source:
        return cache.source[layer]
    if source_BSD is None:
        return None
    pair: tuple[torch.Tensor, torch.Tensor] = cross.keys_and_values(source_BSD)
    if cache is not None:
        cache.source[layer] = pair
    return pair


def _safe(mask_B11S: torch.Tensor) -> torch.Tensor:
    """The same mask; a row that may see nothing sees everything, since its softmax would be NaN."""
    return mask_B11S | ~mask_B11S.any(-1, keepdim=True)
