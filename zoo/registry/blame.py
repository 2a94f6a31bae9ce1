"""Whose fault a failure was, and on what it depended beside the plugin's own files: the verdict lapses when that changes."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

State = list[int] | None  # when a file or folder was changed and how large it is; None where there is none


@dataclass(frozen=True, slots=True)
class Damaged:
    """An installed distribution whose metadata cannot be read: whoever asks for all entry points, as torch does, fails by it."""

    name: str
    folder: Path
    reason: str

    @property
    def error(self) -> str:
        return f"the metadata of the distribution {self.name} is damaged ({self.folder}: {self.reason})"

    @property
    def cure(self) -> str:
        return f"pip install --force-reinstall {self.name}, or remove {self.folder}"


def damaged_distributions() -> list[Damaged]:
    """Reads the entry points of everything that is installed: for `zoo doctor`, and where something failed."""
    found = []
    for distribution in importlib.metadata.distributions():
        folder = Path(str(getattr(distribution, "_path", "")))
        try:
            _ = list(distribution.entry_points), distribution.metadata["Name"]
        except Exception as error:  # noqa: BLE001 - damaged metadata may fail in any way
            name = folder.stem.partition("-")[0]
            found.append(Damaged(name, folder, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return found


def at_fault(error: BaseException) -> Damaged | None:
    """The distribution by whose metadata an error came about; None where it had another reason."""
    if isinstance(error, importlib.metadata.PackageNotFoundError):
        return None
    library = str(Path(importlib.metadata.__file__).parent)
    if not any(file.startswith(library) for file in _files(error)):
        return None
    return next(iter(damaged_distributions()), None)


def depended_on(error: BaseException | None = None) -> dict[str, State]:
    """Files and folders that a failure may have come from, as they are now: those that its traceback goes through or its message names, what
    is damaged, and the folders in which modules are looked for, which change with whatever is installed.
    """
    here = str(Path.cwd())
    paths = [entry for entry in sys.path if entry and entry != here and Path(entry).is_dir()]
    if error is not None:
        culprit = at_fault(error)
        paths += [*_files(error), *([] if culprit is None else [str(culprit.folder / "entry_points.txt")])]
    return {path: _state(path) for path in dict.fromkeys(paths)}


def changed_since(known: Mapping[str, Any]) -> bool:
    """Whether something of it is no longer as it was."""
    return any(_state(path) != state for path, state in known.items())


def _files(error: BaseException | None) -> Iterator[str]:
    """Of the frames of an error and of what led to it, and those that their messages name."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield from (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        named = (getattr(error, name, None) for name in ("path", "filename"))
        yield from (str(path) for path in named if isinstance(path, (str, os.PathLike)))
        error = error.__cause__ or error.__context__


def _state(path: str) -> State:
    try:
        found = os.stat(path)  # noqa: PTH116 - a name of a frame may be none of a file
    except (OSError, ValueError):
        return None
    return [found.st_mtime_ns, found.st_size]
