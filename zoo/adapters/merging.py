"""Adapters into the weights and out again. The weights that were there are kept, so coming back is exact in every number format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from zoo.adapters.adapted import Adapted
from zoo.adapters.adapter import Adapter, scaled
from zoo.adapters.shared_places import is_additive, places_under, shared_places
from zoo.adapters.target_modules import Place, is_tied, overlaps
from zoo.errors import PluginError, UsageError

Originals = list[tuple[torch.Tensor, torch.Tensor]]  # a weight of the model, and what it held


@torch.no_grad()
def merge(adapted: Adapted, names: Sequence[str]) -> Originals:
    """Change the weights of the model to what they are under these adapters, one after another; returns what is needed to undo it.

    Adapters that are all active are merged in the order in which they are used, whatever that of their names.
    Sums are in float32 and rounded once. Raises UsageError for an adapter that is no change of weights, or of a bias that a layer does not
    have; for a layer that a kernel rounded or whose weight is computed, and for a weight that others use, too; for NaN and infinity, and
    where rounding leaves nothing of the change; for places that have only some outputs in common, and for a layer that an active
    adapter changes which is not merged and does more than add. Nothing is changed then, nor where a method raises.
    """
    adapters = [(name, adapted.find(name)) for name in names]
    active = adapted.active.everywhere
    if all(adapter in active for _, adapter in adapters):
        adapters.sort(key=lambda one: active.index(one[1]))
    shared = _shared_parameters(adapted.model)
    places = [place for name, adapter in adapters for place in _mergeable(adapted, name, adapter, shared)]
    _refuse_overlaps(adapters, places)
    _refuse_left_over(adapted, adapters)
    written: list[tuple[torch.Tensor, torch.Tensor]] = []
    lost = False
    for place in {place.name: place for place in places}.values():
        for tensor, merged in _merged(place, adapters):
            rounded = merged.to(tensor.dtype)
            _refuse_nonfinite(place, tensor, rounded, adapters)
            lost = lost or not torch.allclose(
                merged, tensor.float(), rtol=1e-5, atol=0
            )  # a fresh DoRA is a last digit away
            written.append((tensor, rounded))
    if lost and all(torch.equal(tensor, rounded) for tensor, rounded in written):
        raise UsageError(
            f"{_shown(adapters)} changes each weight by less than {written[0][0].dtype} tells apart, so that merging would leave the model as it "
            f"is: merge in float32 (model.float())"
        )
    wholes = {id(whole): whole for whole in (_whole(tensor) for tensor, _ in written)}
    originals = [(whole, whole.detach().clone()) for whole in wholes.values()]
    for tensor, rounded in written:
        tensor.copy_(rounded)
    return originals


def _merged(place: Place, adapters: Sequence[tuple[str, Adapter]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The tensors of a place, each with what it is under the adapters, in float32."""
    weight, bias = place.tensors()
    merged, merged_bias = weight.float(), None if bias is None else bias.float()
    parts: list[tuple[str, Any, float]] = [(name, adapter.part(place.name), adapter.scale) for name, adapter in adapters]
    parts = [one for one in parts if one[1] is not None]
    # What changes the input stands before everything that reads it.
    for name, part, scale in sorted(parts, key=lambda one: hasattr(one[1], "before")):
        changed, changed_bias = part.merged(merged, merged_bias)
        _require_shapes(place, part, (changed, changed_bias), (merged, merged_bias))
        merged = scaled(changed, merged, scale)
        if merged_bias is not None:
            merged_bias = scaled(changed_bias, merged_bias, scale)
        elif changed_bias is not None and bool(changed_bias.any()):
            raise UsageError(
                f"{name!r} gives {place.name} a bias, and the layer has none to hold it: it cannot be merged, use it as it is"
            )
    return [(weight, merged)] if bias is None or merged_bias is None else [(weight, merged), (bias, merged_bias)]


