"""T5 (Raffel et al. 2019, arXiv:1910.10683) and its version 1.1 (Shazeer 2020, arXiv:2002.05202).

The reference is `T5ForConditionalGeneration` of transformers. There distances count slots, here real tokens: they are the same
wherever padding lies at an end of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from zoo.api import UsageError
from zoo.nn import Attention, Bidirectional, Block, Decoder, Dense, EncoderDecoder, Gated, RelativeBias, RMSNorm, Stack
from zoo_lm import renaming
from zoo_lm.checks import require_positive
from zoo_lm.renaming import State

_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
SHAPE = {
    "shared": "decoder.embedding",
    "lm_head": "decoder.head",
    **{f"{side}.final_layer_norm": f"{side}.stack.norm" for side in ("encoder", "decoder")},
    **{
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{side}.stack.position_bias.bias"
        for side in ("encoder", "decoder")
    },
    **{
        f"{side}.block.*.layer.0.SelfAttention.{theirs}": f"{side}.stack.blocks.*.attention.{ours}"
        for side in ("encoder", "decoder")
        for theirs, ours in _ATTENTION.items()
    },
    **{
        f"decoder.block.*.layer.1.EncDecAttention.{theirs}": f"decoder.stack.blocks.*.cross_attention.{ours}"
        for theirs, ours in _ATTENTION.items()
    },
    **{f"{side}.block.*.layer.0.layer_norm": f"{side}.stack.blocks.*.attention_norm" for side in ("encoder", "decoder")},
    "decoder.block.*.layer.1.layer_norm": "decoder.stack.blocks.*.cross_norm",
    "encoder.block.*.layer.1.layer_norm": "encoder.stack.blocks.*.feed_forward_norm",
    "decoder.block.*.layer.2.layer_norm": "decoder.stack.blocks.*.feed_forward_norm",
}
FEED_FORWARD = {"encoder.block.*.layer.1": "encoder.stack.blocks.*", "decoder.block.*.layer.2": "decoder.stack.blocks.*"}
# `wi` of a dense feed-forward, and `wi_0` and `wi_1` of a gated one.
_LAYERS = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
DENSE = {
    f"{theirs}.DenseReluDense.{layer}": f"{ours}.feed_forward.{_LAYERS[layer]}"
    for theirs, ours in FEED_FORWARD.items()
    for layer in ("wi", "wo")
}
GATED = {
    f"{theirs}.DenseReluDense.{layer}": f"{ours}.feed_forward.{_LAYERS[layer]}"
    for theirs, ours in FEED_FORWARD.items()
    for layer in ("wi_0", "wi_1", "wo")
}
# The first conversions wrote a bias for the cross-attention, which the model never had.
NOT_TRAINED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"


def build(
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    context: int,
    head_width: int | None = None,
    decoder_layers: int | None = None,
    version: str = "1.0",
    buckets: int = 32,
    farthest: int = 128,
    epsilon: float = 1e-6,
) -> EncoderDecoder:
    """The model with random weights; the encoder and the decoder have one embedding.

    width: W. hidden: width inside the feed-forward. context: the most tokens that each side takes; nothing in it has an end.
    head_width: width / heads when None. decoder_layers: as many as the encoder's when None.
    version: "1.0" has ReLU, and the embedding as its head after scaling by W^-0.5; "1.1" has a gated GELU and its own head.
    buckets, farthest: of the relative positions, see `zoo.nn.RelativeBias`. epsilon: of the norms.
    Raises UsageError for numbers that contradict each other.
    """
    if version not in ("1.0", "1.1"):
        raise UsageError(f'version is "1.0" or "1.1", got {version!r}')
    require_positive(hidden=hidden)

    def feed_forward(_layer: int) -> nn.Module:
        if version == "1.0":
            return Dense(width, hidden, activation="relu", bias=False)
        return Gated(width, hidden, activation="gelu_tanh")

    return encoder_decoder(
        feed_forward,
        layers=(layers, layers if decoder_layers is None else decoder_layers),
        width=width,
        heads=heads,
        head_width=head_width,
        vocabulary=vocabulary,
        context=context,
        buckets=buckets,
        farthest=farthest,
        epsilon=epsilon,
        tied=version == "1.0",
    )


def encoder_decoder(
    feed_forward: Callable[[int], nn.Module],
    *,
    layers: tuple[int, int],
    width: int,
    heads: int,
    head_width: int | None,
    vocabulary: int,
    context: int,
    buckets: int,
    farthest: int,
    epsilon: float,
    tied: bool,
) -> EncoderDecoder:
    """T5's shape with any feed-forward, which is made from the number of its layer; `layers` are the encoder's and the decoder's."""
    require_positive(encoder_layers=layers[0], decoder_layers=layers[1], vocabulary=vocabulary, context=context)
    if buckets < 4 or buckets % 4 or farthest <= buckets // 2:
        raise UsageError(
            f"buckets must be a multiple of 4 and farthest more than half of them, got buckets={buckets}, farthest={farthest}"
        )

    def attention() -> Attention:
        return Attention(width, heads=heads, head_width=head_width, scale=1.0)

    def stack(count: int, *, causal: bool) -> Stack:
        blocks = [
            Block(
                attention_norm=RMSNorm(width, epsilon=epsilon),
                attention=attention(),
                cross_norm=RMSNorm(width, epsilon=epsilon) if causal else None,
                cross_attention=attention() if causal else None,
                feed_forward_norm=RMSNorm(width, epsilon=epsilon),
                feed_forward=feed_forward(layer),
            )
            for layer in range(count)
        ]
        bias = RelativeBias(heads, buckets=buckets, farthest=farthest, both_ways=not causal)
        return Stack(blocks, norm=RMSNorm(width, epsilon=epsilon), position_bias=bias, causal=causal)

    embedding = nn.Embedding(vocabulary, width)
    return EncoderDecoder(
        encoder=Bidirectional(embedding=embedding, stack=stack(layers[0], causal=False), context=context),
        decoder=Decoder(
            embedding=embedding,
            stack=stack(layers[1], causal=True),
            context=context,
            head=None if tied else nn.Linear(width, vocabulary, bias=False),
            logit_scale=width**-0.5 if tied else 1.0,
        ),
    )


