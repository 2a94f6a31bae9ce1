"""Names -> cards, across all installed plugins. Nothing here imports a plugin, except to expand a family.

A name is `[distribution:]<plugin>/<model>[.<weights tag>]`; `<model>[.<tag>]` alone works while one plugin has it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zoo.errors import AmbiguousNameError, ManifestError, PluginError, ResolutionError, UnknownNameError, UsageError
from zoo.registry.activation import TRIAL_TIMEOUT_S, call_hook, new_manager, resolve, warn
from zoo.registry.card import Card, Provider, Weights
from zoo.registry.discovery import manifest_tasks, scan, try_again
from zoo.registry.manifest import Family, card_from_hook
from zoo.registry.needs import complaint
from zoo.registry.plugin import DISTRIBUTION_OF_THIS_PROCESS, Plugin, describe
from zoo.registry.records import remember_default, remembered_default
from zoo.registry.settings import Settings, config_file, load_settings
from zoo.registry.suggest import did_you_mean, nearest

if TYPE_CHECKING:
    import pluggy

NEAR = 3  # names that an error suggests
USABLE = ("ok", "shadowed")
KNOWN_DISTRIBUTIONS = Path(__file__).with_name("known_distributions.json")


@dataclass(frozen=True, slots=True)
class Found:
    """What a name means: a card and, if the name carried a tag or the card has any, its weights.

    tagged: the name carried the tag; without one, the card's first weights are meant.
    """

    card: Card
    weights: Weights | None
    tagged: bool = False

    @property
    def name(self) -> str:
        """Full name with the tag."""
        return f"{self.card.name}.{self.weights.tag}" if self.weights else self.card.name

    @property
    def classes(self) -> int | None:
        """Outputs of the trained classifier, where there is one."""
        row = self.weights
        return row.classes if row is not None and row.classes is not None else self.card.classes


class Registry:
    """The cards of one scan. `plugins` is refreshed when an activation changes a plugin's state."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.plugins = _mark_shadowed(scan(settings), settings)
        self.own_builders: dict[str, Callable[..., Any]] = {}  # of cards of this process (`zoo.registry.own_cards`)
        self._manager: pluggy.PluginManager | None = None

    @property
    def manager(self) -> pluggy.PluginManager:
        """The pluggy manager of this process, made when the first plugin is activated."""
        if self._manager is None:
            self._manager = new_manager()
        return self._manager

    def cards(self, pattern: str = "*", *, kind: str | None = None, modality: str | None = None) -> list[Card]:
        """Cards whose full or short name matches a shell-style pattern, sorted by name and distribution.

        A pattern that begins with a plugin's name also expands that plugin's families, which imports the plugin.
        """
        found = [
            card
            for plugin in self.plugins
            for card in plugin.cards
            if fnmatch.fnmatchcase(card.name, pattern) or fnmatch.fnmatchcase(card.name.partition("/")[2], pattern)
        ]
        owner, slash, model = pattern.partition("/")
        if slash:
            known = {(card.name, card.provider.distribution) for card in found}
            for plugin in self.plugins:
                if fnmatch.fnmatchcase(plugin.name, owner) and plugin.families and plugin.state != "disabled":
                    try:
                        members = self.expand(plugin, model)
                    except PluginError as error:
                        warn(error)
                        continue
                    found += [card for card in members if (card.name, card.provider.distribution) not in known]
        return sorted(
            (
                card
                for card in found
                if (kind is None or card.kind == kind) and (modality is None or modality in card.modalities)
            ),
            key=lambda card: (card.name, card.provider.distribution),
        )

    def families(self) -> list[Family]:
        return [family for plugin in self.plugins for family in plugin.families]

    def find(self, name: str) -> Found:
        """Resolve a name. Raises UnknownNameError, AmbiguousNameError, or PluginError for a plugin that is disabled."""
        matches = self.matches(name)
        rest = name.partition(":")[2] if ":" in name else name
        if not matches:
            raise self._unknown(rest)
        if len(matches) > 1:
            matches = [match for match in matches if self._pinned(match.card, rest)] or matches
        if len(matches) > 1:
            raise _ambiguous(rest, matches)
        return matches[0]

    def matches(self, name: str) -> list[Found]:
        """Everything that a name may mean; none where no model has it, for which no suggestion is looked for, as `find` does."""
        distribution, colon, rest = name.partition(":")
        if not colon:
            distribution, rest = "", name
        matches: list[Found] = []
        for model, tag in _splits(rest):
            matches = self._matching(model, tag, distribution)
            if matches:
                break
        if not matches and "/" in rest:
            matches = self._in_families(rest, distribution)
        if not matches:
            owner = rest.partition("/")[0] if "/" in rest else ""
            if self._try_again(lambda plugin: plugin.name == owner):
                return self.matches(name)
        return matches

    def default(self, task: str) -> str:
        """The model for a task when the user names none: the user's choice, else the card that claims the task.

        Of several that claim it, the one that was the only one before goes on, with a warning: a package that is installed
        later neither takes a task over nor stops it. Raises PluginError when only plugins that cannot be used claim it, and
        UsageError when no installed plugin does, or several do from the start.
        """
        chosen = self.settings.defaults.get(task)
        if chosen:
            self._check_choice(task, chosen)
            return chosen
        claims = [
            card for plugin in self.plugins if plugin.state in USABLE for card in plugin.cards if task in card.default_for
        ]
        if not claims and self._try_again(lambda plugin: task in manifest_tasks(plugin)):
            return self.default(task)
        if not claims:
            self._refuse_plugins_in_trouble(task)
            raise UsageError(
                f"no installed plugin offers a default model for {task!r}; choose one with --model "
                f"(zoo list shows what is installed)"
            )
        names = sorted(f"{card.provider.distribution}:{card.name}" for card in claims)
        if len(names) == 1:
            if claims[0].provider.distribution != DISTRIBUTION_OF_THIS_PROCESS:
                remember_default(task, names[0])
            return names[0]
        before = remembered_default(task)
        if before not in names:
            raise UsageError(
                f"{len(names)} models offer to be the default for {task!r}: {', '.join(names)}; settle it with: "
                f"zoo default {task} NAME (or name one with --model)"
            )
        warn(
            f"{', '.join(name for name in names if name != before)} also offers to be the default for {task!r}; using "
            f"{before}, as before. Settle it with: zoo default {task} NAME"
        )
        return before

    def _try_again(self, wanted: Callable[[Plugin], bool]) -> bool:
        """Whether one of the broken plugins that are wanted can be used now."""
        tried = [self.tried_again(plugin) for plugin in tuple(self.plugins) if plugin.state == "broken" and wanted(plugin)]
        return any(plugin.state in USABLE for plugin in tried)

    def tried_again(self, plugin: Plugin) -> Plugin:
        """Before a broken plugin is refused it is tried once more, in a process of its own: what it failed by may be mended."""
        again = try_again(plugin, timeout_s=TRIAL_TIMEOUT_S)
        self.plugins[self.plugins.index(plugin)] = again
        return again

    def _check_choice(self, task: str, name: str) -> None:
        """Raise what is wrong with a default that the user chose, with the way back: it was long ago, or written by hand."""
        way_back = f"(it is your default for {task!r}, in {config_file()}; to forget it: zoo default {task} --remove)"
        try:
            found = self.find(name)
        except (ResolutionError, PluginError) as error:
            raise type(error)(f"{error} {way_back}") from error
        wrong = complaint(task, found.card, found.classes)
        if wrong:
            raise UsageError(f"{wrong} {way_back}")

    def _refuse_plugins_in_trouble(self, task: str) -> None:
        """Raise PluginError if a plugin that cannot be used claims the task: its cure is what brings the task back."""
        troubles = [
            f"{describe(plugin)} is {plugin.state} ({plugin.error}): {plugin.cure}"
            for plugin in self.plugins
            if plugin.state not in USABLE and task in manifest_tasks(plugin)
        ]
        if troubles:
            raise PluginError(
                f"the default model for {task!r} cannot be used: {'; '.join(troubles)}. zoo doctor shows more; or choose another "
                f"model with --model"
            )

    def tasks(self) -> list[str]:
        """The tasks that some card of a usable plugin, or the user, names a model for."""
        claimed = {
            task for plugin in self.plugins if plugin.state in USABLE for card in plugin.cards for task in card.default_for
        }
        return sorted({*claimed, *self.settings.defaults})

    def owner(self, card: Card | Family) -> Plugin:
        """The plugin that a card came from."""
        key = (card.provider.plugin, card.provider.distribution)
        return next(plugin for plugin in self.plugins if (plugin.name, plugin.distribution) == key)

    def builder(self, card: Card) -> Callable[..., Any] | None:
        """The function that builds a card; None where its plugin's hook `zoo_build` does. Imports the plugin."""
        if card.name in self.own_builders:
            return self.own_builders[card.name]
        return (
            None if card.build is None else cast("Callable[..., Any]", resolve(self.owner(card), card.build, self.manager))
        )

    def expand(self, plugin: Plugin, pattern: str) -> list[Card]:
        """The members of a plugin's families that match a model-name pattern. Imports the plugin."""
        if not any(_may_match(family.pattern, pattern) for family in plugin.families):
            return []
        rows: Iterable[Mapping[str, Any]] = call_hook(plugin, "zoo_family", self.manager, pattern=pattern) or ()
        try:
            return [card_from_hook(row, plugin.provider) for row in rows]
        except ManifestError as error:
            raise PluginError(f"{describe(plugin)} returned a wrong card from its hook zoo_family: {error}") from error

    def _matching(self, model: str, tag: str | None, distribution: str) -> list[Found]:
        matches = []
        for plugin in self.plugins:
            for card in plugin.cards:
                names = (card.name,) if "/" in model else (card.name.partition("/")[2],)
                if model in names and distribution in ("", card.provider.distribution):
                    weights = card.choose_weights(tag)
                    if tag is None or weights is not None:
                        matches.append(Found(card, weights, tag is not None))
        return matches

    def _in_families(self, name: str, distribution: str) -> list[Found]:
        owner, _, model = name.partition("/")
        matches: list[Found] = []
        for plugin in self.plugins:
            if plugin.name != owner or distribution not in ("", plugin.distribution) or plugin.state == "disabled":
                continue
            for base, tag in _splits(model):
                for card in self.expand(plugin, base):
                    weights = card.choose_weights(tag)
                    if card.name == f"{owner}/{base}" and (tag is None or weights is not None):
                        matches.append(Found(card, weights, tag is not None))
                if matches:
                    break
        return matches

    def _pinned(self, card: Card, name: str) -> bool:
        short = card.name.partition("/")[2]
        pins = self.settings.pins
        pin = pins.get(name) or pins.get(card.name) or pins.get(short) or pins.get(card.provider.plugin)
        return pin in (card.provider.distribution, card.name, f"{card.provider.distribution}:{card.name}")

    def _unknown(self, name: str) -> UnknownNameError | PluginError:
        owner, slash, _ = name.partition("/")
        for plugin in self.plugins:
            if slash and plugin.name == owner and plugin.state != "ok":
                return PluginError(
                    f"{name!r} cannot be had: {describe(plugin)} is {plugin.state} ({plugin.error}); {plugin.cure}"
                )
        known = _known_distributions()
        installed = {plugin.distribution for plugin in self.plugins}
        for distribution, entry in known.items():
            if distribution not in installed and (entry["plugin"] == owner or name in entry["models"]):
                return UnknownNameError(
                    f"no installed plugin provides {name!r}; {distribution} would: zoo install {distribution}"
                )
        near = self._near(name, owner if slash else "")
        hint = did_you_mean(near, "zoo list shows what is installed")
        return UnknownNameError(f"no installed plugin provides {name!r}; {hint}")

    def _near(self, name: str, owner: str) -> list[str]:
        """Full names that are meant, perhaps: those of which `name` is the short one, else those that are spelt alike.

        The members of families are among them, which imports their plugins: somebody who waits for an answer gets the right one.
        """
        cards = [card for plugin in self.plugins for card in plugin.cards]
        for plugin in self.plugins:
            if plugin.families and plugin.state in USABLE and owner in ("", plugin.name):
                try:
                    cards += self.expand(plugin, "*")
                except PluginError:  # it is reported when one of its own models is asked for
                    continue
        meant: dict[str, list[str]] = {}
        for card in cards:
            for full in (card.name, *(f"{card.name}.{row.tag}" for row in card.weights)):
                for spelling in (full, full.partition("/")[2]):
                    meant.setdefault(spelling, []).append(full)
        spellings = [name] if name in meant else nearest(name, meant, most=NEAR)
        return list(dict.fromkeys(full for spelling in spellings for full in meant[spelling]))