def _refuse_overlaps(adapters: Sequence[tuple[str, Adapter]], places: Sequence[Place]) -> None:
    """Raise UsageError where adapters stand on parts of a weight that overlap under other names: each place is merged by itself."""
    for one, other in overlaps({place.name: place for place in places}.values()):
        first, second = (
            next(name for name, adapter in adapters if adapter.part(place.name) is not None) for place in (one, other)
        )
        raise UsageError(
            f"{first!r} changes {one.name} and {second!r} changes {other.name}, which have outputs in common, so that they cannot be merged "
            f"together: train both for the same targets, or merge one of them alone"
        )


def _refuse_left_over(adapted: Adapted, adapters: Sequence[tuple[str, Adapter]]) -> None:
    """Raise UsageError where an active adapter is left on outputs that are merged: it may read the weight, or have come first."""
    merged = {adapter for _, adapter in adapters}
    names = {adapter: name for name, adapter in adapted.adapters.items()}
    left = [(names[one], one) for one in adapted.active.everywhere if one not in merged]
    for (name, adapter), (other_name, other) in product(adapters, left):
        for place, other_place in shared_places(adapted.places, adapted.model, adapter, other):
            if not (is_additive(adapter.part(place.name)) and is_additive(other.part(other_place.name))):
                raise UsageError(
                    f"{name!r} ({adapter.method}) is to be merged into {place.name}, and {other_name!r} ({other.method}), which is active "
                    f"there, is not: the answer would be another. Merge all active ones together, or use(...) without {other_name!r} first"
                )


def _require_shapes(
    place: Place, part: Any, found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None]
) -> None:
    """Raise PluginError where a part returns other tensors than it was given."""
    for name, one, other in zip(("weight", "bias"), found, expected, strict=True):
        if other is not None and getattr(one, "shape", None) != other.shape:
            shape = "None" if one is None else f"float{list(one.shape)}"
            raise PluginError(
                f"merged() of {type(part).__name__} must return the {name} of {place.name} as float{list(other.shape)}, got {shape}"
            )


def _refuse_nonfinite(
    place: Place, tensor: torch.Tensor, rounded: torch.Tensor, adapters: Sequence[tuple[str, Adapter]]
) -> None:
    """Raise UsageError where merging puts NaN or infinity where there was none."""
    if bool((tensor.isfinite() & ~rounded.isfinite()).any()):
        raise UsageError(
            f"merging {_shown(adapters)} would put NaN or infinity into {place.name} ({rounded.dtype}): look at the adapter's numbers, or "
            f"merge in float32 (model.float())"
        )


def _shown(adapters: Sequence[tuple[str, Adapter]]) -> str:
    return ", ".join(repr(name) for name, _ in adapters)


@torch.no_grad()
def unmerge(originals: Originals) -> None:
    """Give the weights back what they held."""
    for tensor, held in originals:
        tensor.copy_(held)


def _mergeable(adapted: Adapted, name: str, adapter: Adapter, shared: set[int]) -> list[Place]:
    if adapter.virtual is not None:
        raise UsageError(
            f"{name!r} ({adapter.method}) puts tokens before others, which no weight holds: it cannot be merged"
        )
    places = places_under(adapted.places, adapted.model, adapter)
    for place in places:
        if not hasattr(adapter.part(place.name), "merged"):
            raise UsageError(
                f"{name!r} ({adapter.method}) changes {place.name} by more than its weight: it cannot be merged"
            )
        weight, _ = place.tensors()
        computed = place.computed_tensor()
        if computed is not None:
            raise UsageError(
                f"the {computed} of {place.name} is computed from others at each call (weight norm and its kin), so {name!r} cannot be "
                f"merged: make it one tensor first (torch.nn.utils.parametrize.remove_parametrizations(layer, {computed!r}))"
            )
        if id(_whole(weight)) in shared or any(is_tied(one, place.layer) for one in adapted.model.modules()):
            raise UsageError(
                f"the weight of {place.name} is another layer's, too, which {name!r} leaves as it is: it cannot be merged"
            )
    return places


def _shared_parameters(model: nn.Module) -> set[int]:
    """The parameters that several layers of a model have, by id. One layer under two names has its own."""
    counts = Counter(id(one) for layer in model.modules() for one in layer.parameters(recurse=False))
    return {one for one, count in counts.items() if count > 1}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The parameter that a slice is of."""
    return tensor if tensor._base is None else tensor._base  # noqa: SLF001 - torch has no other name for it
