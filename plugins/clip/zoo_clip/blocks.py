"""The last block of a transformer, for the one row of each sequence that is read from it.

Most towers read one token: the class token of an image, the end token of a text. Of the last block, the other rows are computed
for nothing, which is 7 % of a 12-layer tower. The result is the same number for number, up to the order of sums.

K is the width of one attention head, S the number of heads.
"""

from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from zoo_clip.library import ResidualAttentionBlock


def last_block_row(
    transformer: Any, tokens_BTD: torch.Tensor, rows_B: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """What the whole transformer makes of one row of each sequence, float[B, D].

    tokens_BTD: input of the first block. rows_B: int[B], the rows to read.
    mask: additive, float[T, T] or float[B * S, T, T], or None.
    """
    for block in transformer.resblocks[:-1]:
        tokens_BTD = block(tokens_BTD, attn_mask=mask)
    block = transformer.resblocks[-1]
    batch = torch.arange(tokens_BTD.shape[0], device=tokens_BTD.device)
    plain = type(block) is ResidualAttentionBlock and block.attn._qkv_same_embed_dim  # noqa: SLF001 - torch names it so
    if not plain or "forward" in vars(block.attn):  # an adapter stands on it, and asks to be called
        whole_BTD: torch.Tensor = block(tokens_BTD, attn_mask=mask)
        return whole_BTD[batch, rows_B]
    row_BD = tokens_BTD[batch, rows_B]
    normed_BTD = block.ln_1(tokens_BTD)
    mixed_BD = _attend(block.attn, normed_BTD[batch, rows_B], normed_BTD, _mask_rows(mask, rows_B, block.attn.num_heads))
    row_BD = row_BD + block.ls_1(mixed_BD)
    output_BD: torch.Tensor = row_BD + block.ls_2(block.mlp(block.ln_2(row_BD)))
    return output_BD


def first_query(pooler: Any, tokens_BTD: torch.Tensor) -> torch.Tensor:
    """What open_clip's `AttentionalPooler` answers to the first of its queries, float[B, E], without computing the others.

    CoCa has 256 queries, of which its captioner reads 255.
    """
    keys_BTD = pooler.ln_k(tokens_BTD)
    query_1E = pooler.ln_q(pooler.query[:1])
    query_B1E = query_1E.expand(tokens_BTD.shape[0], 1, -1)
    answer_B1E: torch.Tensor = pooler.attn(query_B1E, keys_BTD, keys_BTD, need_weights=False)[0]
    return answer_B1E[:, 0]


def _attend(attention: Any, query_BD: torch.Tensor, keys_BTD: torch.Tensor, mask_BS1T: torch.Tensor | None) -> torch.Tensor:
    batch, count, width = keys_BTD.shape
    heads, head_width = attention.num_heads, width // attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query_BS1K = linear(query_BD, weight[:width], bias[:width]).view(batch, 1, heads, head_width).transpose(1, 2)
    key_value = linear(keys_BTD, weight[width:], bias[width:]).view(batch, count, 2, heads, head_width)
    key_BSTK, value_BSTK = key_value.permute(2, 0, 3, 1, 4)
    mixed_BS1K = scaled_dot_product_attention(query_BS1K, key_BSTK, value_BSTK, attn_mask=mask_BS1T)
    mixed_BD: torch.Tensor = attention.out_proj(mixed_BS1K.transpose(1, 2).reshape(batch, width))
    return mixed_BD


def _mask_rows(mask: torch.Tensor | None, rows_B: torch.Tensor, heads: int) -> torch.Tensor | None:
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask[rows_B][:, None, None]
    by_head = mask.view(rows_B.shape[0], heads, *mask.shape[1:])
    return by_head[torch.arange(rows_B.shape[0], device=mask.device), :, rows_B][:, :, None]
