"""DoRA: the direction of a weight learns by LoRA, the length of each of its rows by itself (Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.api import Adapter, Base, Held, Mixed, Numbers, Place, UsageError
from zoo_adapters.ia3 import of_rows
from zoo_adapters.lora import (
    TARGETS,
    Convolved,
    LowRank,
    LowRankEmbedding,
    by_place,
    mixed_low_rank,
    require_rank,
    scale_of,
)
from zoo_adapters.whole import with_whole


class Decomposed(nn.Module):
    """length * (W + BA) / |W + BA| row by row, for a linear layer [N, K]. No gradient flows through the norm (section 4.3)."""

    def __init__(self, place: Place, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.product = LowRank(place, rank=rank, scale=scale, dropout=dropout)
        weight_NK, _ = place.tensors()
        self.length = nn.Parameter(weight_NK.detach().float().norm(dim=1))
        self.place = (place,)  # in a tuple, so that its layer is no part of this one

    def stretch(self) -> torch.Tensor:
        """What each row of W + BA is multiplied by, float[N]."""
        weight_NK, _ = self.place[0].tensors()
        with torch.no_grad():
            norm_N: torch.Tensor = (weight_NK.float() + self.product.change()).norm(dim=1)
        return _stretch(self.length, norm_N)

    def after(self, input_BK: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        product, stretch_N = self.product, self.stretch()
        weight_NK, bias_N = self.place[0].tensors()
        read_BK = input_BK.to(product.down.dtype)
        if product.dropout is not None and product.training:
            read_BK = product.dropout(read_BK)  # of what the weight reads, too
            bare_BN = read_BK.to(weight_NK.dtype) @ weight_NK.T
        else:
            bare_BN = output_BN if bias_N is None else output_BN - bias_N
        added_BN = read_BK @ product.down.T @ product.up.T * product.scale
        change_BN: torch.Tensor = (stretch_N - 1) * bare_BN + stretch_N * added_BN
        return output_BN + change_BN.to(output_BN.dtype)

    def merged(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        stretch_N = self.stretch()
        bias_N = _merged_bias(bias_N, self.place[0], stretch_N)
        return (weight_NK + self.product.change()) * stretch_N[:, None], bias_N

    @staticmethod
    def mixed(held: Held, scales: Sequence[float]) -> Mixed:
        """As `zoo.api.Part`: the products of all in one pass, then each row stretched by its own."""
        product = mixed_low_rank(
            [
                (
                    columns,
                    [
                        None if part is None else (part.product.down, part.product.up, part.product.scale * scale)
                        for part, scale in zip(parts, scales, strict=True)
                    ],
                )
                for columns, parts in held
            ]
        )
        stretched = [(columns, *_stretches(parts, scales)) for columns, parts in held]

        def apply(input_BX: torch.Tensor, output_BN: torch.Tensor, number_B: Numbers) -> torch.Tensor:
            added_BN = product(input_BX, torch.zeros_like(output_BN), number_B)
            for columns, stretch_AN, more_AN, bias_N in stretched:
                part_BN = output_BN if columns is None else output_BN[..., slice(*columns)]
                own_BN = added_BN if columns is None else added_BN[..., slice(*columns)]
                bare_BN = part_BN if bias_N is None else part_BN - bias_N
                change_BN = of_rows(more_AN, number_B, part_BN) * bare_BN + of_rows(stretch_AN, number_B, part_BN) * own_BN
                part_BN += change_BN
            return output_BN

        return apply


class DecomposedEmbedding(nn.Module):
    """The same for each of the W numbers of an embedding [V, W], over all its rows."""

    def __init__(self, place: Place, *, rank: int, scale: float) -> None:
        super().__init__()
        self.product = LowRankEmbedding(place, rank=rank, scale=scale)
        weight_VW, _ = place.tensors()
        self.length = nn.Parameter(weight_VW.detach().float().norm(dim=0))
        self.place = (place,)

    def stretch(self) -> torch.Tensor:
        """What each of the numbers is multiplied by, float[W]."""
        weight_VW, _ = self.place[0].tensors()
        with torch.no_grad():
            norm_W: torch.Tensor = (weight_VW.float() + self.product.change()).norm(dim=0)
        return _stretch(self.length, norm_W)

    def after(self, input_BT: torch.Tensor, output_BTW: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        stretch_W = self.stretch()
        change_BTW: torch.Tensor = (stretch_W - 1) * output_BTW + stretch_W * self.product.added(input_BT)
        return output_BTW + change_BTW.to(output_BTW.dtype)

    def merged(self, weight_VW: torch.Tensor, bias: None) -> tuple[torch.Tensor, None]:
        """As `zoo.api.Part`."""
        return (weight_VW + self.product.change()) * self.stretch(), bias


class DecomposedConvolution(nn.Module):
    """The same for each output channel of a convolution [N, K, ...] in one group."""

    def __init__(self, place: Place, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        layer: Any = place.layer
        if layer.groups != 1:
            raise UsageError(
                f"{place.name} is a convolution in {layer.groups} groups, whose weight DoRA has no direction of: leave it out"
            )
        self.product = Convolved(place, rank=rank, scale=scale, dropout=dropout)
        weight, _ = place.tensors()
        self.length = nn.Parameter(weight.detach().float().flatten(1).norm(dim=1))
        self.place = (place,)

    def stretch(self) -> torch.Tensor:
        """What each output channel is multiplied by, float[N]."""
        weight, _ = self.place[0].tensors()
        with torch.no_grad():
            norm_N: torch.Tensor = (weight.float() + self.product.change()).flatten(1).norm(dim=1)
        return _stretch(self.length, norm_N)

    def after(self, input_BCX: torch.Tensor, output_BNX: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        product, read_BCX = self.product, self.product.read(input_BCX)
        weight, bias_N = self.place[0].tensors()
        column = (-1, *[1] * (weight.ndim - 2))
        stretch = self.stretch().view(column)
        if product.dropout is not None and product.training:
            bare: torch.Tensor = product.convolve(read_BCX.to(weight.dtype), weight, **product.shape)
        else:
            bare = output_BNX if bias_N is None else output_BNX - bias_N.view(column)
        change: torch.Tensor = (stretch - 1) * bare + stretch * product(read_BCX)
        return output_BNX + change.to(output_BNX.dtype)

    def merged(self, weight: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        stretch_N = self.stretch()
        bias_N = _merged_bias(bias_N, self.place[0], stretch_N)
        return (weight + self.product.change()) * stretch_N.view(-1, *[1] * (weight.ndim - 1)), bias_N


def _stretch(length: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """What brings a norm to its length. A row of zeros has no direction: it stays what it is."""
    return torch.where(norm == 0, torch.ones_like(norm), length / norm.clamp(min=1e-30))


def _merged_bias(bias_N: torch.Tensor | None, place: Place, stretch_N: torch.Tensor) -> torch.Tensor | None:
    """The bias under a DoRA: what others added to that of the layer is stretched as `after` does, which knows the layer's own alone."""
    _, own_N = place.tensors()
    return bias_N if bias_N is None or own_N is None else bias_N + (stretch_N - 1) * (bias_N - own_N.float())


