"""Examples that only measure, and the parameters that were best on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Loss = Callable[[Sequence[Any]], torch.Tensor]  # a batch of examples -> the mean loss of them


@dataclass(slots=True)
class HeldOut:
    """Measures a loss on examples again and again. patience: measurements without a lower one that are enough; 0: never.

    measured: (steps taken, loss). best: the lowest loss, infinity before the first.
    """

    examples: Sequence[Any]
    loss: Loss
    parameters: Sequence[nn.Parameter]
    batch_size: int
    patience: int
    measured: list[tuple[int, float]] = field(default_factory=list)
    best: float = math.inf
    _best_tensors: list[torch.Tensor] = field(default_factory=list)
    _since_best: int = 0

    def measure(self, step: int) -> bool:
        """Take the loss, and keep the parameters where it is the lowest; whether patience is at its end."""
        if not self.examples:
            return False
        value = self._mean_loss()
        self.measured.append((step, value))
        if value < self.best:
            self.best, self._best_tensors, self._since_best = value, copies(self.parameters), 0
            return False
        self._since_best += 1
        return bool(self.patience) and self._since_best >= self.patience

    def put_best_back(self) -> None:
        """Make the parameters what they were at the lowest loss; nothing where none was measured."""
        if self._best_tensors:
            put_back(self.parameters, self._best_tensors)

    @torch.no_grad()
    def _mean_loss(self) -> float:
        """Over examples, each counted once."""
        total = 0.0
        for start in range(0, len(self.examples), self.batch_size):
            batch = self.examples[start : start + self.batch_size]
            total += float(self.loss(batch)) * len(batch)
        return total / len(self.examples)


def copies(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """What the parameters are now."""
    return [one.detach().clone() for one in parameters]


@torch.no_grad()
def put_back(parameters: Sequence[nn.Parameter], tensors: Sequence[torch.Tensor]) -> None:
    """Make the parameters what they were."""
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.copy_(tensor)
