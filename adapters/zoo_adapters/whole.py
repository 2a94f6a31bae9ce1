"""Modules that are trained whole beside an adapter, in weights of their own: a new head, an embedding with new tokens, norms."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zoo.api import Adapter, Base, Place, UsageError


class Whole(nn.Module):
    """What the layer gives with this weight and bias in place of its own."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        weight, bias = place.tensors()
        self.weight = nn.Parameter(weight.detach().float().clone().contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self.place = (place,)  # in a tuple, so that its layer is no part of this one

    def after(self, input_BX: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        """As `zoo.api.Part`."""
        (place,) = self.place
        read_BX = input_BX.to(self.weight.dtype) if input_BX.is_floating_point() else input_BX
        if place.kind == "linear":
            return nn.functional.linear(read_BX, self.weight, self.bias).to(output_BN.dtype)
        twin: Any = copy.copy(place.layer)  # all else of the layer is the same: strides, padding, epsilon
        twin.__dict__["_parameters"] = {"weight": self.weight, "bias": self.bias}
        found: torch.Tensor = type(twin).forward(twin, read_BX)
        return found.to(output_BN.dtype)

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `zoo.api.Part`."""
        del weight, bias
        return self.weight, self.bias


def with_whole(base: Base, parts: Mapping[str, nn.Module], whole: Sequence[str] | str, **options: Any) -> Adapter:
    """An adapter of parts, and of the modules that `whole` names. Raises UsageError for one that has a part already."""
    held = dict(parts)
    for place in base.whole(whole):
        if place.name in held:
            raise UsageError(f"{place.name} is trained whole, so it needs no other part: leave it out of the targets")
        held[place.name] = Whole(place)
    return Adapter(held, **options)
