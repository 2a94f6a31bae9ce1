"""Convolutional frontends: a log-mel, shortened in time by strided convolutions, given positions, and read by a transformer.

Two shapes that speech models agree on: the two-dimensional one of Speech-Transformer (Dong et al. 2018, ICASSP, section 3.2), which
leaves a quarter of the frames, and the one-dimensional one of Whisper (Radford et al. 2022, arXiv:2212.04356, section 2.2), which leaves
half. Padding is kept at zero between the layers, so that a sound gives the same tokens whatever it is batched with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, relu

from zoo.api import Encoded, Sound, UsageError
from zoo.nn import Attention, Block, Dense, Reading, Stack, sinusoids
from zoo_audio.log_mel import QUIETEST, log_mels

RANGE = 8.0  # powers of ten below a sound's loudest frame that are told apart


def conv2d_encoder(*, channels: int, width: int, heads: int, layers: int, preprocess: Mapping[str, Any]) -> nn.Module:
    """Build Speech-Transformer's encoder with random weights: tokens of 4 frames each.

    channels: of the two convolutions. width, heads, layers: of the transformer. preprocess: the numbers of `log_mels`.
    Raises UsageError for numbers that contradict each other.
    """
    _check(width, heads)
    frontend = Conv2dFrontend(bands=int(preprocess["bands"]), channels=channels, width=width)
    return SpeechEncoder(frontend, width=width, heads=heads, layers=layers, preprocess=preprocess)


def conv1d_encoder(*, width: int, heads: int, layers: int, preprocess: Mapping[str, Any]) -> nn.Module:
    """Build Whisper's encoder for sounds of any length, with random weights: tokens of 2 frames each.

    Arguments and errors as those of `conv2d_encoder`.
    """
    _check(width, heads)
    frontend = Conv1dFrontend(bands=int(preprocess["bands"]), width=width)
    return SpeechEncoder(frontend, width=width, heads=heads, layers=layers, preprocess=preprocess)


class Conv2dFrontend(nn.Module):
    """float[B, T, bands] -> float[B, T / 4, width]: two 3x3 convolutions of stride 2 in time and frequency, and a projection."""

    def __init__(self, *, bands: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.projection = nn.Linear(channels * _halved(_halved(bands)), width)

    def forward(self, mel_BTC: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel float[B, T, bands] and mask bool[B, T] -> features float[B, T', width] and mask bool[B, T']."""
        maps_BKTF = mel_BTC[:, None]
        for convolution in (self.conv1, self.conv2):
            mask_BT = mask_BT[:, ::2]
            maps_BKTF = relu(convolution(maps_BKTF)) * mask_BT[:, None, :, None]
        return self.projection(maps_BKTF.transpose(1, 2).flatten(2)), mask_BT


class Conv1dFrontend(nn.Module):
    """float[B, T, bands] -> float[B, T / 2, width]: two convolutions over 3 frames, the second of stride 2."""

    def __init__(self, *, bands: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, mel_BTC: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel float[B, T, bands] and mask bool[B, T] -> features float[B, T', width] and mask bool[B, T']."""
        maps_BCT = gelu(self.conv1(mel_BTC.transpose(1, 2))) * mask_BT[:, None, :]
        return gelu(self.conv2(maps_BCT)).transpose(1, 2), mask_BT[:, ::2]


class SpeechEncoder(nn.Module):
    """A frontend, sinusoidal positions and pre-norm blocks that see both ways."""

    def __init__(self, frontend: nn.Module, *, width: int, heads: int, layers: int, preprocess: Mapping[str, Any]) -> None:
        super().__init__()
        self.frontend = frontend
        self.width = width
        self.stack = Stack([_block(width, heads) for _ in range(layers)], norm=nn.LayerNorm(width), causal=False)
        self.numbers = dict(preprocess)

    def preprocess(self, items: Sequence[Sound]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sounds -> log-mel float[B, T, bands] and mask bool[B, T].

        A sound is heard relative to its loudest moment: values lie between -1 and 1, whatever the level of the recording.
        Raises UsageError for what is no Sound, MediaError for one that is too long.
        """
        mel_BTC, mask_BT = log_mels(items, self.numbers)
        loudest_B11 = mel_BTC.masked_fill(~mask_BT[:, :, None], -math.inf).amax((1, 2), keepdim=True)
        relative_BTC = (mel_BTC - loudest_B11).clamp(min=-RANGE) / (RANGE / 2) + 1
        silent_B11 = loudest_B11 <= math.log10(QUIETEST) + 1e-3  # nothing in it is louder than the rest
        relative_BTC = relative_BTC.masked_fill(silent_B11, -1.0)
        return relative_BTC * mask_BT[:, :, None], mask_BT

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(log-mel float[B, T, bands], mask bool[B, T]) -> a token for every 2 or 4 frames; pooled is the mean of the real ones."""
        weight = next(self.parameters())
        mel_BTC, mask_BT = inputs[0].to(weight), inputs[1].to(weight.device)
        features_BTD, mask_BT = self.frontend(mel_BTC, mask_BT)
        count = features_BTD.shape[1]
        tokens_BTD = features_BTD + sinusoids(count, self.width).to(features_BTD)
        positions_BT = torch.arange(count, device=weight.device).expand(mask_BT.shape)
        tokens_BTD = self.stack(tokens_BTD, positions_BT, Reading(mask_BT=mask_BT))
        return Encoded(tokens_BTD, mask_BT, masked_mean(tokens_BTD, mask_BT))


def masked_mean(tokens_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The mean of the real tokens, float[B, D]."""
    weights_BT1 = mask_BT[:, :, None].to(tokens_BTD.dtype)
    return (tokens_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)


def _block(width: int, heads: int) -> Block:
    return Block(
        attention_norm=nn.LayerNorm(width),
        attention=Attention(width, heads=heads, bias=True),
        feed_forward_norm=nn.LayerNorm(width),
        feed_forward=Dense(width, 4 * width),
    )


def _halved(count: int) -> int:
    return (count + 1) // 2


def _check(width: int, heads: int) -> None:
    if width % (2 * heads) or width < 4:
        raise UsageError(f"width must be an even multiple of heads, at least 4, got width={width} and heads={heads}")
