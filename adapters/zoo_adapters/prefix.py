"""Prefix tuning: keys and values that every layer finds before those of the tokens (Li and Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

import torch
from torch import nn

from zoo.api import Adapter, Base, UsageError


class Prefix(nn.Module):
    """A table float[P, layers * 2 * G * K]; while it is trained, a small network may make it from embeddings of its rows."""

    def __init__(self, *, count: int, layers: int, kv_heads: int, head_width: int, width: int, hidden: int | None) -> None:
        super().__init__()
        self.count = count
        self.shape = (count, layers, 2, kv_heads, head_width)
        size = layers * 2 * kv_heads * head_width
        self.table = nn.Parameter(torch.randn(count, width if hidden else size))
        self.network: nn.Module | None = None
        if hidden:
            self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, size))

    def keys_and_values(self) -> torch.Tensor:
        """As `zoo.api.Virtual`."""
        made_PX = self.table if self.network is None else self.network(self.table)
        return made_PX.view(self.shape).permute(1, 2, 3, 0, 4)

    def finish(self) -> dict[str, None]:
        """Keep what the network makes, and drop it; returns the options that are other ones now."""
        if self.network is not None:
            with torch.no_grad():
                self.table = nn.Parameter(self.network(self.table))
            self.network = None
        return {"hidden": None}


def prefix(base: Base, *, count: int = 20, hidden: int | None = None) -> Adapter:
    """Prefix tuning of a decoder.

    count: tokens of the prefix. hidden: width of the network that makes it in training (None: the table itself is trained).
    Raises UsageError for a model without a decoder and numbers below 1.
    """
    base.require_decoder("prefix tuning")
    if count < 1 or (hidden is not None and hidden < 1):
        raise UsageError(f"count and hidden must be at least 1, got count={count} and hidden={hidden}")
    virtual = Prefix(
        count=count,
        layers=base.layers,
        kv_heads=base.kv_heads,
        head_width=base.head_width,
        width=base.width,
        hidden=hidden,
    )
    return Adapter(virtual=virtual.to(base.device), learning_rate=1e-2)
