"""A convolutional tagger of sounds: CNN10 of PANNs (Kong et al. 2020, arXiv:1912.10211, table 3).

Four pairs of 3x3 convolutions over the log-mel, each pair halving time and frequency. The reference implementation is
qiuqiangkong/audioset_tagging_cnn, whose published checkpoints load by `from_panns`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, relu

from zoo.api import Encoded, Sound, UsageError
from zoo_audio.log_mel import log_mels

DECIBELS = 10.0  # for a power of ten
_DROPPED = re.compile(
    r"(spectrogram_extractor|logmel_extractor|fc_audioset)\..*"
)  # filters that are computed; a head whose labels are not ours


def tagger(*, channels: Sequence[int], width: int, labels: Sequence[str] = (), preprocess: Mapping[str, Any]) -> nn.Module:
    """Build a tagger with random weights.

    channels: of each pair of convolutions. width: of the embedding. labels: names of the tags; without any there is no last layer.
    preprocess: the numbers of `log_mels`.
    Raises UsageError where the halvings leave nothing of the bands.
    """
    bands = int(preprocess["bands"])
    if not channels or bands >> len(channels) == 0:
        raise UsageError(
            f"{len(channels)} halvings of {bands} bands leave nothing: give 1 to {bands.bit_length() - 1} channels"
        )
    return Tagger(list(channels), width, list(labels), preprocess)


class Tagger(nn.Module):
    """Log-mel -> a token for every 2^K frames and an embedding of the whole sound."""

    def __init__(self, channels: list[int], width: int, labels: list[str], preprocess: Mapping[str, Any]) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(int(preprocess["bands"]))
        self.blocks = nn.ModuleList(
            ConvolutionPair(before, after) for before, after in zip([1, *channels], channels, strict=False)
        )
        self.fc1 = nn.Linear(channels[-1], width)
        self.labels = labels
        self.classifier = nn.Linear(width, len(labels)) if labels else None
        self.numbers = dict(preprocess)

    def preprocess(self, items: Sequence[Sound]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sounds -> log-mel in decibels float[B, T, bands] and mask bool[B, T]; short ones are filled with silence to one token.

        Raises UsageError for what is no Sound, MediaError for one that is too long.
        """
        mel_BTC, mask_BT = log_mels(items, self.numbers, shortest_frames=2 ** len(self.blocks))
        return DECIBELS * mel_BTC, mask_BT

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(log-mel float[B, T, bands], mask bool[B, T]) -> tokens float[B, T / 2^K, C] and an embedding float[B, width]."""
        weight = self.fc1.weight
        mel_BTC, mask_BT = inputs[0].to(weight), inputs[1].to(weight.device)
        maps_BCT1 = self.bn0(mel_BTC.transpose(1, 2)[..., None])
        maps_BKTC = maps_BCT1.transpose(1, 3) * mask_BT[:, None, :, None]
        for block in self.blocks:
            pooled_BKTC = avg_pool2d(block(maps_BKTC, mask_BT), 2)
            mask_BT = mask_BT[:, 1::2]  # a pair of frames counts where both are real
            maps_BKTC = pooled_BKTC * mask_BT[:, None, :, None]
        tokens_BTK = maps_BKTC.mean(3).transpose(1, 2)
        loudest_BK = tokens_BTK.masked_fill(~mask_BT[:, :, None], -torch.inf).amax(1)
        mean_BK = (tokens_BTK * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True)
        return Encoded(tokens_BTK, mask_BT, relu(self.fc1(loudest_BK + mean_BK)))

    def logits(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Prepared inputs -> float[B, labels]. Raises UsageError for a tagger without labels."""
        if self.classifier is None:
            raise UsageError("this tagger has no labels of its own: give examples (--shots), or build it with labels")
        logits_BC: torch.Tensor = self.classifier(self(inputs).pooled_BD)
        return logits_BC


class ConvolutionPair(nn.Module):
    """Two 3x3 convolutions, each with a batch norm and a ReLU; padding frames stay zero."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, maps_BKTC: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """float[B, K, T, bands] -> float[B, K', T, bands]."""
        mask_B1T1 = mask_BT[:, None, :, None]
        maps_BKTC = relu(self.bn1(self.conv1(maps_BKTC))) * mask_B1T1
        return relu(self.bn2(self.conv2(maps_BKTC))) * mask_B1T1


def from_panns(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PANNs' names -> ours. The filters of its spectrogram are computed here; its last layer has labels that are not given with it."""
    return {
        re.sub(r"^conv_block(\d+)", lambda found: f"blocks.{int(found[1]) - 1}", key): tensor
        for key, tensor in state.items()
        if not _DROPPED.fullmatch(key)
    }
