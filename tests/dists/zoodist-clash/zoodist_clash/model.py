"""The smallest image encoder: the mean colour."""

import torch
from torch import nn

from zoo.api import Encoded, to_pixels


def build(*, size: int = 8) -> nn.Module:
    """One token of width 3."""
    return MeanColour(size)


class MeanColour(nn.Module):
    """float[B, 3, size, size] -> one token float[B, 1, 3]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.gain = nn.Parameter(torch.ones(3))

    def preprocess(self, items):
        numbers = {"size": self.size, "crop": 1.0, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}
        return to_pixels(items, numbers)

    def forward(self, pixels):
        pooled_BD = pixels.mean((2, 3)) * self.gain
        mask_BT = torch.ones(len(pixels), 1, dtype=torch.bool)
        return Encoded(pooled_BD[:, None], mask_BT, pooled_BD)
