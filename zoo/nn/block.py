"""One layer: attention, then a feed-forward, each added to what went in."""

from __future__ import annotations

import torch
from torch import nn

from zoo.nn.attention import Attention
from zoo.nn.cache import Cache
from zoo.nn.mixture import Mixture, Routing


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
        *,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
        bias: torch.Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        layer: int = 0,
        source: tuple[torch.Tensor, torch.Tensor] | None = None,
        source_bias: torch.Tensor | None = None,
        real_BT: torch.Tensor | None = None,
        routing: list[Routing] | None = None,
    ) -> torch.Tensor:
        """float[B, T, W] -> float[B, T, W].

        rotation, bias, causal, cache, layer: as `Attention.forward` takes them.
        source: keys and values that the cross-attention reads; source_bias: as its `bias`.
        real_BT: bool[B, T], False for padding, which takes no expert's room; None: all are real.
        routing: a list to which a mixture of experts appends what it did.
        """
        attend = {"rotation": rotation, "bias": bias, "causal": causal, "cache": cache, "layer": layer}
        if self.post_norm:
            tokens_BTW = self.attention_norm(tokens_BTW + self.attention(tokens_BTW, **attend))
            if self.cross_attention is not None and self.cross_norm is not None and source is not None:
                tokens_BTW = self.cross_norm(tokens_BTW + self.cross_attention.over(tokens_BTW, source, source_bias))
            output_BTW: torch.Tensor = self.feed_forward_norm(tokens_BTW + self._feed_forward(tokens_BTW, real_BT, routing))
            return output_BTW
        tokens_BTW = tokens_BTW + self.attention(self.attention_norm(tokens_BTW), **attend)
        if self.cross_attention is not None and self.cross_norm is not None and source is not None:
            tokens_BTW = tokens_BTW + self.cross_attention.over(self.cross_norm(tokens_BTW), source, source_bias)
        return tokens_BTW + self._feed_forward(self.feed_forward_norm(tokens_BTW), real_BT, routing)

    def _feed_forward(
        self, tokens_BTW: torch.Tensor, real_BT: torch.Tensor | None, routing: list[Routing] | None
    ) -> torch.Tensor:
        if isinstance(self.feed_forward, Mixture):
            return self.feed_forward(tokens_BTW, real_BT=real_BT, routing=routing)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any
        output_BTW: torch.Tensor = self.feed_forward(tokens_BTW)
        return output_BTW
