"""Switch Transformers (Fedus et al. 2021, arXiv:2101.03961): T5's shape with a mixture of experts in some layers.

The reference is `SwitchTransformersForConditionalGeneration` of transformers. What both do with a token that finds its expert
full is the paper's: the feed-forward gives nothing, and the token goes on through the residual alone. They differ in this:

    room of an expert    the paper: tokens / experts * capacity factor, over all tokens of a device
                         transformers: `expert_capacity` tokens of each row, whatever the row's length (64 as published)
                         here: `capacity`, the same number, so that published models give their numbers
    padding              transformers sends it to experts, where it takes room: padding on the left can push real tokens out.
                         Here it is sent nowhere, and a row gives what it gives alone
    one step at a time   in both the room is counted for each call, so with a cache a token that is read alone never finds an
                         expert full, while the same token in a long text may

Training noise on the router's input (`router_jitter_noise`) is left out.
"""

from __future__ import annotations

import torch
from torch import nn

from zoo.api import UsageError
from zoo.nn import Dense, EncoderDecoder, Mixture
from zoo_lm.checks import require_positive
from zoo_lm.renaming import State
from zoo_lm.t5 import FEED_FORWARD, SHAPE, encoder_decoder, tied_names, untied_names

NAMES = {
    **SHAPE,
    **{f"{theirs}.mlp.wi": f"{ours}.feed_forward.up" for theirs, ours in FEED_FORWARD.items()},
    **{f"{theirs}.mlp.wo": f"{ours}.feed_forward.down" for theirs, ours in FEED_FORWARD.items()},
    **{f"{theirs}.mlp.router.classifier": f"{ours}.feed_forward.router" for theirs, ours in FEED_FORWARD.items()},
    **{f"{theirs}.mlp.experts.expert_*.wi": f"{ours}.feed_forward.experts.*.up" for theirs, ours in FEED_FORWARD.items()},
    **{f"{theirs}.mlp.experts.expert_*.wo": f"{ours}.feed_forward.experts.*.down" for theirs, ours in FEED_FORWARD.items()},
}


def build(
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    context: int,
    experts: int,
    every: int = 2,
    capacity: int | None = 64,
    head_width: int | None = None,
    buckets: int = 32,
    farthest: int = 128,
) -> EncoderDecoder:
    """The model with random weights; the encoder and the decoder have `layers` each, and one embedding that is the head, too.

    experts: feed-forwards of a mixture, of which each token uses one. every: one layer in this many has a mixture, the second
        the first of them (all have one for 1). capacity: the most tokens of a row that an expert takes in one call; None: all.
    The other arguments are those of `zoo_lm.t5.build`. Raises UsageError for numbers that contradict each other.
    """
    require_positive(hidden=hidden, experts=experts, every=every)
    if every > 1 and layers < 2:
        raise UsageError(f"every={every} leaves a model of {layers} layer without a mixture: that is zoo_lm.t5")

    def dense() -> Dense:
        return Dense(width, hidden, activation="relu", bias=False)

    def feed_forward(layer: int) -> nn.Module:
        if every > 1 and layer % every != 1:
            return dense()
        return Mixture(width, [dense() for _ in range(experts)], experts_per_token=1, capacity=capacity)

    return encoder_decoder(
        feed_forward,
        layers=(layers, layers),
        width=width,
        heads=heads,
        head_width=head_width,
        vocabulary=vocabulary,
        context=context,
        buckets=buckets,
        farthest=farthest,
        epsilon=1e-6,
        tied=True,
    )


def from_transformers(state: State) -> dict[str, torch.Tensor]:
    """Names of `SwitchTransformersForConditionalGeneration` -> ours; ties as `zoo_lm.t5.from_transformers` treats them."""
    return untied_names(state, NAMES)


def to_transformers(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those of `SwitchTransformersForConditionalGeneration`, with every key of the embedding."""
    return tied_names(state, NAMES)
