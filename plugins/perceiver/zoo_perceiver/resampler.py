"""The perceiver resampler of Flamingo (Alayrac et al. 2022, arXiv:2204.14198, section 2.1): features of any number -> L latents.

The reference is `PerceiverResampler` of open_flamingo (`open_flamingo/src/helpers.py`), whose numbers these are with its state
dict. Flamingo itself has squared ReLU where that has GELU, and wider heads: both are arguments.
"""

from __future__ import annotations

import torch
from torch import nn

from zoo.api import Encoded
from zoo.nn import Attention, Dense
from zoo_perceiver import renaming
from zoo_perceiver.checks import require_positive
from zoo_perceiver.frames import split_frames
from zoo_perceiver.renaming import State
from zoo_perceiver.time_embedding import TimeEmbedding

NAMES = {
    "latents": "first_latents",
    "frame_embs": "times.table",
    "layers.*.0.norm_media": "layers.*.feature_norm",
    "layers.*.0.norm_latents": "layers.*.latent_norm",
    "layers.*.0.to_q": "layers.*.attention.query",
    "layers.*.0.to_k": "layers.*.attention.key",
    "layers.*.0.to_v": "layers.*.attention.value",
    "layers.*.0.to_out": "layers.*.attention.output",
    "layers.*.1.0": "layers.*.feed_forward_norm",
    "layers.*.1.1": "layers.*.feed_forward.up",
    "layers.*.1.3": "layers.*.feed_forward.down",
    "norm": "last_norm",
}
KEYS_AND_VALUES, KEYS, VALUES = ".to_kv.weight", ".to_k.weight", ".to_v.weight"  # one layer there, two here


class ResamplerLayer(nn.Module):
    """Latents look at the features and at each other, then go through a feed-forward; each adds to what went in."""

    def __init__(
        self, width: int, *, heads: int, head_width: int, hidden_factor: int, activation: str, bias: bool = False
    ) -> None:
        super().__init__()
        self.feature_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, head_width=head_width, bias=bias)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = Dense(width, hidden_factor * width, activation=activation, bias=bias)

    def forward(self, latents_BLD: torch.Tensor, features_BSD: torch.Tensor, visible_B11X: torch.Tensor) -> torch.Tensor:
        """Latents float[B, L, D] -> float[B, L, D]. visible_B11X: bool[B, 1, 1, S + L], True where a latent may look."""
        normed_BLD = self.latent_norm(latents_BLD)
        source = self.attention.keys_and_values(torch.cat([self.feature_norm(features_BSD), normed_BLD], 1))
        latents_BLD = latents_BLD + self.attention.over(normed_BLD, source, visible_B11X)
        output_BLD: torch.Tensor = latents_BLD + self.feed_forward(self.feed_forward_norm(latents_BLD))
        return output_BLD


class Resampler(nn.Module):
    """Learned latents that read the features layer by layer (`zoo.api.Bridge`). Every latent is real, whatever was padding."""

    def __init__(
        self, layers: list[ResamplerLayer], *, width: int, latents: int, most_frames: int | None, output_width: int | None
    ) -> None:
        super().__init__()
        self.input_width, self.output_width = width, output_width or width
        self.first_latents = nn.Parameter(torch.randn(latents, width))
        self.times = None if most_frames is None else TimeEmbedding(most_frames, width)
        self.layers = nn.ModuleList(layers)
        self.last_norm = nn.LayerNorm(width)
        self.output = nn.Identity() if output_width is None else nn.Linear(width, output_width)

    def forward(self, encoded: Encoded, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Features float[B, frames * T, D] -> latents float[B, L, W], mask bool[B, L]. Raises UsageError, see `split_frames`."""
        features_BFTD, mask_BFT = split_frames(encoded, frames, width=self.input_width, dtype=self.first_latents.dtype)
        if self.times is not None:
            features_BFTD = features_BFTD + self.times(mask_BFT.any(2))[:, :, None]
        latents_BLD = self.first_latents.expand(len(mask_BFT), -1, -1)
        real_BL = mask_BFT.new_ones(latents_BLD.shape[:2])
        features_BSD = features_BFTD.flatten(1, 2)
        visible_B11X = torch.cat([mask_BFT.flatten(1), real_BL], 1)[:, None, None]  # latents see latents: no row is empty
        for layer in self.layers:
            latents_BLD = layer(latents_BLD, features_BSD, visible_B11X)
        return self.output(self.last_norm(latents_BLD)), real_BL


def resampler(
    *,
    input_width: int,
    output_width: int | None = None,
    latents: int = 64,
    layers: int = 6,
    heads: int = 8,
    head_width: int = 64,
    hidden_factor: int = 4,
    activation: str = "gelu",
    bias: bool = False,
    most_frames: int | None = None,
) -> nn.Module:
    """The resampler with random weights.

    input_width: D, of the features and of the latents within. output_width: W, by a last linear layer; None: W = D without one,
        as in Flamingo, whose gated layers project latents themselves.
    latents: L. hidden_factor: width inside the feed-forward, in D. activation: see `zoo.nn.feed_forward`; Flamingo has
        "squared_relu". bias: of the projections within; the norms have theirs anyway.
    most_frames: number of learned time embeddings; None: frames are not told apart.
    Raises UsageError for numbers below 1 and for an unknown activation.
    """
    require_positive(
        input_width=input_width,
        output_width=output_width,
        latents=latents,
        layers=layers,
        heads=heads,
        head_width=head_width,
        hidden_factor=hidden_factor,
        most_frames=most_frames,
    )
    stack = [
        ResamplerLayer(
            input_width,
            heads=heads,
            head_width=head_width,
            hidden_factor=hidden_factor,
            activation=activation,
            bias=bias,
        )
        for _ in range(layers)
    ]
    return Resampler(stack, width=input_width, latents=latents, most_frames=most_frames, output_width=output_width)


def from_open_flamingo(state: State) -> dict[str, torch.Tensor]:
    """Names of `PerceiverResampler`, alone or as `perceiver.` of a whole Flamingo, -> ours.

    Other tensors of a whole Flamingo are passed on like every name that is not known: leave them out before.
    """
    parted: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        bare = key.removeprefix("perceiver.")
        if bare.endswith(KEYS_AND_VALUES):
            stem = bare.removesuffix(KEYS_AND_VALUES)
            parted[stem + KEYS], parted[stem + VALUES] = tensor.chunk(2)
        else:
            parted[bare] = tensor
    return renaming.rename(parted, NAMES)


def to_open_flamingo(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those of `PerceiverResampler`. A last linear layer, which that has not, keeps its own."""
    theirs = renaming.rename(state, renaming.inverted(NAMES))
    for key in [key for key in theirs if key.endswith(KEYS)]:
        stem = key.removesuffix(KEYS)
        if stem + VALUES in theirs:
            theirs[stem + KEYS_AND_VALUES] = torch.cat([theirs.pop(key), theirs.pop(stem + VALUES)])
    return theirs
