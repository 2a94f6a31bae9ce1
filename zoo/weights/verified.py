"""A local file whose bytes were hashed, and whether it is still that file when its bytes have been loaded.

Readers of weights open a file by its path, after it was hashed. Which file it was, its size and its times are kept from the moment it was
hashed; no program can set the time of the last change. What was loaded counts only when all of them are the same afterwards.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import HashMismatchError


@dataclass(frozen=True, slots=True)
class Located:
    """A local file whose bytes have had this sha256 in this process. seen: device, inode, size, times of its last write and last change."""

    path: Path
    sha256: str
    seen: tuple[int, ...]


def sha256_of(path: Path) -> str:
    """Full sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashed(path: Path) -> Located:
    """A file with its sha256. Raises HashMismatchError for one that is written to meanwhile, OSError for one that cannot be read."""
    with path.open("rb") as file:
        seen = _seen(os.fstat(file.fileno()))
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if _seen(os.fstat(file.fileno())) != seen:
            raise HashMismatchError(_changed(path))
    return Located(path, sha256, seen)


def require_unchanged(*files: Located) -> None:
    """Call it when the bytes have been loaded. Raises HashMismatchError where they may not be those that were hashed."""
    for file in files:
        try:
            now = _seen(file.path.stat())
        except OSError:
            now = ()
        if now != file.seen:
            raise HashMismatchError(_changed(file.path))


def moved(located: Located, path: Path) -> Located:
    """A hashed file under the name that it has been given since, which changes its time of the last change and nothing else.

    Raises HashMismatchError where another file has that name.
    """
    now = _seen(path.stat())
    if now[:-1] != located.seen[:-1]:
        raise HashMismatchError(_changed(path))
    return Located(path, located.sha256, now)


def _seen(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _changed(path: Path) -> str:
    return (
        f"{path} was replaced or written to between its check and the end of its loading, so what was loaded is not known: "
        f"leave it alone, and run the command again"
    )
