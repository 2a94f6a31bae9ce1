"""Adapters on the layers of a model: which of them each row of a call takes, and how that reaches the layers.

The model's own modules, tensors and state dict stay as they are: hooks on the layers ask, at each call, what was chosen. A choice
holds for a block of code in one thread (`Adapted.using`), for as long as a cache lives (`Cache.selection`), or until another is made
(`Adapted.active`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from zoo.adapters.adapted_layer import AdaptedLayer
from zoo.adapters.adapter import Adapter
from zoo.adapters.bare_layer import FusedLayer, encoder_layers
from zoo.adapters.routing import Choice, Mix, require_rows
from zoo.adapters.shared_places import is_additive, shared_places
from zoo.adapters.target_modules import Place, places_of
from zoo.adapters.virtual_tokens import begun
from zoo.errors import UsageError
from zoo.nn.cache import Cache
from zoo.nn.extension import ATTRIBUTE, extension_of
from zoo.nn.stamp import stamp_of
from zoo.registry.suggest import did_you_mean, nearest

# By the id of what is adapted.
_choices: ContextVar[Mapping[int, Choice]] = ContextVar("zoo_adapters", default=MappingProxyType({}))


class Adapted:
    """The adapters of one model, and the hooks by which they reach its layers: a `zoo.nn.extension.Extension`. A model has at most one."""

    def __init__(self, model: nn.Module) -> None:
        other = next((part for part in model.modules() if part.__dict__.get(ATTRIBUTE) is not None), None)
        if other is not None:
            raise UsageError(
                f"a part of this model ({type(other).__name__}) has adapters of its own: adapt that part, or remove them first"
            )
        self.model = model
        self.places = places_of(model)
        self.adapters: dict[str, Adapter] = {}
        self.active = Choice()
        self.merged: tuple[Adapter, ...] = ()  # into the weights
        self.originals: list[
            tuple[torch.Tensor, torch.Tensor]
        ] = []  # a weight, and what it held before something was merged into it
        self.active_before: tuple[str, ...] = ()  # something was merged
        self.trained_before: list[
            tuple[nn.Parameter, bool]
        ] = []  # the first adapter came: which parameters of the model were trained
        self.layers: dict[nn.Module, AdaptedLayer] = {}
        self.fused: list[FusedLayer] = []  # of torch, with some of these inside
        self._counting: Any = None  # a hook
        self.owner: Any = None  # what manages them
        self.epoch = 0  # rises when an adapter can no longer be used as it could
        self._mixes: dict[tuple[Any, ...], Mix] = {}
        for part in self._holders():
            part.__dict__[ATTRIBUTE] = self

    def _holders(self) -> list[nn.Module]:
        """The model, and the decoders in it: they ask for their virtual tokens."""
        return [self.model, *(part for part in self.model.modules() if hasattr(part, "new_cache"))]

    def close(self) -> None:
        """Leave the model as it was."""
        for layer in self.layers.values():
            layer.detach()
        self.layers.clear()
        self.adapters.clear()
        self._surround()
        self.active = Choice()
        for part in self._holders():
            part.__dict__.pop(ATTRIBUTE, None)

    def attach(self, name: str, adapter: Adapter, places: Sequence[Place]) -> None:
        """Let an adapter stand on the layers of its places; nothing is active yet.

        Raises UsageError for a part that changes what a layer is given where others are given the same, and for a model that hands its
        layers nested tensors.
        """
        for place in places:
            if hasattr(adapter.part(place.name), "before") and (place.columns is not None or place.weight_name != "weight"):
                raise UsageError(
                    f"what {place.name} reads, others of its layer read, too: {name!r} cannot change it for one of them"
                )
        nested = next((part for part in self.model.modules() if getattr(part, "use_nested_tensor", False)), None)
        if nested is not None:
            raise UsageError(
                f"{type(nested).__name__} makes nested tensors of padding: build it with enable_nested_tensor=False"
            )
        for place in places:
            layer = self.layers.get(place.layer)
            if layer is None:
                layer = self.layers[place.layer] = AdaptedLayer(self, place.layer)
                layer.attach()
            layer.places[place.name] = place
            layer.changes_input = layer.changes_input or hasattr(adapter.part(place.name), "before")
        self.adapters[name] = adapter
        self._surround()
        self._forget()

    def detach(self, name: str) -> None:
        """Forget an adapter; a layer on which none is left is as it was."""
        del self.adapters[name]
        used = {place for adapter in self.adapters.values() for place in adapter.places}
        for module, layer in list(self.layers.items()):
            layer.places = {place: found for place, found in layer.places.items() if place in used}
            if not layer.places:
                layer.detach()
                del self.layers[module]
        self._surround()
        self._forget()

    def _surround(self) -> None:
        """Stand, or no longer, on what holds the adapted layers: torch's encoder layers, and the model itself, whose rows are counted."""
        for one in self.fused:
            one.detach()
        self.fused = [FusedLayer(self, layer) for layer in encoder_layers(self.model, self.layers)]
        for one in self.fused:
            one.attach()
        if self._counting is not None:
            self._counting.remove()
            self._counting = None
        if self.layers and not any(
            hasattr(part, "new_cache") for part in self.model.modules()
        ):  # a decoder counts them itself
            self._counting = self.model.register_forward_pre_hook(self._count_rows, with_kwargs=True)

    def _count_rows(self, model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Raise UsageError for a call of the model with other rows than adapters were chosen for."""
        batch = self.chosen().batch
        if batch is not None:
            require_rows(model, (*args, *named.values()), batch)

    def frozen(self) -> set[int]:
        """While gradients flow, the ids of the parameters that were trained before the first adapter came."""
        return {id(one) for one, trained in self.trained_before if trained} if torch.is_grad_enabled() else set()

    def changes_in(self, part: nn.Module) -> bool:
        """Whether a call that runs now changes what a layer inside a part of the model gives."""
        choice = self.running()
        return any(layer.changed_by(choice) for one in part.modules() if (layer := self.layers.get(one)) is not None)

    def activate(self, adapters: Sequence[Adapter]) -> None:
        """What calls take for which nothing else is chosen."""
        self.active = Choice(adapters)
        self._mixes = {}
        self.epoch += 1

    def refresh(self) -> None:
        """Work out anew what layers need: a scale or a device is another."""
        self._forget()

    def _forget(self) -> None:
        self._mixes = {}
        self.epoch += 1
        self.active = Choice(
            [one for one in self.active.everywhere if any(one is known for known in self.adapters.values())]
        )

    def chosen(self) -> Choice:
        """What calls take here and now."""
        return _choices.get().get(id(self), self.active)

    def running(self) -> Choice:
        """As `chosen`, for a call that runs now. Raises UsageError where an adapter of it was removed or merged since it was chosen."""
        return self.checked(self.chosen())

    def checked(self, choice: Choice) -> Choice:
        """The choice, if it can be used now; raises as `running`."""
        if choice.checked != self.epoch:
            known = {id(one) for one in self.adapters.values()}
            for adapter in choice.adapters:
                if id(adapter) not in known:
                    raise UsageError(f"an adapter ({adapter.method}) was removed while it was in use: choose again")
                if any(adapter is one for one in self.merged):
                    raise UsageError(
                        f"an adapter ({adapter.method}) was merged while it was in use, and would count twice: choose again"
                    )
            choice.checked = self.epoch
        return choice

    def choice(self, names: Sequence[str | None]) -> Choice:
        """One adapter, or None, for each row of a batch. Raises UsageError as `usable`, for no row, and where rows cannot be told apart."""
        if not names:
            raise UsageError("adapters are chosen row by row by a list with a name or None for each row, got an empty one")
        found = [None if name is None else self.usable(name) for name in names]
        distinct = tuple(dict.fromkeys(adapter for adapter in found if adapter is not None))
        if len(distinct) + (None in found) > 1:
            self._refuse_sequences_first()
        mix = self._mix(distinct)
        places = {adapter: number for number, adapter in enumerate(mix.adapters)}
        return mix.choice([len(mix.adapters) if adapter is None else places[adapter] for adapter in found])

    def choice_of_all(self, name: str | None) -> Choice:
        """One adapter, or None, for all rows of any batch. Raises UsageError as `usable`."""
        return Choice() if name is None else self._mix((self.usable(name),)).all_alike(0)

    def _mix(self, adapters: tuple[Adapter, ...]) -> Mix:
        """As they are now; the last one is kept, for the calls that follow."""
        key = tuple((adapter, stamp_of(adapter), adapter.scale) for adapter in adapters)
        mix = self._mixes.get(key)
        if mix is None:
            mix = Mix(adapters)
            self._mixes = {key: mix}  # exchanged as a whole: other threads may be reading it
        return mix

    def settled(self) -> Choice:
        """What calls take here and now, as it is now: laid out for running."""
        choice = self.chosen()
        if choice.mix is not None or len(choice.everywhere) != 1:
            return choice
        return self._mix(choice.everywhere).all_alike(0)

    def usable(self, name: str) -> Adapter:
        """As `find`; raises UsageError for one that is merged, too, and one that would take another's change for the model's weight."""
        adapter = self.find(name)
        if any(adapter is one for one in self.merged):
            raise UsageError(f"{name!r} is merged into the weights and works in every call: unmerge() first")
        for other in self.merged:
            for place, _ in shared_places(self.places, self.model, adapter, other):
                if not is_additive(adapter.part(place.name)):
                    raise UsageError(
                        f"{name!r} ({adapter.method}) works by the weight or the output of {place.name}, into which an adapter "
                        f"({other.method}) is merged: the answer would be another than unmerged. unmerge() first, or merge both together"
                    )
        return adapter

    def find(self, name: str) -> Adapter:
        """An adapter by name. Raises UsageError, with suggestions."""
        if name in self.adapters:
            return self.adapters[name]
        raise UsageError(_unknown(name, list(self.adapters)))

    def _refuse_sequences_first(self) -> None:
        first = (
            f"{name} ({type(part).__name__})"
            for name, part in self.model.named_modules()
            if isinstance(part, (nn.MultiheadAttention, nn.TransformerEncoderLayer))
            and not getattr(part, "batch_first", getattr(getattr(part, "self_attn", None), "batch_first", True))
        )
        if (found := next(first, None)) is not None:
            raise UsageError(
                f"{found} has the batch as its second axis, so rows cannot take different adapters: build the model with "
                f"batch_first=True, or ask row by row"
            )

    @property
    def names(self) -> list[str]:
        """Of all adapters, in the order in which they came."""
        return list(self.adapters)

    @contextlib.contextmanager
    def using(self, choice: Choice) -> Iterator[None]:
        """Let the calls in this block, in this thread, take a choice."""
        token = _choices.set({**_choices.get(), id(self): choice})
        try:
            yield
        finally:
            _choices.reset(token)

    def key(self) -> str:
        """Of the content of all that shapes what calls give here and now; empty where nothing does."""
        choice = self.chosen()
        rows = [f"{row}:{key}" if choice.rows else key for row in range(len(choice.rows) or 1) if (key := choice.key(row))]
        return "|".join(filter(None, ("+".join(one.key for one in self.merged), *rows)))

    def stamp(self) -> int:
        """A number that changes when what is active does, or a tensor of it."""
        return hash((id(self), *((id(one), one.scale, stamp_of(one)) for one in self.active.everywhere)))

    def begin(self, model: nn.Module, batch: int, cache: Cache | None) -> Cache | None:
        """As `zoo.adapters.virtual_tokens.begun`, for what calls take here and now."""
        return begun(self.chosen(), model, batch, cache)

    @contextlib.contextmanager
    def during(self, cache: Cache | None) -> Iterator[None]:
        """Let the calls in this block take what a cache was begun with."""
        # What is chosen now holds to the end of the call, whatever other threads choose meanwhile.
        choice = self.chosen() if cache is None or cache.selection is None else cache.selection
        with self.using(self.checked(choice)):
            yield

    def reads_first(self) -> bool:
        """Whether calls now put virtual tokens before those of a row."""
        return any(adapter.virtual is not None for adapter in self.chosen().adapters)

    def learns_on(self, parts: set[nn.Module]) -> bool:
        """Whether an adapter that calls take now is trained on one of these layers."""
        return any(
            parameter.requires_grad
            for layer in self.layers.values()
            if layer.layer in parts
            for adapter in self.chosen().adapters
            for place in layer.places
            if (part := adapter.part(place)) is not None
            for parameter in part.parameters()
        )

    def keys_on(self, part: nn.Module, selection: Choice, rows: int) -> list[str]:
        """For each of so many rows the content of those of its adapters that stand on a part of the model."""
        inside = {id(one) for one in part.modules()}
        places = [place for layer in self.layers.values() if id(layer.layer) in inside for place in layer.places]
        return [
            "+".join(one.key for one in selection.adapters_of(row) if any(one.part(place) is not None for place in places))
            for row in range(rows)
        ]

    def hashes(self) -> dict[str, dict[str, str]]:
        """Of the adapters that are merged or that calls take here and now: name -> method -> sha256."""
        return {name: {one.method: one.key} for name, one in self._running()}

    def untrained(self) -> list[str]:
        """Of these, the names of those that are still as they were drawn."""
        return [name for name, one in self._running() if one.untrained]

    def _running(self) -> list[tuple[str, Adapter]]:
        """By name, what is merged and what calls take here and now."""
        names = {adapter: name for name, adapter in self.adapters.items()}
        return [(names[one], one) for one in (*self.merged, *self.chosen().adapters) if one in names]


def adapted_of(model: Any) -> Adapted | None:
    """The adapters of a model, those of its decoder where it has none of its own."""
    found = extension_of(model)
    return found if isinstance(found, Adapted) else None


def choice_for(model: Any, names: Sequence[str | None] | None, batch: int) -> Choice | None:
    """What `batch` prompts take: adapters by name, or where none are given what is chosen now; None for a model without any.

    Raises UsageError for names that are no list of one for each, and for unknown ones.
    """
    adapted = adapted_of(model)
    if names is None:
        choice = None if adapted is None else adapted.settled()
        if choice is not None and choice.batch not in (None, batch):
            raise UsageError(f"adapters are chosen for {choice.batch} rows, the batch has {batch}")
        return choice
    if isinstance(names, str) or len(names) != batch:
        given = repr(names) if isinstance(names, str) else str(len(names))
        raise UsageError(f"adapters are a list with a name or None for each of the {batch} rows, got {given}")
    if adapted is None:
        if any(name is not None for name in names):
            raise UsageError("this model has no adapters: zoo.adapt(model, ...) gives it one")
        return None
    return adapted.choice(names)


def room_for(context: int, prompt: int, choice: Choice | None, row: int = 0) -> int:
    """How many tokens fit after a prompt of so many and the virtual ones of its adapter. Raises UsageError for none."""
    virtual = 0 if choice is None else choice.virtual_count(row)
    if virtual and prompt + virtual >= context:
        raise UsageError(
            f"prompt {row} has {prompt:,} tokens and its adapter reads {virtual:,} before them; the model reads and writes at most "
            f"{context:,} together"
        )
    return context - prompt - virtual


def _unknown(name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(nearest(str(name), known), f"it has {', '.join(known) or 'none'}")
    return f"this model has no adapter {name!r}; {hint}"
