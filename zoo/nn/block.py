"""One layer: attention, then a feed-forward, each added to what went in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from zoo.nn.attention import Attention
from zoo.nn.cache import Cache
from zoo.nn.mixture import Mixture, Routing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visible:
    """What the tokens of a call see, settled once for all blocks.

    rotation, bias, causal, cache: as `Attention.forward` takes them.
    source_bias: for the cross-attention, as its `bias`.
    real_BT: bool[B, T], False for padding, which takes no expert's room; None: all are real.
    routing: a list to which a mixture of experts appends what it did.
    """

    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    bias: torch.Tensor | None = None
    causal: bool = False
    cache: Cache | None = None
    source_bias: torch.Tensor | None = None
    real_BT: torch.Tensor | None = None
    routing: list[Routing] | None = None


EVERYTHING = Visible()


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); with `post_norm` the sums are normalised instead.

    cross_attention: where given (with its norm), it stands between the two and reads a source.
    """

    def __init__(
        self,
        *,
        attention_norm: nn.Module,
        attention: Attention,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
        cross_norm: nn.Module | None = None,
        cross_attention: Attention | None = None,
        post_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.cross_norm, self.cross_attention = cross_norm, cross_attention
        self.feed_forward_norm, self.feed_forward = feed_forward_norm, feed_forward
        self.post_norm = post_norm

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        visible: Visible = EVERYTHING,
        *,
        layer: int = 0,
        source: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """float[B, T, W] -> float[B, T, W].

        visible: what the tokens see. layer: under which keys and values are filed in its cache.
        source: keys and values that the cross-attention reads.
        """
        if self.post_norm:
            tokens_BTW = self.attention_norm(tokens_BTW + self._attended(tokens_BTW, visible, layer))
            if self.cross_attention is not None and self.cross_norm is not None and source is not None:
                crossed_BTW = self.cross_attention.over(tokens_BTW, source, visible.source_bias)
                tokens_BTW = self.cross_norm(tokens_BTW + crossed_BTW)
            output_BTW: torch.Tensor = self.feed_forward_norm(tokens_BTW + self._fed(tokens_BTW, visible))
            return output_BTW
        tokens_BTW = tokens_BTW + self._attended(self.attention_norm(tokens_BTW), visible, layer)
        if self.cross_attention is not None and self.cross_norm is not None and source is not None:
            crossed_BTW = self.cross_attention.over(self.cross_norm(tokens_BTW), source, visible.source_bias)
            tokens_BTW = tokens_BTW + crossed_BTW
        return tokens_BTW + self._fed(self.feed_forward_norm(tokens_BTW), visible)

    def _attended(self, tokens_BTW: torch.Tensor, visible: Visible, layer: int) -> torch.Tensor:
        attended_BTW: torch.Tensor = self.attention(
            tokens_BTW,
            rotation=visible.rotation,
            bias=visible.bias,
            causal=visible.causal,
            cache=visible.cache,
            layer=layer,
        )
        return attended_BTW

    def _fed(self, tokens_BTW: torch.Tensor, visible: Visible) -> torch.Tensor:
        if isinstance(self.feed_forward, Mixture):
            return self.feed_forward(tokens_BTW, real_BT=visible.real_BT, routing=visible.routing)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any
        output_BTW: torch.Tensor = self.feed_forward(tokens_BTW)
        return output_BTW
