"""What the layers of every kernel have in common: by this, and by no list of classes, the rest of the zoo tells them from others."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class KernelLinear(Protocol):
    """A linear layer in a number format: float32[..., in_features] -> float32[..., out_features]. It has no parameters."""

    number_format: str
    in_features: int
    out_features: int

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        ...


@runtime_checkable
class KernelEmbedding(Protocol):
    """A table in a number format: int[B, T] -> float32[B, T, embedding_dim]. It has no parameters."""

    number_format: str
    num_embeddings: int
    embedding_dim: int

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """int[B, T] -> float32[B, T, K]."""
        ...


def is_kernel_linear(module: object) -> bool:
    """Whether a module is a linear layer of a kernel."""
    return hasattr(module, "number_format") and isinstance(module, KernelLinear)


def is_kernel_embedding(module: object) -> bool:
    """Whether a module is an embedding of a kernel."""
    return hasattr(module, "number_format") and isinstance(module, KernelEmbedding)


def runs_by_kernel(module: nn.Module) -> bool:
    """Whether a kernel was applied to the module, or to a part of it."""
    return any(is_kernel_linear(part) for part in module.modules())
