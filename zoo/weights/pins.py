"""What was seen at the first download of files whose publisher does not pin them: `$ZOO_CACHE/pins`, one JSON file each.

Such a file is trusted at first sight and held to its sha256 from then on. A record that cannot be read is an error, never a
new first sight: otherwise damaging it would be the way to have other bytes accepted.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from zoo.errors import WeightsError
from zoo.registry.atomic_write import write_text
from zoo.registry.card import File
from zoo.registry.documents import parse_json
from zoo.registry.settings import cache_dir

SHA256 = re.compile(r"[0-9a-f]{64}")


def file_key(file: File) -> str:
    """64 hex digits that stand for a file before its bytes are known: its sha256, or one over its sources."""
    return file.sha256 or hashlib.sha256(repr(file.sources).encode()).hexdigest()


def expected_sha256(file: File) -> str | None:
    """The card's hash; for a file that its publisher does not pin, the one seen at the first download, or None before it.

    Raises WeightsError, naming the file, when there is a record and it cannot be read.
    """
    if file.sha256 is not None:
        return file.sha256
    try:
        return _read(pin_path(file))[0]
    except (FileNotFoundError, NotADirectoryError):
        return None


def pin_path(file: File) -> Path:
    return _pins_dir() / f"{file_key(file)}.json"


def write_pin(file: File, sha256: str, model: str) -> None:
    """Record which bytes a file had, and for which model. The record is there completely or not at all."""
    path = pin_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"model": model, "sources": file.sources, "sha256": sha256}))


def drop_pin(file: File) -> bool:
    """Forget what was seen of a file, so that the next download is its first; False when nothing was recorded."""
    try:
        pin_path(file).unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_pins() -> tuple[dict[str, str], list[str]]:
    """sha256 -> model of every record, and a message for each that cannot be read."""
    pins: dict[str, str] = {}
    complaints: list[str] = []
    for path in sorted(_pins_dir().glob("*.json")):
        try:
            sha256, model = _read(path)
        except FileNotFoundError:  # dropped by another process since the folder was listed
            continue
        except WeightsError as error:
            complaints.append(str(error))
        else:
            pins[sha256] = model
    return pins, complaints


def _pins_dir() -> Path:
    return cache_dir() / "pins"


def _read(path: Path) -> tuple[str, str]:
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        sha256, model = record["sha256"], str(record.get("model", ""))
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise ValueError(f"sha256 must be 64 hex digits, got {sha256!r:.80}")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}, which records the sha256 that a file had at its first download, cannot be read "
            f"({type(error).__name__}: {error}); restore it, or to trust the next download as the first: zoo cache --unpin "
            f"NAME of the model, or delete it"
        ) from error
    return sha256, model
