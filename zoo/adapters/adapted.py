"""Adapters on the layers of a model: which of them each row of a call takes, and how that reaches the layers.

The model's own modules, tensors and state dict stay as they are: hooks on the layers ask, at each call, what was chosen. A choice
holds for a block of code in one thread (`Adapted.using`), for as long as a cache lives (`Cache.adapters`), or until another is made
(`Adapted.active`).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from zoo.adapters.adapted_attention import attend
from zoo.adapters.adapter import Adapter, Held
from zoo.adapters.routing import Choice, Mix
from zoo.adapters.target_modules import Place, places_of
from zoo.errors import UsageError
from zoo.nn.cache import Cache
from zoo.nn.stamp import adapters_on, stamp_of

# By the id of what is adapted.
_choices: ContextVar[Mapping[int, Choice]] = ContextVar("zoo_adapters", default=MappingProxyType({}))
NAME = "zoo_adapters"  # of the attribute by which a model knows its own


class AdaptedLayer:
    """The hooks on one layer of a model, and the places whose outputs are its own."""

    def __init__(self, adapted: Adapted, layer: nn.Module) -> None:
        self.adapted = adapted
        self.layer = layer
        self.places: dict[str, Place] = {}
        self.changes_input = False
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Let calls of the layer come by here."""
        if isinstance(self.layer, nn.MultiheadAttention):
            self.layer.forward = self._attend  # type: ignore[method-assign]  # it calls no layer that a hook could stand on
        self._handles = [
            self.layer.register_forward_pre_hook(self._before, with_kwargs=True),
            self.layer.register_forward_hook(self._after, with_kwargs=True),
        ]

    def detach(self) -> None:
        """Leave the layer as it was."""
        for handle in self._handles:
            handle.remove()
        if isinstance(self.layer, nn.MultiheadAttention):
            del self.layer.forward

    def __call__(self, weight_name: str, input_BX: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        """What comes of the outputs of one weight of the layer."""
        choice = self.adapted.running()
        changes = choice.changes(self, "after", weight_name)
        if not changes:
            return output_BN
        number_B = self._numbers(choice, output_BN)
        try:
            for change in changes:
                output_BN = change(input_BX, output_BN, number_B)
        except RuntimeError as error:
            self._explain(choice, output_BN, error)
            raise
        return output_BN

    def _attend(self, *args: Any, **arguments: Any) -> Any:
        return attend(self.layer, self, *args, **arguments)

    def held(self, adapters: Sequence[Adapter], what: str, weight_name: str) -> Held:
        """Of each place that reads a weight, its columns and the part of each adapter that has `what`; places without any are left out."""
        found = []
        for name, place in self.places.items():
            if place.weight_name == weight_name:
                parts = [adapter.part(name) if adapter.scale != 0.0 else None for adapter in adapters]
                parts = [part if hasattr(part, what) else None for part in parts]
                if any(part is not None for part in parts):
                    found.append((place.columns, parts))
        return found

    def _before(
        self, _layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.changes_input:
            return None
        choice = self.adapted.running()
        original = changed = args[0] if args else next(iter(named.values()))
        for change in choice.changes(self, "before", "weight"):
            changed = change(changed, self._numbers(choice, changed))
        if changed is original:
            return None
        return ((changed, *args[1:]), named) if args else ((), {**named, next(iter(named)): changed})

    def _after(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if isinstance(layer, nn.MultiheadAttention):
            return output
        if len(layer._forward_hooks) > 1:  # noqa: SLF001 - somebody else may hold the output
            output = output.clone()
        return self("weight", args[0] if args else next(iter(named.values())), output)

    def _numbers(self, choice: Choice, rows_BX: torch.Tensor) -> torch.Tensor | None:
        if choice.batch is None:
            return None
        name, place = next(iter(self.places.items()))
        if len(rows_BX) != choice.batch or not place.keeps_rows:
            raise UsageError(
                f"{name} was called with {len(rows_BX)} rows for a batch of {choice.batch}: it does not keep the rows of a batch apart, so "
                f"they cannot take different adapters; leave it out of the targets, or ask row by row"
            )
        return choice.number(rows_BX.device)

    def _explain(self, choice: Choice, output_BN: torch.Tensor, error: RuntimeError) -> None:
        """Raise UsageError where an adapter lies on another device than the model."""
        adapters = choice.adapters
        away = next(
            (one.device for adapter in adapters for one in adapter.parameters() if one.device != output_BN.device), None
        )
        if away is not None:
            raise UsageError(
                f"an adapter lies on {away}, the model on {output_BN.device}: move it, adapters.to({str(output_BN.device)!r})"
            ) from error


class Adapted:
    """The adapters of one model, and the hooks by which they reach its layers. A model has at most one (`adapted_of`)."""

    def __init__(self, model: nn.Module) -> None:
        other = next((part for part in model.modules() if part.__dict__.get(NAME) is not None), None)
        if other is not None:
            raise UsageError(
                f"a part of this model ({type(other).__name__}) has adapters of its own: adapt that part, or remove them first"
            )
        self.model = model
        self.places = places_of(model)
        self.adapters: dict[str, Adapter] = {}
        self.active = Choice()
        self.merged: tuple[Adapter, ...] = ()  # into the weights
        self.layers: dict[nn.Module, AdaptedLayer] = {}
        self.owner: Any = None  # what manages them
        self.epoch = 0  # rises when an adapter can no longer be used as it could
        self._mixes: dict[tuple[Any, ...], Mix] = {}
        for part in self._holders():
            part.__dict__[NAME] = self

    def _holders(self) -> list[nn.Module]:
        """The model, and the decoders in it: they ask for their virtual tokens."""
        return [self.model, *(part for part in self.model.modules() if hasattr(part, "new_cache"))]

    def close(self) -> None:
        """Leave the model as it was."""
        for layer in self.layers.values():
            layer.detach()
        self.layers.clear()
        self.adapters.clear()
        self.active = Choice()
        for part in self._holders():
            part.__dict__.pop(NAME, None)

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
        self._forget()

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
        """One adapter, or None, for each row of a batch. Raises UsageError as `usable`, and where rows cannot be told apart."""
        found = [None if name is None else self.usable(name) for name in names]
        distinct = tuple(dict.fromkeys(adapter for adapter in found if adapter is not None))
        if len(distinct) + (None in found) > 1:
            self._refuse_sequences_first()
        mix = self._mix(distinct)
        places = {adapter: number for number, adapter in enumerate(mix.adapters)}
        return mix.choice([len(mix.adapters) if adapter is None else places[adapter] for adapter in found])

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
        return self._mix(choice.everywhere).choice([0, 0])

    def usable(self, name: str) -> Adapter:
        """As `find`; raises UsageError for one that is merged, too."""
        adapter = self.find(name)
        if any(adapter is one for one in self.merged):
            raise UsageError(f"{name!r} is merged into the weights and works in every call: unmerge() first")
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
        rows = [f"{row}:{key}" if choice.batch else key for row in range(choice.batch or 1) if (key := choice.key(row))]
        return "|".join(filter(None, ("+".join(one.key for one in self.merged), *rows)))

    def stamp(self) -> int:
        """A number that changes when what is active does, or a tensor of it."""
        return hash((id(self), *((id(one), one.scale, stamp_of(one)) for one in self.active.everywhere)))


def adapted_of(model: Any) -> Adapted | None:
    """The adapters of a model, those of its decoder where it has none of its own."""
    found: Adapted | None = getattr(model, "__dict__", {}).get(NAME)
    if found is None:
        decoder = getattr(model, "decoder", None)
        found = getattr(decoder, "__dict__", {}).get(NAME) if isinstance(decoder, nn.Module) else None
    return found


def learns(module: nn.Module) -> bool:
    """Whether something is trained in a module, or in an adapter on it that calls take now."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    owners = {id(owner): owner for part in module.modules() for owner in adapters_on(part)}
    inside = set(module.modules())
    return any(
        parameter.requires_grad
        for owner in owners.values()
        for layer in owner.layers.values()
        if layer.layer in inside
        for adapter in owner.chosen().adapters
        for place in layer.places
        if (part := adapter.part(place)) is not None
        for parameter in part.parameters()
    )


def adapters_key(*models: nn.Module, but: Adapted | None = None) -> str:
    """`Adapted.key` of the adapters on models and on parts of them; empty where there are none. but: whose are left out."""
    found = [owner for model in models for part in model.modules() for owner in adapters_on(part)]
    owners = {id(owner): owner for owner in found if owner is not but}
    return "/".join(filter(None, (owner.key() for owner in owners.values())))


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


@contextlib.contextmanager
def chosen_by(model: Any, cache: Cache | None) -> Iterator[None]:
    """Let the calls in this block take what a cache was begun with."""
    adapted = adapted_of(model)
    if adapted is None:
        yield
        return
    # What is chosen now holds to the end of the call, whatever other threads choose meanwhile.
    choice = adapted.chosen() if cache is None or cache.adapters is None else cache.adapters
    with adapted.using(adapted.checked(choice)):
        yield


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known) or 'none'}"
    return f"this model has no adapter {name!r}{hint}"
