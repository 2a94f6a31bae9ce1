"""Names in a GGUF file of the llama architecture -> the names of our decoder.

llama.cpp stores the rows of the query and key weights in another order: its rotary positions turn neighbouring pairs of a
head's features, the published model and ours turn a feature of the first half with its partner in the second. An unknown key stays, for the strict load to show.
"""

import re
from collections.abc import Mapping

import torch

from zoo.api import Blocks, WeightsError, published

HEAD_WIDTH = 64  # of every SmolLM2

_TOP_NAMES = {"token_embd.weight": "embedding.weight", "output_norm.weight": "stack.norm.weight"}
_BLOCK_NAMES = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_norm": "feed_forward_norm",
    "ffn_gate": "feed_forward.gate",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
}
_BLOCK_KEY = re.compile(r"blk\.([0-9]+)\.([a-z_]+)\.weight")
_PERMUTED = re.compile(r"blk\.[0-9]+\.attn_[qk]\.weight")


def renamed(state: Mapping[str, torch.Tensor], *, head_width: int = HEAD_WIDTH) -> dict[str, torch.Tensor | Blocks]:
    """What `zoo.api.read_state_dict` makes of a GGUF file -> our names, each with its tensor in float32 or its blocks.

    head_width: features of one attention head, by which query and key rows are put in order.
    Raises WeightsError for query or key weights whose rows are no whole heads.
    """
    ours: dict[str, torch.Tensor | Blocks] = {}
    for name, value in published(state).items():
        if isinstance(value, Blocks):
            ours[_our_name(name)] = Blocks(_in_order(name, value.rows, head_width), value.kind)
        else:
            plain = value.float() if value.is_floating_point() else value
            ours[_our_name(name)] = _in_order(name, plain, head_width)
    return ours


def permuted_back(rows: torch.Tensor, head_width: int) -> torch.Tensor:
    """Rows of query or key weights as llama.cpp has them, [heads * head_width, ...] -> the published order.

    The inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    heads = len(rows) // head_width
    return rows.reshape(heads, head_width // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def _in_order(name: str, rows: torch.Tensor, head_width: int) -> torch.Tensor:
    if _PERMUTED.fullmatch(name) is None:
        return rows
    if rows.ndim != 2 or len(rows) % head_width:
        raise WeightsError(
            f"{name} must have a multiple of {head_width} rows, the width of a head, got {list(rows.shape)}: "
            f"the file is of another architecture"
        )
    return permuted_back(rows, head_width)


def _our_name(name: str) -> str:
    matched = _BLOCK_KEY.fullmatch(name)
    if matched is not None and matched[2] in _BLOCK_NAMES:
        return f"stack.blocks.{matched[1]}.{_BLOCK_NAMES[matched[2]]}.weight"
    return _TOP_NAMES.get(name, name)
