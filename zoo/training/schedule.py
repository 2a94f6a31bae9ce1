"""The learning rate over the steps of a training."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step, from 0: it rises over the first `warmup` and then falls to 0 as a cosine does."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
