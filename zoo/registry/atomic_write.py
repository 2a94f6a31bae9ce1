"""What has its final name is whole: a file or a folder is written under another name beside it, brought to the disk, and renamed.

The other name is random and made anew (O_EXCL, O_NOFOLLOW), so that no link that somebody put there is written through. It says which
process of which machine writes there: what a killed one left is removed by the next that writes under the same final name.
"""

from __future__ import annotations

import errno
import hashlib
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
ASIDE = re.compile(r"\..{1,40}\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<whole>[0-9a-f]{16})\.old", re.DOTALL)
LEFT = re.compile(r"\.(?P<name>.{1,40})\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{16}\.part", re.DOTALL)


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """The name to write to: when the block ends, what is there takes the place of `path`; an exception leaves `path` as it was.

    The new file has the owner, the group and the mode of the old one; where the user may not give it that group, the group may do no more than
    everybody. Without an old file the user's umask decides. A link of the user's own
    stays one, and the file that it points to is replaced; somebody else's link is replaced itself.
    durable: False where a file that a power cut damages is noticed, and costs less than waiting for the disk.
    Raises OSError where the disk refuses, and for what is there and no file.
    """
    path = final_place(path)
    with suppress(FileNotFoundError):
        if not (stat.S_ISREG(path.lstat().st_mode) or path.is_symlink()):
            raise FileExistsError(errno.EEXIST, "it is there and is no file", str(path))
    temporary = _new_name(path)
    with _named(temporary, path):
        like = _create(temporary, path)
        try:
            yield temporary
            _finish(temporary, like=like, durable=durable)
            temporary.replace(path)
            if durable:
                sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_write_apart(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """As `atomic_write`, for a library that writes a file of its own beside the one that it is given: the name lies in an empty folder."""
    path = final_place(path)
    with atomic_write(path, durable=durable) as temporary:
        folder = _new_name(path)
        folder.mkdir()
        try:
            yield folder / path.name
            (folder / path.name).replace(temporary)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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
    inside = path.is_dir() and _stays(path)
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
        if _swap(temporary, path):
            _carry_over(temporary, path)  # what somebody put there since
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
    path = Path(os.path.abspath(path))  # noqa: PTH100 - pathlib keeps `..`, and has no name for `.`
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
    if not _is_dead(process):
        return
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's process, which lives; or no number of one
        return False
    return False


@lru_cache(maxsize=1)
def _machine() -> str:
    """8 hex digits of where a process's number means something: the machine, and the container on it. Others may share the folder."""
    known = [platform.node()]
    with suppress(OSError):
        known.append(Path("/etc/machine-id").read_text(encoding="ascii"))
    with suppress(OSError):
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return f"{zlib.crc32(' '.join(known).encode('utf-8', 'surrogateescape')):08x}"


@contextmanager
def _named(temporary: Path, path: Path) -> Iterator[None]:
    """An error of the system speaks of the file that the user named, not of the name that it has for a moment."""
    try:
        yield
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise


def _new_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:NAME_KEPT]}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.part")


def _create(temporary: Path, path: Path) -> os.stat_result:
    """An empty file; of the one whose owner, group and mode it is to have."""
    _remove_left(path.parent.absolute(), os.getpid())
    handle = os.open(temporary, READ_WRITE | os.O_CREAT | os.O_EXCL, 0o666)
    like = os.fstat(handle)
    with suppress(OSError):
        old = path.lstat()
        like = old if stat.S_ISREG(old.st_mode) else like
    os.close(handle)
    return like


def _finish(temporary: Path, *, like: os.stat_result | None = None, durable: bool = True) -> None:
    """Have a closed file on the disk, with owner, group and mode: a library that put a file of its own there has kept it to its owner."""
    handle = os.open(temporary, os.O_RDONLY | NOT_A_LINK)
    try:
        if like is not None:
            _give(handle, like)
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def _give(handle: int, like: os.stat_result) -> None:
    """Give an open file or folder the owner, the group and the mode of another."""
    now, mode = os.fstat(handle), stat.S_IMODE(like.st_mode)
    for owner in (like.st_uid, -1):  # only the administrator gives to others
        with suppress(OSError):
            if (now.st_uid, now.st_gid) != (like.st_uid, like.st_gid):
                os.fchown(handle, owner, like.st_gid)
            break
    if os.fstat(handle).st_gid != like.st_gid:
        mode = mode & ~0o2070 | (mode & 0o007) << 3
    os.fchmod(handle, mode)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            if not Path(parent, name).is_symlink():
                _finish(Path(parent, name))
        sync_folder(Path(parent))


def _carry_over(old: Path, new: Path) -> None:
    """Have in `new`, under a second name each, the files of `old` that it lacks; and owner, group and mode of those that it has."""
    _make_alike(old, new)
    for entry in sorted(old.iterdir()):
        written = new / entry.name
        if entry.is_dir() and not entry.is_symlink():
            if not written.exists():
                written.mkdir()
            if written.is_dir():
                _carry_over(entry, written)
        elif written.is_file() and entry.is_file():
            _make_alike(entry, written)
        elif not written.exists():
            try:
                os.link(entry, written, follow_symlinks=False)
            except OSError:  # a file system without second names
                shutil.copy2(entry, written, follow_symlinks=False)
                if not written.is_symlink():
                    _finish(written)


def _make_alike(old: Path, new: Path) -> None:
    handle = os.open(new, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        _give(handle, old.stat())
    finally:
        os.close(handle)


def _stays(folder: Path) -> bool:
    """Whether a folder cannot be renamed, or may not: a process would stand in the one that is removed."""
    here = Path(os.path.realpath("."))
    real = Path(os.path.realpath(folder))
    return os.path.ismount(folder) or not os.access(folder.parent, os.W_OK) or real == here or real in here.parents


def _swap(new: Path, path: Path) -> bool:
    """Give a folder its name. Afterwards the old one, if there was one, has the other name (True) or none."""
    if not path.exists() or not any(path.iterdir()):
        new.replace(path)
        return False
    if _exchanged(new, path):
        return True
    aside = _aside(path)
    path.replace(aside)
    try:
        new.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return False


def _aside(path: Path) -> Path:
    """Where the old folder lies between two renames. The name tells who does that, and to which folder."""
    return path.with_name(f".{path.name[:NAME_KEPT]}.{_machine()}-{os.getpid()}-{_whole(path)}.old")


def _whole(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]


def _bring_back(path: Path) -> None:
    """Undo a swap of two steps that was killed between them."""
    if not path.parent.is_dir():
        return
    for entry in os.scandir(path.parent):
        match = ASIDE.fullmatch(entry.name)
        if match and (match["machine"], match["whole"]) == (_machine(), _whole(path)) and _is_dead(int(match["process"])):
            if path.exists():
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).replace(path)


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
