"""How far a compiled module's answer is from the plain one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch


@dataclass(frozen=True, slots=True)
class Difference:
    """cosine: between the outputs, of the worst output. largest_relative: greatest absolute difference, over the largest value."""

    cosine: float
    largest_relative: float


NOTHING_COMMON = Difference(cosine=0.0, largest_relative=inf)


def worse(one: Difference, other: Difference) -> Difference:
    """The worse of both figures."""
    return Difference(min(one.cosine, other.cosine), max(one.largest_relative, other.largest_relative))


def compare(plain: Sequence[torch.Tensor], compiled: Sequence[torch.Tensor]) -> Difference:
    """Outputs of the same inputs. Other shapes, types or places of what is not finite have nothing in common."""
    if [(output.shape, output.dtype) for output in plain] != [(output.shape, output.dtype) for output in compiled]:
        return NOTHING_COMMON
    found = Difference(cosine=1.0, largest_relative=0.0)
    for expected, given in zip(plain, compiled, strict=True):
        found = worse(found, _of_one(expected, given))
    return found


def _of_one(expected: torch.Tensor, given: torch.Tensor) -> Difference:
    if not expected.is_floating_point():  # ids and masks are right or wrong
        equal = bool((expected == given).all())
        return Difference(1.0, 0.0) if equal else Difference(0.0, 1.0)
    finite = expected.isfinite()
    if not torch.equal(finite, given.isfinite()):
        return NOTHING_COMMON
    plain, compiled = expected[finite].double(), given[finite].double()
    if not plain.numel():
        return Difference(1.0, 0.0)
    away, largest = float((plain - compiled).abs().max()), float(plain.abs().max())
    if away == 0:
        return Difference(1.0, 0.0)
    lengths = float(plain.norm() * compiled.norm())
    cosine = min(1.0, float(plain @ compiled) / lengths) if lengths else 0.0
    return Difference(cosine, away / largest if largest else inf)
