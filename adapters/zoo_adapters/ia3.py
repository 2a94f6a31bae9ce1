"""IA3: vectors of ones that stretch what some layers give, or what they are given (Liu et al. 2022, arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from zoo.api import Adapter, Base, Held, Mixed, Numbers, Place, UsageError
from zoo_adapters.whole import with_whole

TARGETS = ("key", "value", "down")
FEED_FORWARD = ("down",)


class StretchedOutput(nn.Module):
    """output * stretch, float[N]."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.ones(place.outputs, device=place.device))

    def after(self, input_BK: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        del input_BK
        return output_BN * self.stretch.to(output_BN.dtype)

    def merged(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        return weight_NK * self.stretch[:, None], None if bias_N is None else bias_N * self.stretch

    @staticmethod
    def mixed(held: Held, scales: Sequence[float]) -> Mixed:
        """As `zoo.api.Part`."""
        tables = [(columns, _table(parts, scales)) for columns, parts in held]

        def apply(input_BX: torch.Tensor, output_BN: torch.Tensor, number_B: Numbers) -> torch.Tensor:
            del input_BX
            for columns, stretch_AN in tables:
                part_BN = output_BN if columns is None else output_BN[..., slice(*columns)]
                part_BN *= of_rows(stretch_AN, number_B, output_BN)
            return output_BN

        return apply


class StretchedInput(nn.Module):
    """The layer is given input * stretch, float[K]: for the last layer of a feed-forward."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.ones(place.inputs, device=place.device))

    def before(self, input_BK: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        return input_BK * self.stretch.to(input_BK.dtype)

    def merged(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        return weight_NK * self.stretch, bias_N

    @staticmethod
    def mixed_before(parts: Sequence[Any], scales: Sequence[float]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """As `zoo.api.Part`."""
        stretch_AK = _table(parts, scales)

        def apply(input_BX: torch.Tensor, number_B: Numbers) -> torch.Tensor:
            return input_BX * of_rows(stretch_AK, number_B, input_BX)

        return apply


class StretchedChannels(nn.Module):
    """output * stretch, float[N], for the channels of a convolution."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.ones(place.outputs, device=place.device))

    def after(self, input_BCX: torch.Tensor, output_BNX: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        column = (-1, *[1] * (input_BCX.ndim - 2))
        return output_BNX * self.stretch.view(column).to(output_BNX.dtype)

    def merged(self, weight: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        stretched = weight * self.stretch.view(-1, *[1] * (weight.ndim - 1))
        return stretched, None if bias_N is None else bias_N * self.stretch


class StretchedInputChannels(nn.Module):
    """A convolution is given input * stretch, float[K]."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        layer: Any = place.layer
        self.stretch = nn.Parameter(torch.ones(place.inputs, device=place.device))
        self.groups = int(layer.groups)

    def before(self, input_BCX: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        return input_BCX * self.stretch.view(-1, *[1] * (input_BCX.ndim - 2)).to(input_BCX.dtype)

    def merged(self, weight: torch.Tensor, bias_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`: each group of the outputs reads the inputs of its own."""
        stretch_NK = self.stretch.view(self.groups, -1).repeat_interleave(len(weight) // self.groups, 0)
        return weight * stretch_NK.view(*weight.shape[:2], *[1] * (weight.ndim - 2)), bias_N


def _table(parts: Sequence[Any], scales: Sequence[float]) -> torch.Tensor:
    """The stretches of all, float[A + 1, N]; ones for those that have none."""
    ones = torch.ones_like(next(part.stretch for part in parts if part is not None))
    rows = [
        ones if part is None else ones + scale * (part.stretch - ones) for part, scale in zip(parts, scales, strict=True)
    ]
    return torch.stack([*rows, ones])


def of_rows(table_AN: torch.Tensor, number_B: Numbers, like: torch.Tensor) -> torch.Tensor:
    """The row of a table for each row of a batch, to be multiplied with `like` float[B, ..., N]; None: the first for all."""
    if number_B is None:
        return table_AN[0].to(like.dtype)
    return table_AN[number_B].view(len(number_B), *[1] * (like.ndim - 2), -1).to(like.dtype)


def ia3(
    base: Base,
    *,
    targets: Sequence[str] | str = TARGETS,
    feed_forward: Sequence[str] | str = FEED_FORWARD,
    whole: Sequence[str] | str = (),
) -> Adapter:
    """IA3 on linear layers and convolutions. As it begins it changes nothing.

    feed_forward: targets whose inputs are stretched instead of their outputs; they need not be named twice. whole: as of LoRA.
    Raises UsageError for a target that names nothing, and for an embedding.
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    feed_forward = [feed_forward] if isinstance(feed_forward, str) else list(feed_forward)
    inputs = {place.name for place in base.chosen(feed_forward)} if feed_forward else set()
    parts: dict[str, nn.Module] = {}
    for place in base.chosen([*targets, *feed_forward]):
        if place.kind == "embedding":
            raise UsageError(f"IA3 is for linear layers and convolutions, {place.name} is an embedding: leave it out")
        if place.name in inputs and place.columns is not None:
            raise UsageError(
                f"the inputs of {place.name} are those of a joined layer, which others read: stretch its outputs"
            )
        if place.kind == "convolution":
            parts[place.name] = StretchedInputChannels(place) if place.name in inputs else StretchedChannels(place)
        else:
            parts[place.name] = StretchedInput(place) if place.name in inputs else StretchedOutput(place)
    return with_whole(base, parts, whole, learning_rate=2e-2)
