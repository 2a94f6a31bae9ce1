"""What the layers of every kernel have in common: by this, and by no list of classes, the rest of the zoo tells them from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class KernelLinear(Protocol):
    """A linear layer in a number format: float32[..., in_features] -> float32[..., out_features]. It has no parameters.

    One whose inputs gradients reach says so by `passes_gradients = True`: adapters that stand on it can be trained.
    """

    number_format: str
    in_features: int
    out_features: int

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        ...

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What the layer was made of (`zoo.nn.kernels.contract.LayerFormat`), bit for bit."""
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

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What the table was made of, bit for bit."""
        ...


def is_kernel_linear(module: object) -> bool:
    """Whether a module is a linear layer of a kernel."""
    return hasattr(module, "number_format") and isinstance(module, KernelLinear)


def is_kernel_embedding(module: object) -> bool:
    """Whether a module is an embedding of a kernel."""
    return hasattr(module, "number_format") and isinstance(module, KernelEmbedding)


def gradients_flow(module: nn.Module) -> bool:
    """Whether gradients pass all layers of a module: those of no kernel stop them."""
    return all(getattr(part, "passes_gradients", False) for part in module.modules() if is_kernel_linear(part))


def runs_by_kernel(module: nn.Module) -> bool:
    """Whether a kernel was applied to the module, or to a part of it."""
    return any(is_kernel_linear(part) for part in module.modules())