def _stretches(parts: Sequence[Any], scales: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What the products of each adapter are stretched by, how much further than it was the weight is, float[A + 1, N], and the bias."""
    first = next(part for part in parts if part is not None)
    ones_N = torch.ones_like(first.length)
    stretch_AN = torch.stack([ones_N if part is None else part.stretch() for part in (*parts, None)])
    more_AN = (stretch_AN - 1) * stretch_AN.new_tensor([*scales, 0.0])[:, None]
    return stretch_AN, more_AN, first.place[0].tensors()[1]


def dora(
    base: Base,
    *,
    targets: Sequence[str] | str = TARGETS,
    r: int = 8,
    alpha: float = 16.0,
    rank_stabilised: bool = False,
    dropout: float = 0.0,
    ranks: dict[str, int] | None = None,
    alphas: dict[str, float] | None = None,
    whole: Sequence[str] | str = (),
) -> Adapter:
    """DoRA on linear layers, embeddings and convolutions; the options are those of LoRA. As it begins it changes no more than the last digit.

    Raises UsageError as LoRA does, for a convolution in groups, and for a layer that a kernel rounded.
    """
    parts: dict[str, nn.Module] = {}
    own_ranks, own_alphas = by_place(base, ranks), by_place(base, alphas)
    for place in base.chosen(targets):
        own = own_ranks.get(place.name, r)
        require_rank(own, place, widest=place.name not in own_ranks)
        scale = scale_of(own, own_alphas.get(place.name, alpha), rank_stabilised=rank_stabilised)
        if place.kind == "embedding":
            parts[place.name] = DecomposedEmbedding(place, rank=own, scale=scale)
        elif place.kind == "convolution":
            parts[place.name] = DecomposedConvolution(place, rank=own, scale=scale, dropout=dropout)
        else:
            parts[place.name] = Decomposed(place, rank=own, scale=scale, dropout=dropout)
    return with_whole(base, parts, whole)