@cache
def default_registry() -> Registry:
    """The registry of this process, from the user's settings."""
    return Registry(load_settings())


def cards(pattern: str = "*", *, kind: str | None = None, modality: str | None = None) -> list[Card]:
    """Installed cards whose name matches; see `Registry.cards`."""
    return default_registry().cards(pattern, kind=kind, modality=modality)


def find(name: str) -> Found:
    """Resolve a model name; see `Registry.find`."""
    return default_registry().find(name)


def installed_plugins() -> list[Plugin]:
    """Installed plugins and their states."""
    return list(default_registry().plugins)


def _splits(name: str) -> Iterable[tuple[str, str | None]]:
    """`a/b.c.d` -> (`a/b.c.d`, None), (`a/b.c`, `d`), (`a/b`, `c.d`): model names and tags may both hold dots."""
    yield name, None
    position = len(name)
    while (position := name.rfind(".", 0, position)) > name.find("/") + 1:
        yield name[:position], name[position + 1 :]


def _may_match(family: str, pattern: str) -> bool:
    """Whether a wanted pattern can have members in a family: exact for plain names, generous for patterns."""
    if any(character in pattern for character in "*?["):
        fixed = min(len(part) for part in (family.split("*", maxsplit=1)[0], pattern.split("*", maxsplit=1)[0]))
        return family[:fixed] == pattern[:fixed] or "?" in pattern or "[" in pattern
    return fnmatch.fnmatchcase(pattern, family)


