"""Adapters into the weights and out again. The weights that were there are kept, so coming back is exact in every number format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.adapters.adapted import Adapted
from zoo.adapters.adapter import Adapter, scaled
from zoo.adapters.target_modules import Place, chosen_places
from zoo.errors import UsageError

Originals = list[tuple[torch.Tensor, torch.Tensor]]  # a weight of the model, and what it held


@torch.no_grad()
def merge(adapted: Adapted, names: Sequence[str]) -> Originals:
    """Change the weights of the model to what they are under these adapters, one after another; returns what is needed to undo it.

    Sums are in float32 and rounded once. Raises UsageError for an adapter that is no change of weights, for a layer that a kernel rounded
    and for a weight that others use, too; nothing is changed then, nor where a method raises.
    """
    adapters = [(name, adapted.find(name)) for name in names]
    shared = _shared_parameters(adapted.model)
    places = [place for name, adapter in adapters for place in _mergeable(adapted, name, adapter, shared)]
    written: list[tuple[torch.Tensor, torch.Tensor]] = []
    for place in {place.name: place for place in places}.values():
        weight, bias = place.tensors()
        merged, merged_bias = weight.float(), None if bias is None else bias.float()
        parts: list[tuple[Any, float]] = [(adapter.part(place.name), adapter.scale) for _, adapter in adapters]
        # What changes the input stands before everything that reads it.
        for part, scale in sorted((one for one in parts if one[0] is not None), key=lambda one: hasattr(one[0], "before")):
            changed, changed_bias = part.merged(merged, merged_bias)
            merged = scaled(changed, merged, scale)
            if changed_bias is not None and merged_bias is not None:
                merged_bias = scaled(changed_bias, merged_bias, scale)
        written.append((weight, merged))
        if bias is not None and merged_bias is not None:
            written.append((bias, merged_bias))
    wholes = {id(whole): whole for whole in (_whole(tensor) for tensor, _ in written)}
    originals = [(whole, whole.detach().clone()) for whole in wholes.values()]
    for tensor, merged in written:
        tensor.copy_(merged)
    return originals


@torch.no_grad()
def unmerge(originals: Originals) -> None:
    """Give the weights back what they held."""
    for tensor, held in originals:
        tensor.copy_(held)


def places_under(adapted: Adapted, adapter: Adapter) -> list[Place]:
    """The places where an adapter has parts."""
    return [place for name in adapter.places for place in chosen_places(adapted.places, [name])]


def _mergeable(adapted: Adapted, name: str, adapter: Adapter, shared: set[int]) -> list[Place]:
    if adapter.virtual is not None:
        raise UsageError(
            f"{name!r} ({adapter.method}) puts tokens before others, which no weight holds: it cannot be merged"
        )
    places = places_under(adapted, adapter)
    for place in places:
        if not hasattr(adapter.part(place.name), "merged"):
            raise UsageError(
                f"{name!r} ({adapter.method}) changes {place.name} by more than its weight: it cannot be merged"
            )
        weight, _ = place.tensors()
        if id(_whole(weight)) in shared or any(_is_tied(one, place.layer) for one in adapted.model.modules()):
            raise UsageError(
                f"the weight of {place.name} is another layer's, too, which {name!r} leaves as it is: it cannot be merged"
            )
    return places


def _shared_parameters(model: nn.Module) -> set[int]:
    """The parameters that stand at several places of a model, by id."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {one for one, count in counts.items() if count > 1}


def _is_tied(module: Any, embedding: nn.Module) -> bool:
    return getattr(module, "embedding", None) is embedding and getattr(module, "head", embedding) is None


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The parameter that a slice is of."""
    return tensor if tensor._base is None else tensor._base  # noqa: SLF001 - torch has no other name for it
