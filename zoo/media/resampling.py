"""Samples at one rate -> at another, whole or block by block with the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import ZooError

if TYPE_CHECKING:
    import torch

# Of a ratio of rates: filters for 44,101 to 16,000 as they stand would take 3 GB, and this errs by 1e-6.
LARGEST_TERM = 1_000

Samples = np.ndarray[Any, np.dtype[np.float32]]


def resample(samples: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    """float[..., N] at one rate -> float[..., ceil(N * to_hz / from_hz)], by torchaudio's windowed sinc."""
    if from_hz == to_hz:
        return samples
    ratio = _ratio(from_hz, to_hz)
    need("torchaudio")
    from torchaudio.functional import resample as by_sinc

    resampled: torch.Tensor = by_sinc(samples, ratio.denominator, ratio.numerator)
    return resampled


def _ratio(from_hz: int, to_hz: int) -> Fraction:
    ratio = Fraction(to_hz, from_hz)
    if max(ratio.numerator, ratio.denominator) <= LARGEST_TERM:
        return ratio
    return ratio.limit_denominator(LARGEST_TERM) if ratio <= 1 else 1 / (1 / ratio).limit_denominator(LARGEST_TERM)


def resampled_blocks(blocks: Iterator[Samples], from_hz: int, to_hz: int) -> Iterator[Samples]:
    """The same numbers as resampling the whole: each block is computed with what lies around it, and that cut off again."""
    import torch

    ratio = _ratio(from_hz, to_hz)
    step, outputs = ratio.denominator, ratio.numerator  # so many samples in give so many out
    # Wider than torchaudio's filter, in whole steps.
    margin = step * (1 + math.ceil(8 / min(step, outputs)) + math.ceil(8 / step))
    held = np.zeros(margin, np.float32)  # silence before the start
    fresh = 0  # how much at the end of `held` has not been given out

    def give(count: int) -> Samples:
        nonlocal held, fresh
        window = torch.from_numpy(held[: margin + count + margin])
        edge = margin // step * outputs
        answer: Samples = resample(window, from_hz, to_hz)[edge : edge + math.ceil(count * outputs / step)].numpy()
        held, fresh = held[count:], fresh - count
        return answer

    for block in blocks:
        held, fresh = np.concatenate((held, block)), fresh + len(block)
        ready = (fresh - margin) // step * step
        if ready > 0:
            yield give(ready)
    if fresh:
        held = np.concatenate((held, np.zeros(margin, np.float32)))
        yield give(fresh)


def need(name: str) -> Any:
    """A library of the extra `audio`. Raises ZooError with the command that installs it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ZooError(f"reading sounds needs {name} ({error}): pip install 'modalzoo[audio]'") from error
