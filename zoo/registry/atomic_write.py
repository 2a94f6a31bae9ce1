"""A file under its final name is whole: it is written under another name in the same folder, brought to the disk, and renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

NAME_KEPT = 40  # characters of a name: with what is added, the longest name a file system takes stays one
_numbers = count()  # of the names that this process has given


@contextmanager
def atomic_write(path: Path, *, temporary: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """The name to write to: when the block ends, what is there takes the place of `path`; an exception leaves `path` as it was.

    temporary: that name, in the folder of `path`, where a lock keeps others out and a later run is to find what a killed one left; else one
        that nobody else has.
    durable: False where a file that a power cut damages is noticed, and costs less than waiting for the disk.
    Raises OSError where the disk refuses.
    """
    if temporary is None:
        temporary = path.with_name(f".{path.name[:NAME_KEPT]}.{os.getpid()}.{next(_numbers)}.part")
    temporary.unlink(missing_ok=True)  # it may be a link, which is not to be written through
    try:
        yield temporary
        if durable:
            replace_durably(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Make `text`, as UTF-8, the content of a file: whole, or not at all. Raises OSError."""
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Make `data` the content of a file: whole, or not at all. Raises OSError."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def replace_durably(temporary: Path, final: Path) -> None:
    """Give a finished, closed file its name: afterwards `final` is the old file or the new one, whatever happens."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Have the folder's names on the disk, where the system offers that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
