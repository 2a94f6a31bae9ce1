"""One LoRA made of several: added exactly, or thinned out first so that they disturb each other less."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoo.api import UsageError

Product = tuple[torch.Tensor, torch.Tensor, float]  # down [r, K], up [N, r], and what it counts
# How tensors become one: by matrix, or with "_svd" behind it the changes of the weights, of which rank r is kept.
THINNED = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
WAYS = ("concatenation", "svd", "sum", *THINNED, *(f"{way}_svd" for way in THINNED))


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How several become one. density: the share of the numbers that is kept; majority_sign: as of `agreed`; r: the rank that is kept."""

    how: str = "concatenation"
    r: int | None = None
    density: float | None = None
    majority_sign: str = "total"


def combined_product(
    products: Sequence[Product], factors: Sequence[float], way: Way, *, turned: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Down [r, K] and up [N, r] of several products, each with a factor.

    turned: the layer holds its weight as [K, N], so that what is drawn for a change is drawn in that order, as HF PEFT does.
    Raises UsageError for another way, and for ranks that differ where matrices are joined.
    """
    if way.how not in WAYS:
        raise UsageError(f"LoRA is combined by {', '.join(WAYS)}, got {way.how!r}")
    counts = [factor * scale for factor, (*_, scale) in zip(factors, products, strict=True)]
    if way.how == "concatenation":
        ups = [up * count for count, (_, up, _) in zip(counts, products, strict=True)]
        return torch.cat([down for down, _, _ in products]), torch.cat(ups, 1)
    join = _joining(way)
    if way.how.endswith("svd"):
        changes = [scale * up @ down for down, up, scale in products]
        changed = join([change.T for change in changes], factors).T if turned else join(changes, factors)
        return _nearest(changed, way.r, products)
    ranks = sorted({len(down) for down, _, _ in products})
    if len(ranks) > 1:
        raise UsageError(f"{way.how} joins matrix by matrix, which takes one rank, got ranks {ranks}: take svd")
    roots = [math.sqrt(abs(count)) for count in counts]
    signed = [math.copysign(root, count) for root, count in zip(roots, counts, strict=True)]  # on one side alone
    return join([down for down, _, _ in products], signed), join([up for _, up, _ in products], roots)


Joining = Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor]


def _joining(way: Way) -> Joining:
    """Tensors and factors -> one. Raises UsageError for a way that thins out without a density, and for another sign."""
    name = way.how.removesuffix("_svd")
    if name in ("sum", "svd"):
        return sum_of
    density = way.density
    if density is None or not 0 < density <= 1:
        raise UsageError(f"{way.how} keeps a share of the numbers: density above 0 and at most 1, got {density}")
    if way.majority_sign not in ("total", "frequency"):
        raise UsageError(f'majority_sign is "total" or "frequency", got {way.majority_sign!r}')
    thin = largest if name in ("ties", "magnitude_prune") else dropped

    def join(tensors: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
        kept = [thin(tensor, density) for tensor in tensors]
        return agreed(kept, factors, way.majority_sign) if name.endswith("ties") else sum_of(kept, factors)

    return join


def sum_of(tensors: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Each tensor times its factor, added."""
    return torch.stack([factor * tensor for tensor, factor in zip(tensors, factors, strict=True)]).sum(0)


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """The share `density` of its numbers that are largest; the others are 0 (Yadav et al. 2023, arXiv:2306.01708, "trim")."""
    kept = torch.zeros_like(tensor).flatten()
    kept[tensor.abs().flatten().topk(int(density * tensor.numel())).indices] = 1
    return tensor * kept.view(tensor.shape)


def dropped(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Each number kept with probability `density`, and divided by it (Yu et al. 2023, arXiv:2311.03099)."""
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / density


def agreed(tensors: Sequence[torch.Tensor], factors: Sequence[float], majority_sign: str = "total") -> torch.Tensor:
    """The mean, number by number, of those whose sign is the elected one (arXiv:2306.01708, "elect sign" and "disjoint merge").

    majority_sign: elected by the sum of the numbers ("total") or by how many there are of each sign ("frequency").
    """
    stacked = torch.stack(list(tensors))
    votes = stacked if majority_sign == "total" else stacked.sign()
    elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    weighted = stacked * stacked.new_tensor(list(factors)).view(-1, *[1] * (stacked.ndim - 1)) * agrees
    return weighted.sum(0) / agrees.sum(0).clamp(min=1)


def _nearest(change_NK: torch.Tensor, r: int | None, products: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Down [r, K] and up [N, r] of the matrix of rank r that is nearest to a change; r None: the greatest rank of the products."""
    rank = max(len(one[0]) for one in products) if r is None else r
    most = min(change_NK.shape)
    if not 1 <= rank <= most:
        raise UsageError(f"r must be from 1 to {most}, got {rank}")
    left_NN, values_N, right_NK = torch.linalg.svd(change_NK, full_matrices=False)
    root_r = values_N[:rank].sqrt()
    return (root_r[:, None] * right_NK[:rank]).contiguous(), (left_NN[:, :rank] * root_r).contiguous()
