"""`zoo list` and `zoo show`: what can be used. No plugin is imported, except to expand a family that is asked for."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.cli.output import human_bytes, human_count, print_json, print_table, say, without_none
from zoo.errors import PluginError, ResolutionError, UnknownNameError
from zoo.registry.card import KINDS, Card, Weights
from zoo.registry.lookup import Found, Registry, default_registry
from zoo.registry.modality import MODALITIES
from zoo.registry.plugin import code_sha256

MAX_DEPTH = 8  # parts of parts; a card that is a part of itself is refused when it is built


def add_commands(commands: Any) -> None:
    listing = commands.add_parser("list", help="list models")
    listing.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, e.g. '*tiny*' or 'PLUGIN/*'")
    listing.add_argument("--kind", choices=KINDS)
    listing.add_argument("--modality", choices=MODALITIES)
    listing.set_defaults(run=run_list)
    show = commands.add_parser(
        "show",
        help="show everything that is known about a model",
        description="With a weights tag, what differs for those weights. code_sha256 is the hash of the plugin's code, by which results "
        "are told from those of another version (file_sha256 in the JSON is the same).",
    )
    show.add_argument("name", help="model name, as zoo list shows it, with or without a weights tag")
    show.set_defaults(run=run_show)


def run_list(arguments: argparse.Namespace) -> int:
    registry = default_registry()
    cards = registry.cards(arguments.pattern, kind=arguments.kind, modality=arguments.modality)
    families = [
        family
        for family in registry.families()
        if fnmatch.fnmatchcase(f"{family.provider.plugin}/{family.pattern}", arguments.pattern)
        and arguments.kind in (None, family.kind)
        and (arguments.modality is None or arguments.modality in family.modalities)
    ]
    # A pattern with a plugin's name has expanded the families into their members.
    families = [] if "/" in arguments.pattern else families
    if not cards and not families and not arguments.json:
        raise _no_match(arguments, registry)
    elsewhere = _ways_to_members(arguments, registry, listed={family.provider.plugin for family in families})
    if elsewhere and (cards or families):
        say(
            f"zoo: the members of families are listed with their plugin's name, and are not among these: {', '.join(elsewhere)}",
            file=sys.stderr,
        )
    if arguments.json:
        print_json(
            {
                "cards": [card_fields(card, registry) for card in cards],
                "families": [
                    {
                        "pattern": f"{family.provider.plugin}/{family.pattern}",
                        "kind": family.kind,
                        "modalities": list(family.modalities),
                        "plugin": family.provider.distribution,
                        "version": family.provider.version,
                        "summary": family.summary,
                        "state": registry.owner(family).state,
                    }
                    for family in families
                ],
            }
        )
        if not cards and not families:
            raise _no_match(arguments, registry)
        return 0
    rows = []
    for card in cards:
        tags = ", ".join(row.tag for row in card.weights) or ("from its parts" if card.parts else "none")
        provider = f"{card.provider.distribution} {card.provider.version}"
        state = registry.owner(card).state
        rows.append([card.name, card.kind, "+".join(card.modalities), human_count(card.parameters), tags, provider, state])
    for family in families:
        name = f"{family.provider.plugin}/{family.pattern}"
        provider = f"{family.provider.distribution} {family.provider.version}"
        state = registry.owner(family).state
        rows.append([name, family.kind, "+".join(family.modalities), "-", f"zoo list '{name}'", provider, state])
    print_table(["NAME", "KIND", "MODALITIES", "SIZE", "WEIGHTS", "PLUGIN", "STATE"], rows)
    return 0


def _no_match(arguments: argparse.Namespace, registry: Registry) -> UnknownNameError:
    of_kind = f" of kind {arguments.kind}" if arguments.kind else ""
    of_modality = f" for {arguments.modality}" if arguments.modality else ""
    wider = _wider(arguments.pattern, registry)
    found = registry.cards(wider, kind=arguments.kind, modality=arguments.modality) if wider != arguments.pattern else []
    near = f"; {len(found)} would: zoo list '{wider}'" if found else "; zoo list shows what is installed"
    ways = [way for way in _ways_to_members(arguments, registry) if way != f"zoo list '{wider}'"]
    elsewhere = f"; the members of families are listed with their plugin's name: {', '.join(ways)}" if ways else ""
    return UnknownNameError(f"no model{of_kind}{of_modality} matches {arguments.pattern!r}{near}{elsewhere}")


def _wider(pattern: str, registry: Registry) -> str:
    """What somebody may mean who wrote no pattern: a plugin's members, or names that hold the word."""
    if any(character in pattern for character in "*?["):
        return pattern
    if pattern in {plugin.name for plugin in registry.plugins}:
        return f"{pattern}/*"
    owner, slash, model = pattern.rpartition("/")
    return f"{owner}{slash}*{model}*"


def _ways_to_members(
    arguments: argparse.Namespace, registry: Registry, listed: frozenset[str] | set[str] = frozenset()
) -> list[str]:
    """Commands that look into families which may have members of that kind and modality, and which the pattern did not expand."""
    if "/" in arguments.pattern or arguments.pattern == "*":
        return []
    wider = _wider(arguments.pattern, registry)
    owners = {
        family.provider.plugin
        for family in registry.families()
        if arguments.kind in (None, family.kind) and (arguments.modality is None or arguments.modality in family.modalities)
    }
    if "/" in wider:  # a plugin's name alone
        owners &= {arguments.pattern}
        wider = "*"
    return [f"zoo list '{owner}/{wider}'" for owner in sorted(owners - set(listed))]


