"""What each token goes through alone: widened, bent, narrowed; with or without a gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from zoo.errors import UsageError


def squared_relu(tokens: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer, arXiv:2109.08668)."""
    return functional.relu(tokens).square()


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "squared_relu": squared_relu,
}


def activation_function(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function by name. Raises UsageError."""
    if name not in ACTIVATIONS:
        raise UsageError(f"an activation is one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


class Dense(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, width: int, hidden: int, *, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = activation_function(activation)

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        """float[..., W] -> float[..., W]."""
        output_BTW: torch.Tensor = self.down(self.activation(self.up(tokens_BTW)))
        return output_BTW


class Gated(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202; SwiGLU with `silu`).

    `gate_and_up` is gate and up as one layer where a kernel joined them (`zoo.nn.kernels.apply`), else None.
    """

    def __init__(self, width: int, hidden: int, *, activation: str = "silu", bias: bool = False) -> None:
        super().__init__()
        self.gate: nn.Module = nn.Linear(width, hidden, bias=bias)
        self.up: nn.Module = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.gate_and_up: nn.Module | None = None
        self.activation = activation_function(activation)

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        """float[..., W] -> float[..., W]."""
        if self.gate_and_up is not None:
            gate, up = self.gate_and_up(tokens_BTW).chunk(2, -1)
        else:
            gate, up = self.gate(tokens_BTW), self.up(tokens_BTW)
        output_BTW: torch.Tensor = self.down(self.activation(gate) * up)
        return output_BTW
