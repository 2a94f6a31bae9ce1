"""The seam between a built model and what stands on it: adapters are its first user, and nothing here knows them.

An extension changes what the layers of one model compute by hooks on them, row by row of a batch. A model, and each decoder in it,
knows its extension by one attribute. A decoder asks at the start of a call (`begin`) and for the time of it (`during`); caches ask
for a `Selection`, and whoever keeps results asks whether they still hold (`content_key`, `zoo.nn.stamp`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from zoo.errors import UsageError
from zoo.nn.cache import Cache

ATTRIBUTE = "zoo_extension"  # of a model, of the decoders in it, and of an object whose method is a forward hook on a layer


class Selection(Protocol):
    """What the rows of a batch take of an extension. `batch` is how many rows it is for; None: any number."""

    @property
    def batch(self) -> int | None: ...

    def select(self, rows: Sequence[int], /) -> Selection:
        """The same for these rows, in this order."""
        ...

    def only(self, row: int, /) -> Selection:
        """What one row takes, for all rows of another batch."""
        ...

    def key(self, row: int, /) -> str:
        """Of the content of what a row takes: equal keys give equal numbers. Empty where it takes nothing."""
        ...

    def virtual_count(self, row: int, /) -> int:
        """Tokens that a decoder reads before those of a row."""
        ...


class Extension(Protocol):
    """What stands on one model. `names` are of what it holds; with none, the model computes as if it were not there.

    It is found by the attribute `zoo_extension` (`ATTRIBUTE`), which the model and the decoders in it have in their `__dict__`, and each object whose
    bound method is a forward hook on a layer.
    """

    @property
    def names(self) -> Sequence[str]: ...

    def chosen(self) -> Any:
        """The `Selection` that calls take here and now."""
        ...

    def using(self, selection: Any, /) -> AbstractContextManager[None]:
        """Let the calls in this block, in this thread, take a selection."""
        ...

    def begin(self, model: nn.Module, batch: int, cache: Cache | None, /) -> Cache | None:
        """The cache with which a call of a decoder goes on: at the start of the rows, one in which their virtual tokens stand."""
        ...

    def during(self, cache: Cache | None, /) -> AbstractContextManager[None]:
        """Let the calls in this block take what a cache was begun with, to its end."""
        ...

    def reads_first(self) -> bool:
        """Whether calls now put virtual tokens before those of a row."""
        ...

    def learns_on(self, parts: set[nn.Module], /) -> bool:
        """Whether something that calls take now is trained on one of these layers."""
        ...

    def keys_on(self, part: nn.Module, selection: Any, rows: int, /) -> list[str]:
        """For each of so many rows the content of what stands on a part of the model."""
        ...

    def key(self) -> str:
        """Of the content of all that shapes what calls give here and now; empty where nothing does."""
        ...

    def stamp(self) -> int:
        """A number that changes when what calls take, or a tensor of it, does."""
        ...

    def hashes(self) -> Mapping[str, Mapping[str, str]]:
        """What shapes the answers here and now: name -> method -> sha256."""
        ...

    def untrained(self) -> Sequence[str]:
        """Of these, the names of those whose parameters are still as they were drawn."""
        ...


def extension_of(model: Any) -> Extension | None:
    """The extension of a model, that of its decoder where it has none of its own."""
    found: Extension | None = getattr(model, "__dict__", {}).get(ATTRIBUTE)
    if found is None:
        decoder = getattr(model, "decoder", None)
        found = getattr(decoder, "__dict__", {}).get(ATTRIBUTE) if isinstance(decoder, nn.Module) else None
    return found


def extensions_on(part: nn.Module) -> list[Any]:
    """The extensions that stand on a module: a model knows its own, a layer has hooks of theirs."""
    hooks = (getattr(hook, "__self__", None) for hook in part._forward_hooks.values())  # noqa: SLF001 - torch names them nowhere else
    found = [getattr(hook, ATTRIBUTE, None) for hook in hooks]
    return [one for one in (*found, part.__dict__.get(ATTRIBUTE)) if one is not None]


def extensions_in(*models: nn.Module, but: Extension | None = None) -> list[Any]:
    """Each extension on models and on parts of them, once. but: one that is left out."""
    found = [one for model in models for part in model.modules() for one in extensions_on(part)]
    return list({id(one): one for one in found if one is not but}.values())


def begin(model: nn.Module, batch: int, cache: Cache | None) -> Cache | None:
    """As `Extension.begin`; the cache itself where nothing stands on the model."""
    extension = extension_of(model)
    return cache if extension is None else extension.begin(model, batch, cache)


def during(model: nn.Module, cache: Cache | None) -> AbstractContextManager[None]:
    """As `Extension.during`."""
    extension = extension_of(model)
    return contextlib.nullcontext() if extension is None else extension.during(cache)


def refuse_virtual_tokens(model: nn.Module) -> None:
    """Raise UsageError where a decoder that is read in a way of its own would leave out the virtual tokens of an extension."""
    extension = extension_of(model)
    if extension is not None and extension.reads_first():
        raise UsageError("this model reads no tokens before its own: use an adapter that stands on layers (zoo adapt list)")


def learns(module: nn.Module) -> bool:
    """Whether something is trained in a module, or in what stands on it and is taken by calls now."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    parts = set(module.modules())
    return any(extension.learns_on(parts) for extension in extensions_in(module))


def content_key(*models: nn.Module, but: Extension | None = None) -> str:
    """`Extension.key` of all that stands on models and on parts of them; empty where nothing does."""
    return "/".join(filter(None, (extension.key() for extension in extensions_in(*models, but=but))))