def run_show(arguments: argparse.Namespace) -> int:
    registry = default_registry()
    found = registry.find(arguments.name)
    fields = card_fields(found.card, registry)
    code = code_sha256(registry.owner(found.card))
    parts = list(_parts(found.card, registry))
    if arguments.json:
        fields |= {"file_sha256": code, "code_sha256": code}
        rows = [
            {
                "role": role,
                "name": name,
                "weights": _row_fields(part.card, part.weights) if part is not None and part.weights is not None else None,
                "error": error,
            }
            for role, name, part, error in parts
        ]
        document = {"card": fields, "chosen_weights": found.weights.tag if found.weights else None}
        print_json(document | ({"parts": rows} if rows else {}))
        return 0
    chosen = found.weights
    if chosen is not None:  # what was built would be this row's, so that is what the head says
        fields |= {
            "classes": found.classes,
            "licence": chosen.licence or found.card.licence,
            "preprocess": {**found.card.preprocess, **chosen.preprocess},
            "variant": {**found.card.variant, **chosen.variant},
        }
    fields |= {"licence": fields["licence"] or "unknown", "code_sha256": code}
    for key, value in fields.items():
        if key != "weights" and value not in (None, "", [], {}):
            say(f"{key:<16}{_words(value)}")
    # A name that is the card's own asks for all of it; one with a tag for those weights.
    tagged = chosen is not None and arguments.name.rpartition(":")[2] not in (
        found.card.name,
        found.card.name.partition("/")[2],
    )
    rows_shown = [chosen] if tagged and chosen is not None else list(found.card.weights)
    for row in rows_shown:
        _print_row(f"weights {'*' if row is chosen else ' '} {row.tag}", found.card, row)
    others = [row.tag for row in found.card.weights if row not in rows_shown]
    if others:
        say(f"other weights: {', '.join(others)} (zoo show {found.card.name} shows all)")
    for role, name, part, error in parts:
        if part is None:
            say(f"part {role}: {name}: {error}")
        elif part.weights is None:
            say(f"part {role}: {part.name}  no weights of its own")
        else:
            _print_row(f"part {role}: {part.name}", part.card, part.weights)
    return 0


def _print_row(title: str, card: Card, row: Weights) -> None:
    say(f"{title}  {human_bytes(row.size_bytes)}  {row.licence or card.licence or 'licence unknown'}")
    details = {
        "score scale": row.score_scale,
        "classes": row.classes,
        "preprocess": row.preprocess,
        "variant": row.variant,
        "keys": row.keys,
    }
    for name, value in details.items():
        if value not in (None, "", {}):
            say(f"    {name}  {_words(value)}")
    for file in row.files:
        say(f"    {file.role}  sha256 {file.sha256 or 'not pinned by its publisher'}")
        for source in file.sources:
            say(f"      {source if isinstance(source, str) else ' + '.join(source)}")


def _parts(card: Card, registry: Registry, above: str = "") -> Iterator[tuple[str, str, Found | None, str | None]]:
    """(role, name, what it means, or else why it means nothing) of every part and of its parts, `image.backbone` for those."""
    for role, name in card.parts.items():
        try:
            part = registry.find(name)
        except (ResolutionError, PluginError) as error:
            yield f"{above}{role}", name, None, str(error)
            continue
        yield f"{above}{role}", name, part, None
        if part.card.name != card.name and above.count(".") < MAX_DEPTH:
            yield from _parts(part.card, registry, f"{above}{role}.")


def _words(value: object) -> str:
    """A value as a person writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inner(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _inner(value: object) -> str:
    """A value inside a mapping, where commas stand between the entries."""
    return " ".join(map(_inner, value)) if isinstance(value, (list, tuple)) else _words(value)


def card_fields(card: Card, registry: Registry) -> dict[str, Any]:
    """A card as JSON fields, with the state of its plugin."""
    return {
        "name": card.name,
        "kind": card.kind,
        "modalities": list(card.modalities),
        "plugin": card.provider.distribution,
        "version": card.provider.version,
        "manifest_sha256": card.provider.manifest_sha256,
        "licence": card.licence,
        "parameters": card.parameters,
        "state": registry.owner(card).state,
        **without_none(
            {
                "summary": card.summary,
                "paper": card.paper,
                "parts": dict(card.parts),
                "tokens": dict(card.tokens),
                "embedding_width": card.embedding_width,
                "classes": card.classes,
                "preprocess": dict(card.preprocess),
                "variant": dict(card.variant),
                "keep_float32": list(card.keep_float32),
                "default_for": list(card.default_for),
                "devices": list(card.devices),
                "dtypes": list(card.dtypes),
                "applies_to": list(card.applies_to),
            }
        ),
        "weights": [_row_fields(card, row) for row in card.weights],
    }


def _row_fields(card: Card, row: Weights) -> dict[str, Any]:
    """A weights row as JSON fields; classes, preprocess, variant and keys as the row has them, over the card's."""
    return {
        "tag": row.tag,
        "licence": row.licence or card.licence,
        "bytes": row.size_bytes,
        "score_scale": row.score_scale,
        "classes": row.classes,
        "preprocess": dict(row.preprocess),
        "variant": dict(row.variant),
        "keys": row.keys,
        "files": [
            {
                "role": file.role,
                "sha256": file.sha256,
                "bytes": file.size_bytes,
                "sources": [source if isinstance(source, str) else list(source) for source in file.sources],
            }
            for file in row.files
        ],
    }
