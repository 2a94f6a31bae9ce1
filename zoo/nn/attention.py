"""Attention: each token asks, by its query, the keys of others, and takes the mean of their values that its scores give."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from zoo.errors import UsageError
from zoo.nn.cache import Cache
from zoo.nn.positions import rotate


class Attention(nn.Module):
    """softmax(scale * Q K^T + bias) V with H query heads over G key/value heads (Vaswani et al. 2017, arXiv:1706.03762).

    G = H is multi-head, G = 1 multi-query (Shazeer 2019, arXiv:1911.02150), anything between grouped-query attention
    (Ainslie et al. 2023, arXiv:2305.13245). Keys and values come from the tokens, or from a source of another width.
    `query_key_value` is the three projections as one layer where a kernel joined them (`zoo.nn.kernels.apply`), else None.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_width: int | None = None,
        source_width: int | None = None,
        bias: bool = False,
        key_bias: bool | None = None,
        scale: float | None = None,
    ) -> None:
        """bias: of all projections; key_bias: of the keys, where it differs. scale: factor of the scores, 1 / sqrt(K) when None.

        Raises UsageError when heads do not divide the width (where `head_width` is left out) or kv_heads the heads.
        """
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise UsageError(f"heads must be a multiple of kv_heads, got heads={heads} and kv_heads={kv_heads}")
        if head_width is None and width % heads:
            raise UsageError(f"width must be a multiple of heads, got width={width} and heads={heads}")
        self.heads, self.kv_heads = heads, kv_heads
        self.head_width = head_width or width // heads
        self.scale = self.head_width**-0.5 if scale is None else scale
        self.query: nn.Module = nn.Linear(width, heads * self.head_width, bias=bias)
        self.key: nn.Module = nn.Linear(
            source_width or width, kv_heads * self.head_width, bias=bias if key_bias is None else key_bias
        )
        self.value: nn.Module = nn.Linear(source_width or width, kv_heads * self.head_width, bias=bias)
        self.output = nn.Linear(heads * self.head_width, width, bias=bias)
        self.query_key_value: nn.Module | None = None

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        *,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
        bias: torch.Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        """Self-attention, float[B, T, W] -> float[B, T, W].

        rotation: what `Rotary.at` gave for the tokens' positions.
        bias: bool (True may look) or float (added to the scores), broadcastable to [B, H, T, S]; None: nothing is hidden
            but what `causal` hides, which is each token's future, for T = S.
        cache: keys and values of earlier tokens, S slots in all with these T, which are written into it as `layer`.
        """
        if self.query_key_value is not None:
            joined_BXTK = self.split(self.query_key_value(tokens_BTW), self.heads + 2 * self.kv_heads)
            turned_BXTK, value_BGTK = joined_BXTK.tensor_split((self.heads + self.kv_heads,), 1)
            if rotation is not None:
                turned_BXTK = rotate(turned_BXTK, rotation)
            query_BHTK, key_BGTK = turned_BXTK.tensor_split((self.heads,), 1)
        else:
            query_BHTK = self.split(self.query(tokens_BTW), self.heads)
            key_BGTK, value_BGTK = self.keys_and_values(tokens_BTW)
            if rotation is not None:
                query_BHTK, key_BGTK = rotate(query_BHTK, rotation), rotate(key_BGTK, rotation)
        if cache is not None:
            key_BGTK, value_BGTK = cache.write(layer, key_BGTK, value_BGTK)
        return self._out(self.mix(query_BHTK, key_BGTK, value_BGTK, bias, causal=causal))

    def over(
        self, tokens_BTW: torch.Tensor, source: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross-attention: tokens float[B, T, W] over what `keys_and_values` gave for the source, with `bias` as in `forward`."""
        return self._out(self.mix(self.split(self.query(tokens_BTW), self.heads), *source, bias))

    def keys_and_values(self, source_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float[B, S, D] -> keys and values, float[B, G, S, K] each."""
        return self.split(self.key(source_BSD), self.kv_heads), self.split(self.value(source_BSD), self.kv_heads)

    def split(self, projected_BTX: torch.Tensor, heads: int) -> torch.Tensor:
        """What a projection gave, float[B, T, heads * K] -> float[B, heads, T, K]."""
        batch, count, _ = projected_BTX.shape
        return projected_BTX.view(batch, count, heads, self.head_width).transpose(1, 2)

    def mix(
        self,
        query_BHTK: torch.Tensor,
        key_BGSK: torch.Tensor,
        value_BGSK: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        causal: bool = False,
    ) -> torch.Tensor:
        """Queries, keys and values of each head -> the mean of the values for each query, heads side by side, float[B, T, H * K]."""
        mixed_BHTK = scaled_dot_product_attention(
            query_BHTK,
            key_BGSK,
            value_BGSK,
            attn_mask=bias,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=self.kv_heads != self.heads,
        )
        return mixed_BHTK.transpose(1, 2).flatten(2)

    def _out(self, mixed_BTX: torch.Tensor) -> torch.Tensor:
        output_BTW: torch.Tensor = self.output(mixed_BTX)
        return output_BTW
