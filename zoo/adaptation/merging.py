"""Adapters into the weights and out again. The weights that were there are kept, so coming back is exact in every number format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.nn.adapted import Adapted
from zoo.nn.adapter import Adapter, scaled
from zoo.nn.places import Place, chosen_places

Originals = list[tuple[torch.Tensor, torch.Tensor]]  # a weight of the model, and what it held


@torch.no_grad()
def merge(adapted: Adapted, names: Sequence[str]) -> Originals:
    """Change the weights of the model to what they are under these adapters, one after another; returns what is needed to undo it.

    Sums are in float32 and rounded once. Raises UsageError, before anything is changed, for an adapter that is no change of weights and
    for a layer that a kernel rounded.
    """
    adapters = [(name, adapted.find(name)) for name in names]
    places = [place for name, adapter in adapters for place in _mergeable(adapted, name, adapter)]
    originals: Originals = []
    known: set[int] = set()
    for place in places:
        for tensor in place.tensors():
            whole = None if tensor is None else _whole(tensor)
            if whole is not None and id(whole) not in known:
                known.add(id(whole))
                originals.append((whole, whole.detach().clone()))
    for place in dict.fromkeys(places):
        weight, bias = place.tensors()
        merged, merged_bias = weight.float(), None if bias is None else bias.float()
        for _, adapter in adapters:
            part: Any = adapter.part(place.name)
            if part is None:
                continue
            changed, changed_bias = part.merged(merged, merged_bias)
            merged = scaled(changed, merged, adapter.scale)
            if changed_bias is not None and merged_bias is not None:
                merged_bias = scaled(changed_bias, merged_bias, adapter.scale)
        weight.copy_(merged)
        if bias is not None and merged_bias is not None:
            bias.copy_(merged_bias)
    return originals


@torch.no_grad()
def unmerge(originals: Originals) -> None:
    """Give the weights back what they held."""
    for tensor, held in originals:
        tensor.copy_(held)


def places_under(adapted: Adapted, adapter: Adapter) -> list[Place]:
    """The places where an adapter has parts."""
    return [
        adapted.places[name] if name in adapted.places else chosen_places(adapted.places, [name])[0]
        for name in adapter.places
    ]


def _mergeable(adapted: Adapted, name: str, adapter: Adapter) -> list[Place]:
    if adapter.virtual is not None:
        raise UsageError(
            f"{name!r} ({adapter.method}) puts tokens before others, which no weight holds: it cannot be merged"
        )
    places = places_under(adapted, adapter)
    for place in places:
        part = adapter.part(place.name)
        if not hasattr(part, "merged"):
            raise UsageError(
                f"{name!r} ({adapter.method}) changes {place.name} by more than its weight: it cannot be merged"
            )
        place.tensors()
        if place.kind == "embedding" and any(_is_tied(part, place.layer) for part in adapted.model.modules()):
            raise UsageError(
                f"{place.name} is the head of the decoder, too, which {name!r} leaves as it is: it cannot be merged"
            )
    return places


def _is_tied(module: Any, embedding: nn.Module) -> bool:
    return getattr(module, "embedding", None) is embedding and getattr(module, "head", embedding) is None


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The parameter that a slice is of."""
    return tensor if tensor._base is None else tensor._base  # noqa: SLF001 - torch has no other name for it
