"""The settings that a weight file carries, in itself or in a file beside it, and the builder's arguments that come of them.

A file says how it wants to be read: the base of its rotary positions, the epsilon of its norms, how images are prepared. A card's
function `settings` asks these functions and returns arguments of its builder; what it cannot keep is refused, with both values.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import WeightsError
from zoo.weights.formats.read import read_own_settings

LARGEST_FILE_BYTES = 16 << 20
LARGEST_COUNT = 1 << 20  # of a whole number that a file may set: a context of more tokens is no model's
SHOWN = 6  # differences in one message


def settings_of(path: Path, *, beside: str | None = None) -> Mapping[str, Any]:
    """What a weight file says beside its tensors: metadata of GGUF and safetensors, what a torch checkpoint holds beside them, the
    single numbers of CTranslate2. Empty for a file that says nothing, or of another format.

    beside: in place of that, the JSON object in the file of this name (config.json, say) in the folder that the weights lie in; empty
        where there is none.
    Raises WeightsError for a file that is damaged, and for one beside it that is too large, no valid JSON or no object.
    """
    return read_own_settings(path) if beside is None else _json_object(path.parent / beside)


def _json_object(beside: Path) -> Mapping[str, Any]:
    if not beside.is_file():
        return {}
    try:
        if beside.stat().st_size > LARGEST_FILE_BYTES:
            raise WeightsError(f"{beside} has more than {LARGEST_FILE_BYTES:,} bytes: it holds no settings")
        content = json.loads(beside.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{beside} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{beside} lies beside the weights and is no valid JSON ({error}): mend it, or take the weights elsewhere"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{beside} must hold a JSON object, got {type(content).__name__}")
    return content


def arguments_from(
    said: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    origin: Path | str,
    same: Mapping[str, str] | None = None,
    used: Mapping[str, str] | None = None,
    only: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings of a file -> the builder's arguments that they change.

    said: setting -> value; one that is missing or None says nothing. arguments: what the builder would be called with.
    origin: the file that says it, for messages.
    same: setting -> argument that the tensors depend on: another value is another model's file.
    used: setting -> argument, a number above 0, that the file decides.
    only: setting -> the value that this architecture is built with, alone; a tuple holds several.
    Raises WeightsError that names every setting of `same` and `only` that differs, and a number that no model has.
    """
    present = {name: value for name, value in said.items() if value is not None}
    wrong = [
        f"{name} is {_shown(present[name])}, the model has {_shown(arguments.get(argument))}"
        for name, argument in (same or {}).items()
        if name in present and not _equal(present[name], arguments.get(argument))
    ]
    for name, value in (only or {}).items():
        allowed = value if isinstance(value, tuple) else (value,)
        if name in present and not any(_equal(present[name], one) for one in allowed):
            wrong.append(
                f"{name} is {_shown(present[name])}, the model is built with {' or '.join(map(_shown, allowed))} alone"
            )
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WeightsError(f"{origin} is the file of another model: {'; '.join(wrong[:SHOWN])}{more}")
    changed: dict[str, Any] = {}
    for name, argument in (used or {}).items():
        if name in present:
            value = _number(present[name], arguments.get(argument), f"{origin}: {name}")
            if not _equal(value, arguments.get(argument)):
                changed[argument] = value
    return changed


def _number(value: Any, kind: Any, what: str) -> int | float:
    """A number above 0 of the kind that the argument has."""
    whole = type(kind) is int
    if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < float("inf"):
        raise WeightsError(f"{what} must be a {'whole ' if whole else ''}number above 0, got {_shown(value)}")
    if whole and value > LARGEST_COUNT:
        raise WeightsError(f"{what} must be at most {LARGEST_COUNT:,}, got {value:,}")
    try:
        return value if whole else float(value)
    except OverflowError:
        raise WeightsError(f"{what} is larger than any number of a model, got {_shown(value)}") from None


def _equal(one: Any, other: Any) -> bool:
    """The same value; numbers are the same where float32 cannot tell them apart, which is how many files write them."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other or _in_float32(one) == _in_float32(other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)


def _in_float32(number: float) -> float:
    try:
        value: float = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return math.inf
    return value


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, list, dict, type(None))) else f"of {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
