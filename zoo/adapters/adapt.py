"""`zoo.adapt`: adapters on a built model, by name."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.adapters import files, merging
from zoo.adapters.adapted import Adapted, adapted_of
from zoo.adapters.adapter import Adapter, finished
from zoo.adapters.shared_places import places_under
from zoo.adapters.target_modules import base_of, places_of
from zoo.errors import PluginError, UsageError, ZooError
from zoo.models.build import Built
from zoo.models.drawn import snapshot
from zoo.nn.kernels.seam import gradients_flow
from zoo.registry.lookup import Found, Registry, default_registry
from zoo.registry.plugin import describe


def adapt(model: Any, method: str, *, name: str = "default", activate: bool = True, **options: Any) -> Adapters:
    """Give a model an adapter, freeze everything else, and return all adapters of the model.

    model: a built module; or what `zoo.open_model`, `zoo.open_language_model` or `zoo.compose` returned.
    method: a card of kind adapter (`zoo list --kind adapter`); options are those of its builder.
    activate: let it be what calls take from now on, in place of what was.
    Raises UnknownNameError for an unknown method; UsageError for a name that is taken, options that the method does not have, and
    targets that name no layer, with what there is.
    """
    adapters = adapters_of(model)
    adapters.add(method, name=name, activate=activate, **options)
    return adapters


def adapters_of(model: Any) -> Adapters:
    """The adapters of a model (none, at first), as `adapt` returns them."""
    module = module_of(model)
    adapted = adapted_of(module)
    if adapted is None:
        adapted = Adapted(module)
    owner = adapted.owner
    if not isinstance(owner, Adapters):
        owner = adapted.owner = Adapters(adapted)
    if isinstance(built := built_of(model), Built):
        names = built.found.card.module_names
        inside = isinstance(getattr(module, "decoder", None), nn.Module)  # a composition goes by the card of its decoder
        owner.built = built
        owner.module_names = {f"decoder.{ours}": theirs for ours, theirs in names.items()} if inside else names
    return owner


def module_of(model: Any) -> nn.Module:
    """The module of what `zoo` functions return, or the module itself. Raises UsageError."""
    for name in ("module", "decoder"):
        part = getattr(model, name, None)
        if not isinstance(model, nn.Module) and isinstance(part, nn.Module):
            return part
    if isinstance(model, nn.Module):
        return model
    raise UsageError(f"a built model is adapted (zoo.build, zoo.open_model, zoo.open_language_model), got {model!r:.80}")


def built_of(model: Any) -> Any:
    """What a model was built from, where that is known."""
    return model if isinstance(model, Built) else getattr(model, "built", None)


class Adapters:
    """The adapters of one model. What is active is what calls take; `using` chooses for a block of code, also row by row.

    All state of the model and its adapters is in `adapted`; here is what a person asks of it.
    """

    def __init__(self, adapted: Adapted, registry: Registry | None = None) -> None:
        self.adapted = adapted
        self.registry = registry or default_registry()
        self.built: Built | None = None
        self.module_names: Mapping[str, str] = {}  # ours -> those of the library that HF PEFT adapts

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapters:
        """Of a copied model: adapters of its own, what they come from the same."""
        twin = memo[id(self)] = object.__new__(type(self))
        shared = ("registry", "built", "module_names")
        for name, value in vars(self).items():
            setattr(twin, name, value if name in shared else copy.deepcopy(value, memo))
        return twin

    def __repr__(self) -> str:
        held = ", ".join(f"{name} ({one.method})" for name, one in self.adapted.adapters.items())
        return f"Adapters of {type(self.model).__name__}: {held or 'none'}; active: {', '.join(self.active) or 'none'}"

    @property
    def model(self) -> nn.Module:
        return self.adapted.model

    @property
    def names(self) -> list[str]:
        """Of all its adapters, in the order in which they came."""
        return self.adapted.names

    @property
    def active(self) -> list[str]:
        """What calls take for which nothing else is chosen, in this order."""
        names = {adapter: name for name, adapter in self.adapted.adapters.items()}
        return [names[one] for one in self.adapted.active.everywhere]

    @property
    def merged(self) -> tuple[str, ...]:
        """Those that are merged into the weights."""
        names = {adapter: name for name, adapter in self.adapted.adapters.items()}
        return tuple(names[one] for one in self.adapted.merged)

    def __getitem__(self, name: str) -> Adapter:
        """An adapter by name. Raises UsageError, with suggestions."""
        return self.adapted.find(name)

    def __contains__(self, name: object) -> bool:
        return name in self.adapted.adapters

    def add(self, method: str, *, name: str, activate: bool = True, **options: Any) -> Adapter:
        """As `adapt`; returns the adapter."""
        self._require_new(name)
        found = self.registry.find(method)
        adapter = self._build(found, options)
        self._place(name, adapter)
        adapter.drawn = snapshot(adapter.named_parameters())
        if activate:
            self.use(name)
        return adapter

    def _build(self, found: Found, options: Mapping[str, Any]) -> Adapter:
        """A new adapter by its card."""
        card = found.card
        builder = self.registry.builder(card) if card.kind == "adapter" else None
        if builder is None:
            known = ", ".join(one.name for one in self.registry.cards(kind="adapter"))
            raise UsageError(
                f"{card.name} is of kind {card.kind}, and models are adapted by adapters: {known or 'none is installed'}"
            )
        owner = self.registry.owner(card)
        arguments = {**card.variant, **options}
        files.refuse_unknown_options(builder, arguments, card.name)
        try:
            adapter = builder(base_of(self.model), **arguments)
        except ZooError:
            raise
        except Exception as error:
            raise PluginError(
                f"{describe(owner)} raised {type(error).__name__} while building {card.name}: {error}"
            ) from error
        if not isinstance(adapter, Adapter):
            raise PluginError(
                f"{describe(owner)} must build {card.name} as a zoo.api.Adapter, got {type(adapter).__name__}"
            )
        if not adapter.parts and adapter.virtual is None:
            raise UsageError(f"{card.name} would change nothing in this model: it has neither a part nor a virtual token")
        adapter.method, adapter.options = card.name, arguments
        return adapter

    def _place(self, name: str, adapter: Adapter) -> None:
        """Let an adapter stand on the model, which is frozen from the first one on; it is trained when it is used."""
        if not self.adapted.adapters:
            self.adapted.places = places_of(self.model)  # a kernel may have been applied since
        self.adapted.attach(name, adapter, places_under(self.adapted.places, self.adapted.model, adapter))
        if not self.adapted.trained_before:
            self.adapted.trained_before = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
            for parameter, _ in self.adapted.trained_before:
                parameter.requires_grad_(False)
        adapter.eval()
        adapter.requires_grad_(False)

    def _thaw(self) -> None:
        """Let the model's parameters be trained as before its first adapter."""
        for parameter, trained in self.adapted.trained_before:
            parameter.requires_grad_(trained)
        self.adapted.trained_before = []

    def _require_new(self, name: str) -> None:
        if adapted_of(self.model) is not self.adapted:
            raise UsageError("these adapters were closed: zoo.adapters_of(model) has the model's")
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            raise UsageError(f"an adapter's name is a text, got {name!r}")
        if name in self.adapted.adapters:
            raise UsageError(f"there is an adapter {name!r} already: remove it first, or take another name")

    def use(self, *names: str) -> None:
        """Let calls take these adapters, one after another at each layer, and train these; without a name the model is as it was.

        On a model that runs by a kernel through which no gradients flow none is trained: train on the model without one, the file fits both.
        Raises UsageError for an unknown name, one that is merged or given twice, and two with virtual tokens.
        """
        if not all(isinstance(name, str) for name in names):
            raise UsageError(f"names are given one by one, use('french', 'formal'), got {names!r:.80}")
        adapters = [self.adapted.usable(name) for name in names]
        virtual = [name for name in names if self.adapted.find(name).virtual is not None]
        if len(virtual) > 1:
            raise UsageError(f"two adapters put tokens before those of a row: use {virtual[0]} or {virtual[1]}")
        if len(set(names)) < len(names):
            raise UsageError(f"an adapter is used once, got {', '.join(names)}")
        self.adapted.activate(adapters)
        trained = gradients_flow(self.model)
        for one in self.adapted.adapters.values():
            one.requires_grad_(trained and any(one is own for own in adapters))

    @contextlib.contextmanager
    def using(self, names: str | Sequence[str | None] | None) -> Iterator[None]:
        """In this block and thread, let calls take one adapter, the model alone (None), or for each row of the batch its own (a list).

        Raises UsageError as `use`, and for an empty list; a call with another number of rows than a list has raises it, too.
        """
        if names is None or isinstance(names, str):
            choice = self.adapted.choice_of_all(names)
        else:
            choice = self.adapted.choice(list(names))
        with self.adapted.using(choice):
            yield

    def scale(self, name: str, factor: float) -> None:
        """How far an adapter goes from the model: 1 as trained, 0 not at all. Raises UsageError for virtual tokens, which have no middle."""
        adapter = self.adapted.usable(name)
        if not math.isfinite(factor):
            raise UsageError(f"a scale is a finite number, got {factor}")
        if adapter.virtual is not None and factor != 1.0:
            raise UsageError(
                f"{name!r} ({adapter.method}) puts tokens before others, of which there is no half: it has no scale"
            )
        adapter.scale = float(factor)
        self.adapted.refresh()

    def merge(self, *names: str) -> None:
        """Change the weights to what they are under these adapters (without a name: the active ones), which then cost nothing.

        Raises UsageError, before anything is changed, where something is merged already and for what cannot be (`merging.merge`).
        """
        names = names or tuple(self.active)
        if self.merged:
            raise UsageError(f"{', '.join(self.merged)} is merged already: unmerge() first")
        if not names:
            raise UsageError(f"no adapter is active, so none is merged: name one of {', '.join(self.names) or 'none'}")
        for name in names:
            self.adapted.find(name)
        self.adapted.active_before = tuple(self.active)
        self.adapted.originals = merging.merge(self.adapted, names)
        self.adapted.merged = tuple(self.adapted.find(name) for name in names)
        self.use(*(name for name in self.adapted.active_before if name not in names))

    def unmerge(self) -> None:
        """Give the weights back what they held, to the bit, and let calls take what they took before. Raises UsageError where nothing is."""
        if not self.merged:
            raise UsageError("nothing is merged, so there is nothing to unmerge")
        merging.unmerge(self.adapted.originals)
        self.adapted.merged, self.adapted.originals = (), []
        self.use(*self.adapted.active_before)

    def remove(self, name: str) -> None:
        """Forget an adapter. Raises UsageError for an unknown one and one that is active or merged."""
        self.adapted.find(name)
        if name in self.merged:
            raise UsageError(f"{name!r} is merged into the weights: unmerge() first")
        if name in self.active:
            raise UsageError(f"{name!r} is active: use() another, or none, before it is removed")
        self.adapted.detach(name)
        if not self.adapted.adapters:
            self._thaw()

    def close(self) -> None:
        """Leave the model as it was before its first adapter. Raises UsageError while something is merged."""
        if self.merged:
            raise UsageError(f"{', '.join(self.merged)} is merged into the weights: unmerge() first")
        self.adapted.close()
        self._thaw()

    def combine(
        self, name: str, weights: Mapping[str, float], *, how: str = "concatenation", r: int | None = None, **options: Any
    ) -> Adapter:
        """A new adapter made of others of one method, each with a weight, which may be negative; it is not active.

        how: "concatenation" (their changes added, exactly), "svd" (the nearest of rank r to that), "sum" (matrix by matrix, as HF PEFT's
        "linear": of one rank, and an approximation). A method may know fewer of them, and more with options of its own: LoRA has "ties",
        "dare_linear", "dare_ties" and "magnitude_prune", also with "_svd" behind them, which keep a share of the numbers (density=0.5).
        Raises UsageError for adapters of different methods, a method that cannot combine, and an unknown way.
        """
        self._require_new(name)
        if not weights or not isinstance(weights, Mapping):
            raise UsageError("name the adapters to combine, each with its weight: {'french': .7, 'formal': .3}")
        adapters = [self.adapted.find(one) for one in weights]
        methods = sorted({one.method for one in adapters})
        if len(methods) > 1:
            raise UsageError(f"adapters of one method are combined, these are of {' and '.join(methods)}")
        first = adapters[0]
        if first.combine is None:
            raise UsageError(f"{first.method} does not say how its adapters are combined")
        factors = [factor * one.scale for factor, one in zip(weights.values(), adapters, strict=True)]
        files.refuse_unknown_options(first.combine, options, first.method, known_from=2)
        combined: Adapter = first.combine(base_of(self.model), adapters, factors, how=how, r=r, **options)
        combined.method = first.method
        self._place(name, combined)
        combined.drawn = snapshot(combined.named_parameters()) if any(one.untrained for one in adapters) else {}
        return combined

    def trainable(self) -> dict[str, int]:
        """Number of elements of each parameter that is trained, by `<adapter>.<parameter>`."""
        return {
            f"{name}.{parameter_name.replace('/', '.')}": parameter.numel()
            for name, adapter in self.adapted.adapters.items()
            for parameter_name, parameter in adapter.named_parameters()
            if parameter.requires_grad
        }

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: those of the active adapters."""
        return [one for adapter in self.adapted.adapters.values() for one in adapter.parameters() if one.requires_grad]

    def describe(self) -> str:
        """Trained parameters and their share of all, in one line."""
        trained = sum(self.trainable().values())
        every = trained + sum(one.numel() for one in self.model.parameters())
        return f"{trained:,} of {every:,} parameters are trained ({trained / every:.4%})"

    def train_adapters(self, mode: bool = True) -> None:
        """Put the adapters in training (their dropout) or evaluation. The model stays as it is: what is frozen has its own statistics."""
        for adapter in self.adapted.adapters.values():
            adapter.train(mode)

    def to(self, device: str | torch.device) -> None:
        """Move the adapters, after the model was moved."""
        for adapter in self.adapted.adapters.values():
            adapter.to(device)
        self.adapted.refresh()

    def save(self, name: str, path: str | Path) -> None:
        """Write an adapter as one safetensors file, whole or not at all; `load` reads it back to the bit.

        Raises UsageError for an unknown name, and while something is merged, since the file says which weights it is for.
        """
        adapter = self.adapted.find(name)
        if self.merged:
            raise UsageError(
                f"{', '.join(self.merged)} is merged, so the weights are not those that {name!r} was made for: unmerge() first"
            )
        files.write(Path(path), finished(adapter), files.fingerprint(self.model, self.built), drawn=adapter.untrained)

    def load(
        self, path: str | Path, *, name: str, activate: bool = True, other_base: bool = False, replace: bool = False
    ) -> Adapter:
        """Read an adapter that `save` wrote, or a folder of HF PEFT's.

        other_base: take it though it was made for other weights. replace: in place of one of this name.
        Raises UsageError for another base; StateMismatchError, with what differs; WeightsError for a file that is none, is cut off or
        holds NaN.
        """
        if not replace or name not in self.adapted.adapters:
            self._require_new(name)
            self._place(name, self._read(Path(path), other_base=other_base))
        else:
            adapter, active = self._read(Path(path), other_base=other_base), self.active
            self.use(*(one for one in active if one != name))
            self.adapted.detach(name)
            self._place(name, adapter)
            self.use(*active)
        if activate:
            self.use(name)
        return self.adapted.find(name)

    def _read(self, path: Path, *, other_base: bool) -> Adapter:
        if self.merged:
            raise UsageError(f"{', '.join(self.merged)} is merged, so the weights are not the model's own: unmerge() first")
        if path.is_dir():
            from zoo.adapters import peft

            return peft.read_folder(path, self, other_base=other_base)
        record = files.read(path)
        if not other_base:
            files.require_base(record, files.fingerprint(self.model, self.built), path)
        found = self.registry.find(record.method)
        adapter = files.filled(self._build(found, record.options), record.state, str(path))
        adapter.scale = record.scale
        adapter.drawn = snapshot(adapter.named_parameters()) if record.drawn else {}
        return adapter

    def export(self, name: str, folder: str | Path) -> None:
        """Write an adapter as HF PEFT does, a folder with `adapter_config.json` and `adapter_model.safetensors`.

        Module names become those of the library that the model's card names (`module_names`). Raises UsageError for a method that PEFT
        does not have, and for a place that has no name there.
        """
        from zoo.adapters import peft

        peft.write_folder(Path(folder), self, name)
