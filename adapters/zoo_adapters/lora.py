"""LoRA: a product of two thin matrices beside a weight that stays as it is (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, pad

from zoo.api import Adapter, Base, Columns, Held, Mixed, Numbers, Place, UsageError
from zoo_adapters.combining import Product, Way, combined_product
from zoo_adapters.whole import with_whole

TARGETS = ("query", "value")
MANY_TOKENS = 4  # in a row, from which each row is multiplied by its own matrices instead of by those of all


class LowRank(nn.Module):
    """output + scale * up(down(input)) for a linear layer [N, K]: down [r, K] drawn, up [N, r] zeros."""

    additive = True

    def __init__(self, place: Place, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, place.inputs, device=place.device))
        self.up = nn.Parameter(torch.zeros(place.outputs, rank, device=place.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None

    def after(self, input_BK: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        read_BK = input_BK.to(self.down.dtype)
        if self.dropout is not None:
            read_BK = self.dropout(read_BK)
        return output_BN + (read_BK @ self.down.T @ self.up.T * self.scale).to(output_BN.dtype)

    def merged(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        return weight_NK + self.change(), bias_N

    def change(self) -> torch.Tensor:
        """What is added to the weight, float[N, K]."""
        change: torch.Tensor = self.scale * self.up @ self.down
        return change

    @staticmethod
    def mixed(held: Held, scales: Sequence[float]) -> Mixed:
        """As `zoo.api.Part`."""
        return mixed_low_rank(
            [
                (
                    columns,
                    [
                        None if part is None else (part.down, part.up, part.scale * scale)
                        for part, scale in zip(parts, scales, strict=True)
                    ],
                )
                for columns, parts in held
            ]
        )


def mixed_low_rank(held: Sequence[tuple[Columns, Sequence[Product | None]]]) -> Mixed:
    """`Part.mixed` for products of any ranks: down [r, K], up [N, r] and a factor.

    Of one token a row, all adapters stand side by side: one product into the ranks of all places of the layer, a mask over what is not a
    row's own, and one product out of them for each place. Of several tokens each row is multiplied by its own matrices.
    S-LoRA (arXiv:2311.03285) and Punica (arXiv:2310.18547) gather in kernels what is masked here.
    """
    places = [_Place(columns, products) for columns, products in held]
    down_KR = torch.cat([place.down_RK for place in places]).T.contiguous()
    own_AR = torch.cat([place.own_AR for place in places], 1)
    masks: list[tuple[Numbers, torch.Tensor]] = []

    def own_of(number_B: Numbers) -> torch.Tensor:
        """float[B, R], or float[R] for all rows: what each rank counts. The same rows come for many steps."""
        known = masks[0] if masks else None
        if known is None or known[0] is not number_B:
            known = (number_B, own_AR[0] if number_B is None else own_AR[number_B])
            masks[:] = [known]  # other threads may exchange it at once: what is returned is our own
        return known[1]

    def apply(input_BX: torch.Tensor, output_BN: torch.Tensor, number_B: Numbers) -> torch.Tensor:
        read_BX = input_BX.to(down_KR.dtype)
        if number_B is None or read_BX.ndim == 2 or read_BX[0, ..., 0].numel() <= MANY_TOKENS:
            own = own_of(number_B)
            own = own if number_B is None else own.view(len(number_B), *[1] * (read_BX.ndim - 2), -1)
            inner_BR, start = read_BX @ down_KR * own, 0
            for place in places:
                own_BR = inner_BR[..., start : start + len(place.up_RN)]
                part_BN = output_BN if place.columns is None else output_BN[..., slice(*place.columns)]
                if output_BN.dtype == own_BR.dtype and output_BN.is_contiguous():
                    part_BN.view(-1, part_BN.shape[-1]).addmm_(own_BR.flatten(0, -2), place.up_RN)
                else:
                    part_BN += own_BR @ place.up_RN
                start += len(place.up_RN)
            return output_BN
        for place in places:
            part_BN = output_BN if place.columns is None else output_BN[..., slice(*place.columns)]
            part_BN += place.each_row(read_BX.flatten(1, -2), number_B).view(part_BN.shape)
        return output_BN

    return apply


class _Place:
    """The products of one place, side by side."""

    def __init__(self, columns: Columns, products: Sequence[Product | None]) -> None:
        self.columns, self.products = columns, products
        real = [one for one in products if one is not None]
        self.down_RK = torch.cat([down for down, _, _ in real])
        self.up_RN = torch.cat([up for _, up, _ in real], 1).T.contiguous()
        # The factor where a rank is an adapter's own, else 0.
        self.own_AR = self.down_RK.new_zeros(len(products) + 1, len(self.down_RK))
        start = 0
        for number, one in enumerate(products):
            if one is not None:
                self.own_AR[number, start : start + len(one[0])] = one[2]
                start += len(one[0])
        self._stacked: tuple[torch.Tensor, torch.Tensor] | None = None

    def each_row(self, input_BTK: torch.Tensor, number_B: Numbers) -> torch.Tensor:
        """What each row's own product gives, float[B, T, N]."""
        down_ArK, up_ArN = self._filled() if self._stacked is None else self._stacked
        return input_BTK @ down_ArK[number_B].transpose(1, 2) @ up_ArN[number_B]

    def _filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The products filled up to one rank, [A + 1, r, K] with the factor and [A + 1, r, N]; what is none is zeros."""
        longest = max(len(one[0]) for one in self.products if one is not None)
        downs, ups = [], []
        for one in (*self.products, None):
            if one is None:
                downs.append(self.down_RK.new_zeros(longest, self.down_RK.shape[1]))
                ups.append(self.up_RN.new_zeros(longest, self.up_RN.shape[1]))
            else:
                more = longest - len(one[0])
                downs.append(pad(one[0] * one[2], (0, 0, 0, more)))
                ups.append(pad(one[1].T, (0, 0, 0, more)))
        self._stacked = torch.stack(downs), torch.stack(ups)
        return self._stacked


class LowRankEmbedding(nn.Module):
    """output + scale * up(row of down) for an embedding [V, W]: down [r, V] zeros, up [W, r] drawn."""

    additive = True

    def __init__(self, place: Place, *, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(rank, place.inputs, device=place.device))
        self.up = nn.Parameter(torch.randn(place.outputs, rank, device=place.device))
        self.scale = scale
        self.place = (place,)  # in a tuple, so that its layer is no part of this one

    def added(self, input_BT: torch.Tensor) -> torch.Tensor:
        """What is added to the output; some embeddings multiply what they read (Gemma)."""
        stretch: Any = getattr(self.place[0].layer, "embed_scale", 1.0)
        found: torch.Tensor = embedding(input_BT, self.down.T) @ self.up.T * self.scale * stretch
        return found

    def after(self, input_BT: torch.Tensor, output_BTW: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        return output_BTW + self.added(input_BT).to(output_BTW.dtype)

    def merged(self, weight_VW: torch.Tensor, bias: None) -> tuple[torch.Tensor, None]:
        """As `zoo.api.Part`."""
        return weight_VW + self.change(), bias

    def change(self) -> torch.Tensor:
        """What is added to the weight, float[V, W]."""
        change: torch.Tensor = self.scale * (self.up @ self.down).T
        return change


class Convolved(nn.Module):
    """scale * up(down(input)) for a convolution: down is one like the layer's with r outputs, up has kernels of 1, in as many groups."""

    def __init__(self, place: Place, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        layer: Any = place.layer
        if layer.padding_mode != "zeros":
            raise UsageError(
                f"{place.name} is a convolution with padding {layer.padding_mode!r}, LoRA takes zeros: leave it out"
            )
        self.groups = int(layer.groups)
        if rank % self.groups:
            raise UsageError(
                f"{place.name} is a convolution in {self.groups} groups, which r must be divisible by, got {rank}: leave it out"
            )
        size = layer.kernel_size
        self.down = nn.Parameter(torch.empty(rank, place.inputs, *size, device=place.device))
        self.up = nn.Parameter(torch.zeros(place.outputs, rank // self.groups, *[1] * len(size), device=place.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.shape = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        self.convolve = getattr(nn.functional, f"conv{len(size)}d")

    def read(self, input_BCX: torch.Tensor) -> torch.Tensor:
        """What the product is given: in training some of it is dropped."""
        read_BCX = input_BCX.to(self.down.dtype)
        return read_BCX if self.dropout is None else self.dropout(read_BCX)

    def forward(self, read_BCX: torch.Tensor) -> torch.Tensor:
        """float[B, C, ...] -> what is added to the output."""
        inner: torch.Tensor = self.convolve(read_BCX, self.down, **self.shape)
        added: torch.Tensor = self.convolve(inner, self.up, groups=self.groups) * self.scale
        return added

    def change(self) -> torch.Tensor:
        """What is added to the weight, float[N, K, ...], in one group."""
        change: torch.Tensor = self.scale * (self.up.flatten(1) @ self.down.flatten(1))
        return change.view(len(self.up), *self.down.shape[1:])


class LowRankGroups(nn.Module):
    """output + product for a convolution in groups. Each output reads all groups' inputs by the product, so it is no change of the weight."""

    additive = True

    def __init__(self, place: Place, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.product = Convolved(place, rank=rank, scale=scale, dropout=dropout)

    def after(self, input_BCX: torch.Tensor, output_BCX: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        added_BCX: torch.Tensor = self.product(self.product.read(input_BCX))
        return output_BCX + added_BCX.to(output_BCX.dtype)


class LowRankConvolution(nn.Module):
    """output + product for a convolution in one group."""

    additive = True

    def __init__(self, place: Place, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.product = Convolved(place, rank=rank, scale=scale, dropout=dropout)

    def after(self, input_BCX: torch.Tensor, output_BCX: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        added_BCX: torch.Tensor = self.product(self.product.read(input_BCX))
        return output_BCX + added_BCX.to(output_BCX.dtype)

    def merged(self, weight_NKX: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        return weight_NKX + self.product.change(), bias_N


def product_of(part: Any) -> Any:
    """What holds the matrices of a part: itself, or its product."""
    return getattr(part, "product", part)


def lora(
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
    """LoRA on linear layers, embeddings and convolutions. As it begins it changes nothing.

    r: the rank. alpha: the product counts alpha / r, or alpha / sqrt(r) where rank_stabilised (Kalajdzievski 2023, arXiv:2312.03732).
    dropout: of what the product reads, in training. ranks, alphas: of some of the targets, where they differ; a rank given so may be above
        the width of its place. whole: modules that are trained whole beside it, as heads and norms ("modules_to_save" of HF PEFT).
    Raises UsageError for a target that names nothing, and a rank below 1 or above the width of a place.
    """
    parts: dict[str, nn.Module] = {}
    own_ranks, own_alphas = by_place(base, ranks), by_place(base, alphas)
    for place in base.chosen(targets):
        own = own_ranks.get(place.name, r)
        require_rank(own, place, widest=place.name not in own_ranks)
        scale = scale_of(own, own_alphas.get(place.name, alpha), rank_stabilised=rank_stabilised)
        if place.kind == "embedding":
            parts[place.name] = LowRankEmbedding(place, rank=own, scale=scale)
        elif place.kind == "convolution":
            layer: Any = place.layer
            make = LowRankConvolution if layer.groups == 1 else LowRankGroups
            parts[place.name] = make(place, rank=own, scale=scale, dropout=dropout)
        else:
            parts[place.name] = LowRank(place, rank=own, scale=scale, dropout=dropout)
    return with_whole(base, parts, whole, combine=combined)


def combined(
    base: Base,
    adapters: Sequence[Adapter],
    factors: Sequence[float],
    *,
    how: str = "concatenation",
    r: int | None = None,
    density: float | None = None,
    majority_sign: str = "total",
) -> Adapter:
    """One LoRA made of several, each with a factor.

    how: "concatenation": ranks add up, and so do the changes, exactly. "svd": what is nearest to that, in rank `r` (None: the greatest of
    theirs). "sum": matrices of one rank are added, each times the root of its factor, which is no sum of the changes ("linear" of HF PEFT).
    The other `zoo_adapters.combining.WAYS` are those of HF PEFT, too.
    density: the share of the numbers that is kept, where some are dropped. majority_sign: "total" or "frequency", where signs are elected.
    Raises UsageError for another way, ranks that differ where matrices are joined, convolutions in groups, and modules trained whole.
    """
    way = Way(how=how, r=r, density=density, majority_sign=majority_sign)
    order = {name: number for number, name in enumerate(base.places)}
    names = dict.fromkeys(place for adapter in adapters for place in adapter.places)
    parts: dict[str, nn.Module] = {}
    for name in sorted(names, key=lambda one: order.get(one.partition("[")[0], len(order))):
        parts[name] = _combined_part(base, name, [adapter.part(name) for adapter in adapters], factors, way)
    adapter = Adapter(parts, combine=combined)
    ranks = {name: len(product_of(part).down) for name, part in adapter.named_parts()}
    adapter.options = {
        "targets": list(parts),
        "ranks": ranks,
        "alphas": {name: float(rank) for name, rank in ranks.items()},
    }
    return adapter


def _combined_part(base: Base, name: str, held: Sequence[Any], factors: Sequence[float], way: Way) -> nn.Module:
    """The part of a combination at a place, of those that have one there."""
    pairs = [(part, factor) for part, factor in zip(held, factors, strict=True) if part is not None]
    if not all(isinstance(part, LowRank | LowRankEmbedding | LowRankConvolution) for part, _ in pairs):
        raise UsageError(f"{name} is trained whole or a convolution in groups, and such parts are not combined")
    products = [product_of(part) for part, _ in pairs]
    matrices = [(one.down.detach().flatten(1), one.up.detach().flatten(1), one.scale) for one in products]
    (place,) = base.chosen([name])
    turned = place.turned or place.kind == "embedding"
    down_rK, up_Nr = combined_product(matrices, [factor for _, factor in pairs], way, turned=turned)
    rank = len(down_rK)
    part: nn.Module
    if place.kind == "embedding":
        part = LowRankEmbedding(place, rank=rank, scale=1.0)
    elif place.kind == "convolution":
        part = LowRankConvolution(place, rank=rank, scale=1.0, dropout=0.0)
    else:
        part = LowRank(place, rank=rank, scale=1.0, dropout=0.0)
    product = product_of(part)
    product.down = nn.Parameter(down_rK.view(product.down.shape))
    product.up = nn.Parameter(up_Nr.view(product.up.shape))
    return part


def scale_of(rank: int, alpha: float, *, rank_stabilised: bool) -> float:
    """What a product of this rank counts. Raises UsageError for an alpha that is not above 0."""
    if not isinstance(alpha, (int, float)) or not alpha > 0:
        raise UsageError(f"alpha is a number above 0, got {alpha!r}")
    return alpha / math.sqrt(rank) if rank_stabilised else alpha / rank


def by_place(base: Base, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is given by targets, by the names of their places. Raises UsageError for a target that names nothing."""
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"ranks and alphas are tables of targets, {{'query': 4}} in Python, got {given!r:.60}")
    return {place.name: value for target, value in (given or {}).items() for place in base.chosen([target])}


def require_rank(rank: int, place: Place, *, widest: bool = True) -> None:
    """Raise UsageError for a rank below 1, and for one above the width of the place where that is not asked for by name."""
    kernel = math.prod(getattr(place.layer, "kernel_size", ()))
    most = min(place.inputs * kernel, place.outputs)
    if not isinstance(rank, int) or rank < 1 or (widest and rank > most):
        raise UsageError(
            f"r must be a whole number from 1 to {most}, the lesser width of {place.name} [{place.outputs}, {place.inputs * kernel}], got {rank!r}"
        )
