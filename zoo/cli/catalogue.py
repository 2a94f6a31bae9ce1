"""`zoo list` and `zoo show`: what can be used. No plugin is imported, except to expand a family that is asked for."""

from __future__ import annotations

import argparse
import fnmatch
from typing import Any

from zoo.card import KINDS, Card
from zoo.cli.output import human_bytes, human_count, print_json, print_table, without_none
from zoo.errors import UnknownNameError
from zoo.modality import MODALITIES
from zoo.plugin import code_sha256
from zoo.registry import Registry, default_registry


def add_commands(commands: Any) -> None:
    listing = commands.add_parser("list", help="list models")
    listing.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, e.g. 'timm/vit_small*'")
    listing.add_argument("--kind", choices=KINDS)
    listing.add_argument("--modality", choices=MODALITIES)
    listing.set_defaults(run=run_list)
    show = commands.add_parser("show", help="show everything that is known about a model")
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
    owners = sorted({family.provider.plugin for family in registry.families()})
    ways = [f"zoo list '{owner}/{arguments.pattern}'" for owner in owners if "/" not in arguments.pattern]
    elsewhere = f"; the members of families are listed with their plugin's name: {', '.join(ways)}" if ways else ""
    return UnknownNameError(
        f"no model{of_kind}{of_modality} matches {arguments.pattern!r}; zoo list shows what is installed{elsewhere}"
    )


def run_show(arguments: argparse.Namespace) -> int:
    registry = default_registry()
    found = registry.find(arguments.name)
    fields = card_fields(found.card, registry)
    fields["file_sha256"] = code_sha256(registry.owner(found.card))
    if arguments.json:
        print_json({"card": fields, "chosen_weights": found.weights.tag if found.weights else None})
        return 0
    for key, value in fields.items():
        if key != "weights" and value not in (None, "", [], {}):
            print(f"{key:<16}{value}")
    for row in found.card.weights:
        mark = "*" if row is found.weights else " "
        print(f"weights {mark} {row.tag}  {human_bytes(row.size_bytes)}  {row.licence or found.card.licence or ''}")
        if row.score_scale:
            print(f"    score scale  {row.score_scale}")
        for file in row.files:
            print(f"    {file.role}  sha256 {file.sha256 or 'not pinned by its publisher'}")
            for source in file.sources:
                print(f"      {source if isinstance(source, str) else ' + '.join(source)}")
    return 0


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
        "weights": [
            {
                "tag": row.tag,
                "licence": row.licence or card.licence,
                "bytes": row.size_bytes,
                "score_scale": row.score_scale,
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
            for row in card.weights
        ],
    }
