"""TOML and JSON that somebody else may have written: what the parsers of Python raise for hostile ones is one kind of error here."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

LONGEST_NUMBER = 20  # digits and a sign of 64 bits; more is no number of ours, and Python refuses to print the longest


def parse_toml(text: str) -> dict[str, Any]:
    """Raises TOMLDecodeError, a ValueError, for what is no TOML, is nested too deeply, or holds a whole number of more than 64 bits."""
    try:
        document = tomllib.loads(text)
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in _values(document)):
            raise tomllib.TOMLDecodeError("a whole number of more than 64 bits")
    except RecursionError:
        raise tomllib.TOMLDecodeError("nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # of a number of thousands of digits
        raise tomllib.TOMLDecodeError(str(error)) from None
    return document


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Raises ValueError for what is no JSON, is nested too deeply, or holds a whole number that is too long.

    unique: also where an object has a name twice.
    """
    try:
        return json.loads(text, parse_int=_number, object_pairs_hook=_once if unique else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {twice!r:.80} occurs twice")
    return found


def _values(document: Any) -> Iterator[Any]:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        else:
            yield value
