"""The Q-Former of BLIP-2 (Li et al. 2023, arXiv:2301.12597): learned queries talk to each other and read the features.

The reference is `Blip2QFormerModel` of transformers, with the queries of its `Blip2Model`; dropout is left out, and so is the path
for text, which BLIP-2 uses in its first stage of training only. A BERT below the surface, with norms after the sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.api import Encoded
from zoo.nn import Attention, Block, Dense, Visible
from zoo_perceiver import renaming
from zoo_perceiver.checks import require_positive
from zoo_perceiver.frames import split_frames
from zoo_perceiver.renaming import State

LAYER, OURS = "qformer.encoder.layer.*", "model.blocks.*"
NAMES = {
    "query_tokens": "model.queries",
    "qformer.layernorm": "model.query_norm",
    **{
        f"{LAYER}.{theirs}": f"{OURS}.{ours}"
        for theirs, ours in {
            "attention.attention.query": "attention.query",
            "attention.attention.key": "attention.key",
            "attention.attention.value": "attention.value",
            "attention.output.dense": "attention.output",
            "attention.output.LayerNorm": "attention_norm",
            "crossattention.attention.query": "cross_attention.query",
            "crossattention.attention.key": "cross_attention.key",
            "crossattention.attention.value": "cross_attention.value",
            "crossattention.output.dense": "cross_attention.output",
            "crossattention.output.LayerNorm": "cross_norm",
            "intermediate_query.dense": "feed_forward.up",
            "output_query.dense": "feed_forward.down",
            "output_query.LayerNorm": "feed_forward_norm",
        }.items()
    },
    "language_projection": "output",
}
QUERY_SCALE = 0.02  # of random queries, as BERT's embeddings begin


class QFormer(nn.Module):
    """Queries through BERT's layers, every few of which also read the features."""

    def __init__(
        self,
        *,
        source_width: int,
        queries: int,
        layers: int,
        width: int,
        heads: int,
        hidden: int | None,
        cross_every: int,
        epsilon: float,
    ) -> None:
        """source_width: D. width: W. hidden: width inside the feed-forward, 4 W when None.

        cross_every: the first layer reads the features, and then each of so many. epsilon: of the norms.
        """
        super().__init__()
        self.queries = nn.Parameter(QUERY_SCALE * torch.randn(queries, width))
        self.query_norm = nn.LayerNorm(width, eps=epsilon)
        self.blocks = nn.ModuleList(
            Block(
                attention_norm=nn.LayerNorm(width, eps=epsilon),
                attention=Attention(width, heads=heads, bias=True),
                cross_norm=nn.LayerNorm(width, eps=epsilon) if reads else None,
                cross_attention=Attention(width, heads=heads, source_width=source_width, bias=True) if reads else None,
                feed_forward_norm=nn.LayerNorm(width, eps=epsilon),
                feed_forward=Dense(width, hidden or 4 * width),
                post_norm=True,
            )
            for reads in (layer % cross_every == 0 for layer in range(layers))
        )

    def forward(self, features_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Features float[B, S, D], mask bool[B, S] -> float[B, L, W]. A row of padding alone gives what no features would."""
        latents_BLW: torch.Tensor = self.query_norm(self.queries).expand(len(features_BSD), -1, -1)
        visible_B11S = (mask_BS | ~mask_BS.any(1, keepdim=True))[:, None, None]  # what sees nothing is NaN in some kernels
        for block in self.blocks:
            source = None
            cross: Any = block.cross_attention
            if cross is not None:
                key_BHSK, value_BHSK = cross.keys_and_values(features_BSD)
                source = key_BHSK, value_BHSK.masked_fill(~mask_BS[:, None, :, None], 0.0)
            latents_BLW = block(latents_BLW, Visible(source_bias=visible_B11S), source=source)
        return latents_BLW


class QFormerBridge(nn.Module):
    """A Q-Former over the features of all frames together, which it does not tell apart (`zoo.api.Bridge`)."""

    def __init__(self, model: QFormer, *, input_width: int, output_width: int | None) -> None:
        super().__init__()
        self.model = model
        width = model.queries.shape[1]
        self.input_width, self.output_width = input_width, output_width or width
        self.output = nn.Identity() if output_width is None else nn.Linear(width, output_width)

    def forward(self, encoded: Encoded, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Features float[B, frames * T, D] -> latents float[B, L, W], mask bool[B, L], all real. Raises UsageError, see `split_frames`."""
        features_BFTD, mask_BFT = split_frames(encoded, frames, width=self.input_width, dtype=self.model.queries.dtype)
        latents_BLW = self.output(self.model(features_BFTD.flatten(1, 2), mask_BFT.flatten(1)))
        return latents_BLW, mask_BFT.new_ones(latents_BLW.shape[:2])


def qformer(
    *,
    input_width: int,
    output_width: int | None = None,
    queries: int = 32,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int | None = None,
    cross_every: int = 2,
    epsilon: float = 1e-12,
) -> nn.Module:
    """The Q-Former with random weights.

    input_width: D, of the features. output_width: W, by a last linear layer (BLIP-2's projection to its language model); None: the
        queries as they are, `width` wide.
    queries: L. hidden: width inside the feed-forward, 4 * width when None. cross_every: the first layer reads the features, and
        then each of so many. epsilon: of the norms.
    Raises UsageError for numbers below 1 and for heads that do not divide the width.
    """
    require_positive(
        input_width=input_width,
        output_width=output_width,
        queries=queries,
        layers=layers,
        width=width,
        heads=heads,
        hidden=hidden,
        cross_every=cross_every,
    )
    model = QFormer(
        source_width=input_width,
        queries=queries,
        layers=layers,
        width=width,
        heads=heads,
        hidden=hidden,
        cross_every=cross_every,
        epsilon=epsilon,
    )
    return QFormerBridge(model, input_width=input_width, output_width=output_width)


def from_transformers(state: State) -> dict[str, torch.Tensor]:
    """Names of `query_tokens`, `qformer` and `language_projection` of a BLIP-2 of transformers -> ours.

    Its other tensors, those of the encoder and the language model, are passed on like every name that is not known: leave them
    out before. The first axis of the queries, which is 1, goes.
    """
    ours = renaming.rename(state, NAMES)
    queries = ours.get("model.queries")
    if queries is not None and queries.ndim == 3 and len(queries) == 1:
        ours["model.queries"] = queries[0]
    return ours


def to_transformers(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those of a BLIP-2 of transformers."""
    theirs = renaming.rename(state, renaming.inverted(NAMES))
    if "query_tokens" in theirs:
        theirs["query_tokens"] = theirs["query_tokens"][None]
    return theirs
