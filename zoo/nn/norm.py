"""Normalisation of each token by its own size. Layer normalisation is `torch.nn.LayerNorm`."""

import torch
from torch import nn
from torch.nn.functional import rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, *, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        """float[..., W] -> float[..., W]."""
        return rms_norm(tokens_BTW, self.weight.shape, self.weight, self.epsilon)
