"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

The reference is `GPT2LMHeadModel` of transformers, without its options for cross-attention and for scaling by layer.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from zoo.nn import Attention, Block, Decoder, Dense, LearnedPositions, Stack
from zoo_lm import renaming
from zoo_lm.bytes import byte_tokenizer
from zoo_lm.checks import require_positive
from zoo_lm.renaming import State

NAMES = {
    "transformer.wte": "embedding",
    "transformer.wpe": "position_embedding.table",
    "transformer.h.*.ln_1": "stack.blocks.*.attention_norm",
    "transformer.h.*.attn.c_attn": "stack.blocks.*.attention.query_key_value",
    "transformer.h.*.attn.c_proj": "stack.blocks.*.attention.output",
    "transformer.h.*.ln_2": "stack.blocks.*.feed_forward_norm",
    "transformer.h.*.mlp.c_fc": "stack.blocks.*.feed_forward.up",
    "transformer.h.*.mlp.c_proj": "stack.blocks.*.feed_forward.down",
    "transformer.ln_f": "stack.norm",
    "lm_head": "head",
}
JOINED = "stack.blocks.*.attention.query_key_value"
PARTS = ("stack.blocks.*.attention.query", "stack.blocks.*.attention.key", "stack.blocks.*.attention.value")
TRANSPOSED = re.compile(r"stack\.blocks\.\d+\.(attention\.(query_key_value|output)|feed_forward\.(up|down))\.weight")
NOT_TRAINED = r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"


def build(
    *,
    layers: int,
    width: int,
    heads: int,
    vocabulary: int,
    context: int,
    hidden: int | None = None,
    epsilon: float = 1e-5,
) -> nn.Module:
    """The decoder with random weights; the head is the embedding.

    width: W. hidden: width inside the feed-forward, 4 W when None. context: the number of its positions.
    epsilon: of the norms. Raises UsageError for numbers that contradict each other.
    """
    hidden = 4 * width if hidden is None else hidden
    require_positive(layers=layers, heads=heads, vocabulary=vocabulary, context=context, hidden=hidden)
    blocks = [
        Block(
            attention_norm=nn.LayerNorm(width, eps=epsilon),
            attention=Attention(width, heads=heads, bias=True),
            feed_forward_norm=nn.LayerNorm(width, eps=epsilon),
            feed_forward=Dense(width, hidden, activation="gelu_tanh"),
        )
        for _ in range(layers)
    ]
    return Decoder(
        embedding=nn.Embedding(vocabulary, width),
        position_embedding=LearnedPositions(context, width),
        stack=Stack(blocks, norm=nn.LayerNorm(width, eps=epsilon), causal=True),
        context=context,
        tokenizer=byte_tokenizer(vocabulary),
    )


def from_transformers(state: State) -> dict[str, torch.Tensor]:
    """Names of `GPT2LMHeadModel`, or of the published files (which lack "transformer."), -> ours.

    Its layers hold their weights as [inputs, outputs], ours as [outputs, inputs]; query, key and value are one layer there. A
    head that equals the embedding is a tied one and left out.
    """
    names = renaming.with_bare_names(NAMES, "transformer.")
    ours = _transposed(renaming.rename(renaming.without(state, NOT_TRAINED), names))
    ours = renaming.split(ours, JOINED, PARTS, lambda tensor: tensor.tensor_split(3))
    return renaming.drop_tied(ours, "head.weight", "embedding.weight")


def to_transformers(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those of `GPT2LMHeadModel`, the tied head included."""
    joined = renaming.join(state, PARTS, JOINED, lambda parts: torch.cat(list(parts)))
    tied = renaming.add_tied(_transposed(joined), "head.weight", "embedding.weight")
    return renaming.rename(tied, renaming.inverted(NAMES))


def _transposed(state: State) -> dict[str, torch.Tensor]:
    return {key: tensor.t().contiguous() if TRANSPOSED.fullmatch(key) else tensor for key, tensor in state.items()}
