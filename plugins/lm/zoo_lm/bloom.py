"""BLOOM (Le Scao et al. 2022, arXiv:2211.05100): ALiBi, and a norm after the embedding.

The reference is `BloomForCausalLM` of transformers. Its GELU writes sqrt(2 / pi) as 0.79788456; ours has all digits.
"""

from __future__ import annotations

import torch
from torch import nn

from zoo.api import StateMismatchError
from zoo.nn import Alibi, Attention, Block, Decoder, Dense, Stack
from zoo_lm import renaming
from zoo_lm.bytes import byte_tokenizer
from zoo_lm.checks import require_positive
from zoo_lm.renaming import State

NAMES = {
    "transformer.word_embeddings": "embedding",
    "transformer.word_embeddings_layernorm": "embedding_norm",
    "transformer.h.*.input_layernorm": "stack.blocks.*.attention_norm",
    "transformer.h.*.self_attention.query_key_value": "stack.blocks.*.attention.query_key_value",
    "transformer.h.*.self_attention.dense": "stack.blocks.*.attention.output",
    "transformer.h.*.post_attention_layernorm": "stack.blocks.*.feed_forward_norm",
    "transformer.h.*.mlp.dense_h_to_4h": "stack.blocks.*.feed_forward.up",
    "transformer.h.*.mlp.dense_4h_to_h": "stack.blocks.*.feed_forward.down",
    "transformer.ln_f": "stack.norm",
    "lm_head": "head",
}
JOINED = "stack.blocks.*.attention.query_key_value"
PARTS = ("stack.blocks.*.attention.query", "stack.blocks.*.attention.key", "stack.blocks.*.attention.value")


def build(*, layers: int, width: int, heads: int, vocabulary: int, context: int = 2048, epsilon: float = 1e-5) -> nn.Module:
    """The decoder with random weights; the head is the embedding, and the feed-forwards are 4 W wide.

    width: W. context: what it was trained at; ALiBi itself has no end. epsilon: of the norms.
    Raises UsageError for numbers that contradict each other.
    """
    require_positive(layers=layers, heads=heads, vocabulary=vocabulary, context=context)
    blocks = [
        Block(
            attention_norm=nn.LayerNorm(width, eps=epsilon),
            attention=Attention(width, heads=heads, bias=True),
            feed_forward_norm=nn.LayerNorm(width, eps=epsilon),
            feed_forward=Dense(width, 4 * width, activation="gelu_tanh"),
        )
        for _ in range(layers)
    ]
    return Decoder(
        embedding=nn.Embedding(vocabulary, width),
        embedding_norm=nn.LayerNorm(width, eps=epsilon),
        stack=Stack(blocks, norm=nn.LayerNorm(width, eps=epsilon), position_bias=Alibi(heads), causal=True),
        context=context,
        tokenizer=byte_tokenizer(vocabulary),
    )


def from_transformers(state: State, *, heads: int) -> dict[str, torch.Tensor]:
    """Names of `BloomForCausalLM`, or of the published files (which lack "transformer."), -> ours.

    heads: query, key and value of each head lie together there, and no shape says how many heads there are. A head of the
    model that equals the embedding is a tied one and left out.
    Raises StateMismatchError for a number of heads that does not fit.
    """

    def cut(joined: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if joined.shape[0] % (3 * heads):
            raise StateMismatchError(f"heads={heads} does not fit query_key_value of shape {list(joined.shape)}")
        by_head = joined.view(heads, 3, -1, *joined.shape[1:])
        return tuple(by_head[:, part].flatten(0, 1) for part in range(3))

    ours = renaming.rename(state, renaming.with_bare_names(NAMES, "transformer."))
    return renaming.drop_tied(renaming.split(ours, JOINED, PARTS, cut), "head.weight", "embedding.weight")


def to_transformers(state: State, *, heads: int) -> dict[str, torch.Tensor]:
    """Our names -> those of `BloomForCausalLM`, the tied head included."""

    def glue(parts: renaming.Tensors) -> torch.Tensor:
        return torch.stack([part.view(heads, -1, *part.shape[1:]) for part in parts], 1).flatten(0, 2)

    joined = renaming.join(renaming.add_tied(state, "head.weight", "embedding.weight"), PARTS, JOINED, glue)
    return renaming.rename(joined, renaming.inverted(NAMES))
