"""Gated cross-attention: tokens of a decoder look at media before one of its layers, and a gate says how much of it counts."""

from __future__ import annotations

import torch
from torch import nn

from zoo.nn.attention import Attention
from zoo.nn.seen_media import SeenMedia


class GatedCrossAttention(nn.Module):
    """y = x + tanh(a) * attention(norm(x)), then y + tanh(b) * feed_forward(norm(y)), for the tokens that see an item.

    Gates at zero leave the tokens as they were, to the bit (Alayrac et al. 2022, Flamingo, arXiv:2204.14198, section 2.2; the
    reference is open_flamingo's `GatedCrossAttentionBlock`). A token that sees no item gets exactly zero from the attention.
    """

    def __init__(
        self,
        *,
        attention_norm: nn.Module,
        attention: Attention,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
        gate: float = 0.0,
        gate_values: int = 1,
        feeds_all: bool = False,
    ) -> None:
        """gate: what both gates begin with. gate_values: 1, or the width for a gate for each feature.

        feeds_all: whether the feed-forward also goes over tokens that see no item, as in Flamingo; without it a prompt without
            media is answered by the decoder alone, whatever the gates have learnt.
        """
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward_norm, self.feed_forward = feed_forward_norm, feed_forward
        self.attention_gate = nn.Parameter(torch.full((gate_values,), gate))
        self.feed_forward_gate = nn.Parameter(torch.full((gate_values,), gate))
        self.feeds_all = feeds_all

    def keys_and_values(self, latents_NLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the tokens will look at, of N items, float[N, L, D] -> float[N, G, L, K] each."""
        return self.attention.keys_and_values(latents_NLD)

    def forward(self, tokens_BTW: torch.Tensor, seen: SeenMedia, layer: int) -> torch.Tensor:
        """float[B, T, W] -> float[B, T, W]. layer: under which the keys and values of the items are filed."""
        if seen.nothing and not self.feeds_all:
            return tokens_BTW
        unseeing = None if seen.seeing_BT1 is None else ~seen.seeing_BT1
        if not seen.nothing:
            attended_BTW = self._attended(self.attention_norm(tokens_BTW), seen, layer)
            if unseeing is not None:
                attended_BTW = attended_BTW.masked_fill(unseeing, 0.0)
            tokens_BTW = tokens_BTW + self.attention_gate.tanh() * attended_BTW
        fed_BTW = self.feed_forward(self.feed_forward_norm(tokens_BTW))
        if unseeing is not None and not self.feeds_all:
            fed_BTW = fed_BTW.masked_fill(unseeing, 0.0)
        output_BTW: torch.Tensor = tokens_BTW + self.feed_forward_gate.tanh() * fed_BTW
        return output_BTW

    def _attended(self, tokens_BTW: torch.Tensor, seen: SeenMedia, layer: int) -> torch.Tensor:
        key_SGLK, value_SGLK, bias = seen.at(layer)
        attention = self.attention
        if seen.index_SQ is None:
            return attention.over(tokens_BTW, (key_SGLK, value_SGLK), bias)
        query_BTX = attention.query(tokens_BTW)
        flat_NX = query_BTX.flatten(0, 1)
        query_SHQK = attention.split(flat_NX[seen.index_SQ], attention.heads)
        mixed_SQX = attention.mix(query_SHQK, key_SGLK, value_SGLK, bias)
        if seen.real_SQ is None:
            places, mixed_MX = seen.index_SQ.flatten(), mixed_SQX.flatten(0, 1)
        else:
            places, mixed_MX = seen.index_SQ[seen.real_SQ], mixed_SQX[seen.real_SQ]
        mixed_NX = mixed_MX.new_zeros(flat_NX.shape).index_copy(0, places, mixed_MX)
        output_BTW: torch.Tensor = attention.output(mixed_NX.view(query_BTX.shape))
        return output_BTW
