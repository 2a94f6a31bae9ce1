"""The index of a folder of images: one unit vector for each content, in a flat faiss index, and which files hold that content.

It lies in `<folder>/.zoo-index/<model>/<identity>/` as `vectors-<hash>.faiss` and `index.json`, which names the former and begins
with its own hash. `index.json` is replaced as a whole, last, so that a reader sees the old state or the new one; whatever else
lies there is rubble. What brings it to what the folder holds is `zoo.tasks.photo_index_update`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from zoo.errors import UsageError, ZooError
from zoo.models.build import Built
from zoo.registry.atomic_write import atomic_write
from zoo.registry.settings import cache_dir

FOLDER = ".zoo-index"
FORMAT = 1
FLAT_INNER_PRODUCT = b"IxFI"  # how faiss begins the file of such an index; no other kind is ever read
KEPT_IDENTITIES = 3  # of one model: random weights and every change of code or settings make another
OURS = re.compile(
    r"vectors-[0-9a-f]{16}\.faiss|index\.json|lock|\.(vectors-[0-9a-f]{16}\.faiss|index\.json)\.[0-9a-f]{8}-\d+-[0-9a-f]{16}\.part"
)
IDENTITY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was when it was last read. sha256: None when its bytes could not be had."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str | None


@dataclass(slots=True)
class Index:
    """rows: the content (hex sha256) of each vector. files: path inside the folder -> what it was. unreadable: content -> why."""

    vectors: Any
    rows: list[str] = field(default_factory=list)
    files: dict[str, Seen] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def faiss_library() -> Any:
    """Raises UsageError, saying what to install."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its generated bindings, with newer Pythons
            import faiss
    except ImportError as error:
        raise UsageError(
            "zoo search keeps its index with faiss, which is missing: pip install 'modalzoo[search]'"
        ) from error
    return faiss


def index_home(folder: Path, built: Built) -> tuple[Path, str | None]:
    """Where the index of a folder lies, made if need be; and a note when that had to be the cache. Raises ZooError.

    Only the indexes of the few identities of the model that were used last stay beside it.
    """
    name = Path(built.name) / built.state_identity[:16]
    home = folder / FOLDER / name
    try:
        _make_home(home, folder)
    except OSError as error:
        digest = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
        fallback = cache_dir() / "search" / digest[:16] / name
        try:
            _make_home(fallback, cache_dir())
        except OSError as second:
            raise ZooError(
                f"{fallback}: cannot be written ({second.strerror or second}); ZOO_CACHE moves the cache"
            ) from second
        why = error.strerror or error
        _remove_old_identities(fallback)
        return fallback, f"{folder / FOLDER} cannot be written ({why}): the index is kept in {fallback}"
    _remove_old_identities(home)
    return home, None


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One process at a time reads and updates an index."""
    lock = FileLock(home / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logging.getLogger("zoo").warning("another search updates this index; waiting for it")
        lock.acquire()
    try:
        home.mkdir(parents=True, exist_ok=True)  # another process may have taken it for an old one while this one waited
        yield
    finally:
        lock.release()


def load_index(home: Path, width: int) -> tuple[Index, str | None]:
    """The index as it was saved, or an empty one of float[width] with a note why the old one could not be used."""
    faiss = faiss_library()
    path = home / "index.json"
    empty = Index(faiss.IndexFlatIP(width))
    try:
        checksum, _, text = path.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            raise ValueError("its hash differs")
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError("another release wrote it")
        data = (home / content["vectors"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != content["vectors_sha256"] or not data.startswith(FLAT_INNER_PRODUCT):
            raise ValueError(f"the hash of {content['vectors']} differs")
        found = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        if found.d != width or found.ntotal != len(content["rows"]):
            raise ValueError(f"{content['vectors']} holds something else")
        files = {name: Seen(*fields) for name, fields in content["files"].items()}
        return Index(found, content["rows"], files, content["unreadable"]), None
    except FileNotFoundError as error:
        return empty, None if str(error.filename) == str(
            path
        ) else f"the index was incomplete and is built anew ({error.filename})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return empty, f"{path}: the index was damaged ({error}) and is built anew"


def save_index(index: Index, home: Path) -> None:
    """Write both files; the new state counts from the moment the second has its name. Raises ZooError."""
    data = faiss_library().serialize_index(index.vectors).tobytes()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"vectors-{sha256[:16]}.faiss"
    content = {
        "format": FORMAT,
        "vectors": name,
        "vectors_sha256": sha256,
        "rows": index.rows,
        "unreadable": index.unreadable,
        "files": {path: list(asdict(seen).values()) for path, seen in index.files.items()},
    }
    text = json.dumps(content).encode()
    try:
        for file, written in ((name, data), ("index.json", hashlib.sha256(text).hexdigest().encode() + b"\n" + text)):
            with atomic_write(home / file) as temporary:
                temporary.write_bytes(written)
        _remove_ours(home, but=(name, "index.json", "lock"))
    except OSError as error:
        raise ZooError(f"{home}: the index cannot be written ({error.strerror or error})") from error


def _make_home(home: Path, top: Path) -> None:
    """Make the folder, and note that it is used now. Raises UsageError where a link leads out of the place it belongs in."""
    lock = home / "lock"
    for path, place in ((home, top.resolve() / home.relative_to(top)), (lock, home.resolve() / "lock")):
        if path.resolve() != place:
            raise UsageError(
                f"{path}: a symbolic link leads to {path.resolve()}, and files there would be written and deleted as the index; "
                f"remove the link"
            )
    home.mkdir(parents=True, exist_ok=True)
    with lock.open("ab"):
        pass
    os.utime(lock)


def _remove_ours(home: Path, but: Sequence[str] = ()) -> None:
    """Delete the files of an index; what else lies beside them is somebody's."""
    for path in home.iterdir():
        if OURS.fullmatch(path.name) and path.name not in but and (path.is_symlink() or path.is_file()):
            path.unlink(missing_ok=True)


def _remove_old_identities(home: Path) -> None:
    """Delete the indexes of the model's other identities, but for those that were used last; one that is in use stays."""
    with suppress(OSError):
        others = [
            path
            for path in home.parent.iterdir()
            if path != home and IDENTITY.fullmatch(path.name) and not path.is_symlink() and (path / "lock").is_file()
        ]
        others.sort(key=lambda path: (path / "lock").stat().st_mtime_ns, reverse=True)
        for old in others[KEPT_IDENTITIES - 1 :]:
            lock = FileLock(old / "lock")
            with suppress(Timeout, OSError), lock.acquire(timeout=0):
                _remove_ours(old)
                old.rmdir()  # refused where it holds something else
