"""Cards of this process alone: a notebook registers a model, and every task takes it, without a distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import Any
from uuid import uuid4

from zoo.errors import ManifestError, UsageError
from zoo.registry.card import Card, Provider
from zoo.registry.lookup import Registry, default_registry
from zoo.registry.manifest import card_from_hook
from zoo.registry.plugin import DISTRIBUTION_OF_THIS_PROCESS as DISTRIBUTION
from zoo.registry.plugin import Plugin

_LOCK = Lock()


def register(card: Mapping[str, Any], build: Callable[..., Any], *, registry: Registry | None = None) -> Card:
    """Let every task of this process take a model; a card of the same name that was registered before is replaced.

    card: the fields of a `[[card]]` table; its name is `<plugin>/<model>`, and the plugin may not be an installed one.
    build: called with the card's variant and the caller's arguments, as a plugin's builder is; returns the module.
    Raises UsageError for a name that is not free or is no name, and for a field that is wrong.
    Example: `zoo.register({"name": "mine/tiny", "kind": "encoder", "modalities": ["image"]}, build_tiny)`
    """
    registry = registry or default_registry()
    if not isinstance(card, Mapping):
        raise UsageError(f"a card is a mapping with the fields of a [[card]] table, got {card!r:.80}")
    owner, slash, model = str(card.get("name", "")).partition("/")
    if not slash or not owner.isidentifier() or not model:
        raise UsageError(f"a registered model is called <plugin>/<model>, as in mine/tiny, got {card.get('name')!r}")
    installed = next(
        (plugin for plugin in registry.plugins if plugin.name == owner and plugin.distribution != DISTRIBUTION), None
    )
    if installed is not None:
        raise UsageError(f"{owner!r} is the plugin of {installed.distribution}: register the model under another name")
    if not callable(build):
        raise UsageError(f"build is the function that builds {owner}/{model}, got {build!r:.80}")
    rows = [card, *(row for row in card.get("weights", ()) if isinstance(row, Mapping))]
    named = [field for row in rows for field in ("build", "keys", "settings", "exchange") if field in row]
    if named:
        raise UsageError(f"{named[0]} names a function of a distribution, and a registered card has none: hand over build")
    # Nobody can tell whether the function of an earlier process was the same, so what is kept under it ends with this one.
    provider = Provider(plugin=owner, distribution=DISTRIBUTION, version=uuid4().hex[:12])
    try:
        made = card_from_hook({**card, "name": model}, provider)
    except ManifestError as error:
        raise UsageError(
            f"{owner}/{model}: {str(error).split(': ', 2)[-1]}"
        ) from error  # without the origin, which is this call
    with _LOCK:
        _add(registry, owner, made, build)
    return made


def _add(registry: Registry, owner: str, made: Card, build: Callable[..., Any]) -> None:
    own = next((plugin for plugin in registry.plugins if plugin.name == owner), None)
    if own is None:
        own = Plugin(name=owner, distribution=DISTRIBUTION, version="", module="")
        registry.plugins.append(own)
    others = tuple(known for known in own.cards if known.name != made.name)
    registry.plugins[registry.plugins.index(own)] = replace(own, cards=(*others, made))
    registry.own_builders[made.name] = build
