"""Projectors: each token of the encoder becomes one of the decoder's width by itself, and there are as many as before."""

from __future__ import annotations

import torch
from torch import nn

from zoo.api import Encoded
from zoo_perceiver.checks import require_positive
from zoo_perceiver.frames import split_frames


class Projector(nn.Module):
    """One function for every token (`zoo.api.Bridge`): L = frames * T, and the mask passes through."""

    def __init__(self, projection: nn.Module, *, input_width: int, output_width: int) -> None:
        super().__init__()
        self.input_width, self.output_width = input_width, output_width
        self.projection = projection

    def forward(self, encoded: Encoded, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Features float[B, frames * T, D] -> latents float[B, frames * T, W], mask bool[B, frames * T].

        Raises UsageError, see `split_frames`.
        """
        dtype = next(self.parameters()).dtype
        tokens_BFTD, _ = split_frames(encoded, frames, width=self.input_width, dtype=dtype)
        return self.projection(tokens_BFTD.flatten(1, 2)), encoded.mask_BT


def linear(*, input_width: int, output_width: int | None = None, bias: bool = True) -> nn.Module:
    """One linear layer with random weights (MiniGPT-4, Zhu et al. 2023, arXiv:2304.10592).

    input_width: D. output_width: W; None: W = D. Raises UsageError for numbers below 1.
    """
    width = _width(input_width, output_width)
    return Projector(nn.Linear(input_width, width, bias=bias), input_width=input_width, output_width=width)


def mlp(*, input_width: int, output_width: int | None = None, bias: bool = True) -> nn.Module:
    """Two linear layers, both of the output's width, and GELU between, with random weights (LLaVA-1.5, Liu et al. 2023, arXiv:2310.03744).

    input_width: D. output_width: W; None: W = D. Raises UsageError for numbers below 1.
    """
    width = _width(input_width, output_width)
    projection = nn.Sequential(nn.Linear(input_width, width, bias=bias), nn.GELU(), nn.Linear(width, width, bias=bias))
    return Projector(projection, input_width=input_width, output_width=width)


def _width(input_width: int, output_width: int | None) -> int:
    require_positive(input_width=input_width, output_width=output_width)
    return input_width if output_width is None else output_width
