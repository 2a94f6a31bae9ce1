"""Fields of the tables of a manifest, each with the error that names it. They are data: nothing here runs plugin code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from zoo.registry.modality import MODALITIES

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

_Row = TypeVar("_Row")


class FieldError(Exception):
    """A bad field, in the `number`-th table of that name once the caller has said so."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.table = ""
        self.number = 0


def refuse_unknown(row: Mapping[str, Any], known: set[str]) -> None:
    """Raise FieldError for a field that the table does not have."""
    for key in row:
        if key not in known:
            raise FieldError(key, f"unknown field {key!r}; known are {', '.join(sorted(known))}")


def each(document: Mapping[str, Any], table: str, parse: Callable[[Mapping[str, Any]], _Row]) -> Iterator[_Row]:
    """What `parse` makes of each row of an array of tables; an error says which row it was."""
    for number, row in enumerate(tables_of(document, table)):
        try:
            yield parse(row)
        except FieldError as error:
            error.table, error.number = table, number
            raise


def target_of(row: Mapping[str, Any], key: str) -> str | None:
    """`"package.module:function"`, or None where it is left out."""
    target = text_of(row, key) or None
    if target is not None and not TARGET.fullmatch(target):
        raise FieldError(key, f'{key} is "package.module:function", got {target!r}')
    return target


def text_of(row: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    """A string on one line; empty where it is left out."""
    value = row.get(key, "")
    if not isinstance(value, str) or (required and not value):
        raise FieldError(key, f"{key} must be a {'non-empty ' if required else ''}string, got {value!r}")
    if not value.isprintable():
        raise FieldError(key, f"{key} must be printable text on one line, got {value!r}")
    return value


def texts_of(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings."""
    value = row.get(key, [])
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item.isprintable() for item in value):
        raise FieldError(key, f"{key} must be a list of printable strings, got {value!r}")
    return tuple(value)


def tables_of(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """An array of tables."""
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise FieldError(key, f"{key} must be an array of tables ([[{key}]])")
    return value


def table_of(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table of plain data, frozen."""
    value = row.get(key, {})
    if not isinstance(value, Mapping):
        raise FieldError(key, f"{key} must be a table, got {value!r}")
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
        raise FieldError(key, f"{key} may hold strings, numbers, booleans, lists and tables, got {value!r}")


def count_of(row: Mapping[str, Any], key: str) -> int | None:
    """A whole number, or None where it is left out."""
    value = row.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise FieldError(key, f"{key} must be a whole number, got {value!r}")
    return value


def choice_of(row: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """A string that is one of the choices."""
    value = text_of(row, key, required=True)
    if value not in choices:
        raise FieldError(key, f"{key} must be one of {', '.join(choices)}, got {value!r}")
    return value


def modalities_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """At least one known modality."""
    values = texts_of(row, "modalities")
    wrong = [value for value in values if value not in MODALITIES]
    if wrong or not values:
        raise FieldError("modalities", f"modalities must be among {', '.join(MODALITIES)}, got {list(values) or 'none'}")
    return values


def line_of(text: str, table: str, number: int, key: str) -> int:
    """Line of `key` inside the `number`-th `[[table]]` (the header's own line when the key is absent).

    tomllib keeps no positions, so the source is searched; only error messages depend on it.
    """
    lines = text.split("\n")  # as TOML counts them
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
