"""Graphs that were converted before, kept in folders with the hashes of their files.

A folder is written under another name and renamed when it is whole. Losing one, or not being able to write, costs a conversion and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from zoo_openvino.library import openvino

GRAPH, WEIGHTS, RECORD = "graph.xml", "graph.bin", "sha256.json"
_PART, _REFUSED = ".part-", "-refused"
_ABANDONED_S = 24 * 60 * 60  # no graph is written for longer


def find(folder: Path) -> Path | None:
    """The graph in a folder; None where there is none, or a damaged one, which is removed with a warning."""
    if not folder.is_dir():
        return None
    try:
        recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        wrong = [name for name in (GRAPH, WEIGHTS) if recorded.get(name) != _sha256(folder / name)]
    except (OSError, ValueError, AttributeError):
        wrong = [RECORD]
    if not wrong:
        return folder / GRAPH
    warnings.warn(f"{folder / wrong[0]} is damaged: the module is converted anew", stacklevel=2)
    remove(folder)
    return None


def keep(graph: Any, folder: Path) -> Path | None:
    """Write a graph and give its path; None where it cannot be written, with a warning."""
    part = folder.parent / f"{_PART}{os.getpid()}-{token_hex(4)}"
    try:
        part.mkdir(parents=True)
        _remove_abandoned(folder.parent)
        openvino().save_model(graph, part / GRAPH, compress_to_fp16=False)
        record = {name: _sha256(part / name) for name in (GRAPH, WEIGHTS)}
        (part / RECORD).write_text(json.dumps(record), encoding="utf-8")
        part.rename(folder)  # refused where another process was faster, or a damaged folder could not be removed
    except (OSError, RuntimeError) as error:  # OpenVINO's own errors of a full disk are RuntimeErrors
        remove(part)
        found = find(folder)
        if found is None:
            said = str(error).splitlines() or [type(error).__name__]
            warnings.warn(
                f"a converted module is not kept in {folder.parent} ({said[0]}): it is converted again in each process",
                stacklevel=2,
            )
        return found
    except BaseException:
        remove(part)
        raise
    return folder / GRAPH


def refuse(folder: Path, precision: str, words: str) -> None:
    """Note that what a folder would hold answers wrongly in a precision, so that no later process converts it again."""
    with suppress(OSError):
        _note(folder, precision).write_text(words, encoding="utf-8")


def refused(folder: Path, precision: str) -> str | None:
    """Why what a folder would hold is of no use in a precision; None where that is not known."""
    with suppress(OSError, UnicodeError):
        return _note(folder, precision).read_text(encoding="utf-8")
    return None


def _note(folder: Path, precision: str) -> Path:
    return folder.with_name(f"{folder.name}{_REFUSED}-{precision}")


def _remove_abandoned(folder: Path) -> None:
    """What processes that were killed began to write."""
    for part in folder.glob(f"{_PART}*"):
        if time.time() - part.stat().st_mtime > _ABANDONED_S:
            remove(part)


def remove(folder: Path) -> None:
    """Take a folder away, as far as that can be done."""
    shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
