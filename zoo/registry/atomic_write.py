"""What has its final name is whole: a file or a folder is written under another name beside it, brought to the disk, and renamed.

The other name is random and made anew (O_EXCL, O_NOFOLLOW), so that no link that somebody put there is written through. It says which
process of which machine writes there: what a killed one left is removed by the next that writes under the same final name.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

SYSTEM = 0  # the user that owns the links of the system
NAME_KEPT = 40  # characters of a name: with what is added, the longest name a file system takes stays one
NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
READ_WRITE = os.O_RDWR | NOT_A_LINK
LEFT = re.compile(r"\.(?P<name>.{1,40})\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{16}\.part", re.DOTALL)


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """The name to write to: when the block ends, what is there takes the place of `path`; an exception leaves `path` as it was.

    The new file may be read by whom the old one could be; without an old one, by whom the user's umask lets. A link of the user's own
    stays one, and the file that it points to is replaced; somebody else's link is replaced itself.
    durable: False where a file that a power cut damages is noticed, and costs less than waiting for the disk.
    Raises OSError where the disk refuses, and for what is there and no file.
    """
    path = final_place(path)
    with suppress(FileNotFoundError):
        if not (stat.S_ISREG(path.lstat().st_mode) or path.is_symlink()):
            raise FileExistsError(errno.EEXIST, "it is there and is no file", str(path))
    temporary, mode = _new_file(path)
    try:
        yield temporary
        _finish(temporary, mode=mode, durable=durable)
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill: when the block ends, it takes the place of `path`; an exception leaves `path` as it was.

    What an old folder has beside the files that were written anew stays in it. Where the system swaps two names at once, there is a whole
    folder under the name at every moment; elsewhere the old one is beside it for an instant.
    Raises OSError where the disk refuses, and for what is there and no folder.
    """
    path = final_place(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is there and is no folder", str(path))
    inside = path.is_dir() and (os.path.ismount(path) or not os.access(path.parent, os.W_OK))  # it cannot be renamed
    place = path / path.name if inside else path
    _bring_back(path)
    _remove_left(place.parent.absolute(), os.getpid())
    temporary = _new_name(place)
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        if inside:
            _move_in(temporary, path)
            return
        if path.is_dir():
            _carry_over(path, temporary)
        _swap(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Make `text`, as UTF-8, the content of a file: whole, or not at all. Raises OSError."""
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Make `data` the content of a file: whole, or not at all. Raises OSError."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def open_own(path: Path, *, keep: bool = False) -> BinaryIO:
    """Open a file of a name that others can guess, for reading and writing, because a later run is to find it there.

    A link, or a second name of another file, is removed and not written through. keep: leave what an earlier run wrote, and stand behind it.
    Raises OSError.
    """
    for _ in range(2):
        remove_link(path)
        handle = os.open(path, READ_WRITE | os.O_CREAT, 0o666)
        opened = os.fstat(handle)
        if stat.S_ISREG(opened.st_mode) and opened.st_nlink == 1:
            break
        os.close(handle)  # put there since it was looked at
    else:
        raise FileExistsError(errno.EEXIST, "somebody else puts links there", str(path))
    file = os.fdopen(handle, "r+b")
    if keep:
        file.seek(0, os.SEEK_END)
    else:
        file.truncate(0)
    return file


def remove_link(path: Path) -> None:
    """Remove what has a name that others can guess, where it is a link or a second name of a file: what is written there would reach another."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            path.unlink()


def replace_durably(temporary: Path, final: Path) -> None:
    """Give a finished, closed file its name: afterwards `final` is the old file or the new one, whatever happens."""
    _finish(temporary)
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


def final_place(path: Path) -> Path:
    """What is replaced under a name: the file or folder that a link of the user's own, or of the system's, points to; else the name itself."""
    try:
        owner = path.lstat().st_uid if path.is_symlink() else None
    except OSError:
        return path
    trusted = owner is not None and (not hasattr(os, "geteuid") or owner in (SYSTEM, os.geteuid()))
    return Path(os.path.realpath(path)) if trusted else path


@lru_cache(maxsize=256)
def _remove_left(folder: Path, _process: int) -> None:
    """Remove, once in each process, what killed ones of this machine left in a folder while they wrote there. Raises nothing."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = LEFT.fullmatch(entry.name)
            if match and match["machine"] == _machine():
                with suppress(OSError):
                    _remove_if_dead(Path(entry.path), int(match["process"]))


def _remove_if_dead(left: Path, process: int) -> None:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    except (OSError, OverflowError):  # somebody else's process, which lives; or no number of one
        return


def _machine() -> str:
    """8 hex digits of the machine: a process's number means nothing on another that shares the folder."""
    return f"{zlib.crc32(platform.node().encode('utf-8', 'surrogateescape')):08x}"


def _new_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:NAME_KEPT]}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.part")


