"""Whether a path may be read as a medium at all: asked before any decoder sees it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zoo.errors import MediaError


def expanded(path: str | Path) -> Path:
    """The path, with ~ at its beginning as the home of a user where there is one; a file may be called so, too."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def check_file(path: Path, what: str, *, max_bytes: int) -> None:
    """Raise MediaError unless the path is a regular file with something in it, and no more than `max_bytes`.

    what: what is expected there, as in "an image file".
    """
    try:
        if path.is_dir():
            with os.scandir(path):  # where that is refused, nobody meant one file
                raise MediaError(f"{path}: a folder, expected {what}")
        status = path.stat()
    except FileNotFoundError:
        raise MediaError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MediaError(f"{path}: cannot be read ({reason})") from error
    if not stat.S_ISREG(status.st_mode):  # a pipe or /dev/zero, which a list from elsewhere may name, has no end
        raise MediaError(f"{path}: not a regular file, expected {what}")
    if status.st_size > max_bytes:
        raise MediaError(f"{path}: {status.st_size:,} bytes, more than the limit of {max_bytes:,}")
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty")


def describe_content(head: bytes) -> str:
    """What a file that nobody could decode begins with, for an error."""
    printable = head[:64].isascii() and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:64])
    return "it holds text" if printable else f"it begins with {head[:4].hex(' ')}"
