"""`nn.MultiheadAttention` with adapters on its projections: torch's own reads its weights itself and calls no layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, softmax

from zoo.errors import UsageError

Changed = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]  # name of a weight, input, output -> output


def attend(
    attention: Any,
    changed: Changed,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `torch.nn.MultiheadAttention.forward` computes it, with what adapters add to the products.

    `is_causal` is a hint about `attn_mask`, and is not needed. Raises UsageError for what no model of the zoo has: key and value biases,
    an attention over zeros, widths of their own for keys and values.
    """
    if attention.bias_k is not None or attention.add_zero_attn or attention.in_proj_weight is None:
        raise UsageError("an attention with biases for keys, zeros to look at or keys of another width takes no adapter")
    del is_causal
    unbatched = query.ndim == 2
    same = query is key and key is value
    inputs = [
        one[None] if unbatched else one if attention.batch_first else one.transpose(0, 1) for one in (query, key, value)
    ]
    batch, count, width = inputs[0].shape
    heads = attention.num_heads
    if same:
        joined = linear(inputs[0], attention.in_proj_weight, attention.in_proj_bias)
        query_BTW, key_BSW, value_BSW = changed("in_proj_weight", inputs[0], joined).chunk(3, -1)
    else:
        # Each is what its own input gives; the columns of the others are thrown away.
        query_BTW, key_BSW, value_BSW = (
            changed("in_proj_weight", one, linear(one, attention.in_proj_weight, attention.in_proj_bias)).chunk(3, -1)[
                number
            ]
            for number, one in enumerate(inputs)
        )
    query_BHTK, key_BHSK, value_BHSK = (
        one.reshape(batch, -1, heads, width // heads).transpose(1, 2) for one in (query_BTW, key_BSW, value_BSW)
    )
    bias = _bias(attn_mask, key_padding_mask, batch, heads, query_BHTK.dtype)
    weights = None
    if need_weights:
        # The query is scaled first, as torch does: float16 holds the scaled products, and may not hold the products.
        scores = (query_BHTK * (width // heads) ** -0.5) @ key_BHSK.transpose(-1, -2)
        weights = softmax(scores if bias is None else scores + bias, -1)
        dropped = torch.nn.functional.dropout(weights, attention.dropout, training=attention.training)
        mixed_BHTK = dropped @ value_BHSK
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        dropout = attention.dropout if attention.training else 0.0
        mixed_BHTK = scaled_dot_product_attention(query_BHTK, key_BHSK, value_BHSK, attn_mask=bias, dropout_p=dropout)
    mixed_BTW = mixed_BHTK.transpose(1, 2).reshape(batch, count, width)
    output = linear(mixed_BTW, attention.out_proj.weight, attention.out_proj.bias)
    output = changed("out_proj.weight", mixed_BTW, output)
    if unbatched:
        return output[0], None if weights is None else weights[0]
    return output if attention.batch_first else output.transpose(0, 1), weights


def _bias(
    attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, batch: int, heads: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """Both masks as one that is added to the scores, broadcastable to [B, H, T, S]; torch's are True where nothing is seen."""
    bias = None
    if attn_mask is not None:
        bias = _added(attn_mask, dtype)
        if bias.ndim == 3:
            bias = bias.view(batch, heads, *bias.shape[1:])
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, dtype).view(batch, 1, 1, -1)
        bias = padding if bias is None else bias + padding
    return bias


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