def from_transformers(state: State) -> dict[str, torch.Tensor]:
    """Names of `T5ForConditionalGeneration` -> ours.

    The embedding has four keys there (`shared`, one on each side, and the head where it is tied) and two here.
    """
    theirs = renaming.without(state, NOT_TRAINED)
    gated = any(".DenseReluDense.wi_0." in key for key in theirs)
    return untied_names(theirs, {**SHAPE, **(GATED if gated else DENSE)})


def to_transformers(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those of `T5ForConditionalGeneration`, with every key of the embedding."""
    gated = any(".feed_forward.gate." in key for key in state)
    return tied_names(state, {**SHAPE, **(GATED if gated else DENSE)})


def untied_names(state: State, table: dict[str, str]) -> dict[str, torch.Tensor]:
    """Their names -> ours by a table, and their four keys of the embedding -> our two."""
    for side in ("encoder", "decoder"):
        state = renaming.drop_tied(state, f"{side}.embed_tokens.weight", "shared.weight")
    ours = renaming.rename(state, table)
    ours = renaming.drop_tied(ours, "decoder.head.weight", "decoder.embedding.weight")
    return renaming.add_tied(ours, "encoder.embedding.weight", "decoder.embedding.weight")


def tied_names(state: State, table: dict[str, str]) -> dict[str, torch.Tensor]:
    """The way back from `untied_names`."""
    state = renaming.drop_tied(state, "encoder.embedding.weight", "decoder.embedding.weight")
    theirs = renaming.rename(state, renaming.inverted(table))
    for second in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        theirs = renaming.add_tied(theirs, second, "shared.weight")
    return theirs
