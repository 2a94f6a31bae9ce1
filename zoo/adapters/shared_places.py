"""Where two adapters change outputs in common, and whether one of them may then be in the weight and the other not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from zoo.adapters.adapter import Adapter
from zoo.adapters.routing import own_of
from zoo.adapters.target_modules import Place, chosen_places, norms_of, overlaps


def is_additive(part: Any) -> bool:
    """Whether the change that a part makes depends neither on the weight nor on the output of its place."""
    return bool(own_of(type(part), "additive", "after"))


def places_under(places: Mapping[str, Place], model: nn.Module, adapter: Adapter) -> list[Place]:
    """The places of a model where an adapter has parts. places: those of its layers, by name."""
    known = {**places, **norms_of(model)}
    return [place for name in adapter.places for place in chosen_places(known, [name])]


def shared_places(
    places: Mapping[str, Place], model: nn.Module, adapter: Adapter, other: Adapter
) -> Iterator[tuple[Place, Place]]:
    """Places of one adapter and of another that have outputs in common. places: as of `places_under`."""
    own, others = places_under(places, model, adapter), places_under(places, model, other)
    yield from ((place, place) for place in own if other.part(place.name) is not None)
    for one, two in overlaps({place.name: place for place in (*own, *others)}.values()):
        for first, second in ((one, two), (two, one)):
            if adapter.part(first.name) is not None and other.part(second.name) is not None:
                yield first, second