def _new_file(path: Path) -> tuple[Path, int]:
    """An empty file of a name that nobody could guess, and the mode that `path` is to have."""
    _remove_left(path.parent.absolute(), os.getpid())
    temporary = _new_name(path)
    handle = os.open(temporary, READ_WRITE | os.O_CREAT | os.O_EXCL, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    with suppress(OSError):
        old = path.lstat()
        mode = stat.S_IMODE(old.st_mode) if stat.S_ISREG(old.st_mode) else mode
    with suppress(OSError):
        os.fchmod(handle, mode | 0o600)
    os.close(handle)
    return temporary, mode


def _finish(temporary: Path, *, mode: int | None = None, durable: bool = True) -> None:
    """Have a closed file on the disk, with a mode: a library that put a file of its own there has kept it to its owner."""
    handle = os.open(temporary, os.O_RDONLY | NOT_A_LINK)
    try:
        if mode is not None:
            os.fchmod(handle, mode)
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _finish(Path(parent, name))
        sync_folder(Path(parent))


def _carry_over(old: Path, new: Path) -> None:
    """Have in `new`, under a second name each, the files of `old` that it lacks; and the modes of those that it has."""
    shutil.copymode(old, new)
    for entry in sorted(old.iterdir()):
        written = new / entry.name
        if entry.is_dir() and not entry.is_symlink():
            written.mkdir(exist_ok=True)
            _carry_over(entry, written)
        elif written.exists():
            shutil.copymode(entry, written)
        else:
            try:
                os.link(entry, written, follow_symlinks=False)
            except OSError:  # a file system without second names
                shutil.copy2(entry, written, follow_symlinks=False)


def _swap(new: Path, path: Path) -> None:
    """Give a folder its name. Afterwards the old one, if there was one, has the other name or none."""
    if not path.exists() or not any(path.iterdir()):
        new.replace(path)
        return
    if _exchanged(new, path):
        return
    aside = _aside(path)
    path.replace(aside)
    try:
        new.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name[:NAME_KEPT]}.old")


def _bring_back(path: Path) -> None:
    """Undo a swap of two steps that was killed between them."""
    aside = _aside(path)
    if aside.is_dir() and not aside.is_symlink():
        if path.exists():
            shutil.rmtree(aside)
        else:
            aside.replace(path)


def _exchanged(first: Path, second: Path) -> bool:
    """Swap two names at once (renameat2 of Linux); False where the system or the file system cannot."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    code: int = rename(here, os.fsencode(first), here, os.fsencode(second), exchange)
    return code == 0


def _move_in(temporary: Path, path: Path) -> None:
    """Into a folder that cannot be renamed itself, file by file, each whole."""
    for file in sorted(one for one in temporary.rglob("*") if one.is_file()):
        final = path / file.relative_to(temporary)
        final.parent.mkdir(parents=True, exist_ok=True)
        file.replace(final)
        sync_folder(final.parent)