def _mark_shadowed(plugins: list[Plugin], settings: Settings) -> list[Plugin]:
    """Plugins of which some card's full name is also another distribution's become `shadowed`, unless a pin lets them win."""
    owners: dict[str, list[Provider]] = {}
    for plugin in plugins:
        for card in plugin.cards:
            owners.setdefault(card.name, []).append(card.provider)
    marked = []
    for plugin in plugins:
        lost = {}
        for card in plugin.cards:
            rivals = [rival for rival in owners[card.name] if rival.distribution != plugin.distribution]
            pin = settings.pins.get(card.name) or settings.pins.get(plugin.name)
            if rivals and pin != plugin.distribution:
                lost[card.name] = rivals
        if not lost or plugin.state != "ok":
            marked.append(plugin)
            continue
        name, rivals = next(iter(lost.items()))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        claimed = ", ".join(f"{rival.distribution} {rival.version}" for rival in rivals)
        marked.append(
            replace(
                plugin,
                state="shadowed",
                error=f"{name}{more} also provided by {claimed}",
                cure=f"zoo pin {plugin.name} {plugin.distribution}, or write {plugin.distribution}:{name}",
            )
        )
    return marked


def _ambiguous(name: str, matches: list[Found]) -> AmbiguousNameError:
    owners = [f"{match.card.provider.distribution} {match.card.provider.version}" for match in matches]
    ways = [f"{match.card.provider.distribution}:{match.name}" for match in matches]
    return AmbiguousNameError(
        f"{name!r} is provided by {' and by '.join(owners)}; write {' or '.join(ways)}, "
        f"or settle it with: zoo pin {name} {matches[0].card.provider.distribution}"
    )


def _known_distributions() -> dict[str, Any]:
    import json

    known: dict[str, Any] = json.loads(KNOWN_DISTRIBUTIONS.read_text(encoding="utf-8"))
    return known
