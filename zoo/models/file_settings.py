"""What a person's own weight file says of itself, asked of the plugin that knows such files, before a model is built for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.errors import PluginError, ZooError
from zoo.registry.activation import resolve, warn
from zoo.registry.lookup import Found, Registry
from zoo.registry.plugin import Plugin, describe
from zoo.weights.formats.gguf import is_gguf
from zoo.weights.formats.read import HEAD_BYTES
from zoo.weights.verified import Located, hashed

BESIDE = ("config.json",)
PATH = "_path"  # how arguments end that are files


def settings_of_file(
    path: Path, found: Found, owner: Plugin, registry: Registry, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of the builder that change for a file because it says so; each number that does is reported.

    arguments: what the builder would be called with. Raises WeightsError for a file that says what the model cannot keep, PluginError for
    a plugin that fails. A file whose settings nobody reads is reported, too.
    """
    target = found.card.settings
    if target is None:
        carrier = _carrier(path)
        if carrier is not None:
            warn(f"{carrier}: {describe(owner)} reads no settings for {found.card.name}, which is built as its card says")
        return {}
    try:
        said = dict(resolve(owner, target, registry.manager)(path, arguments))
    except ZooError:
        raise
    except Exception as error:
        raise PluginError(
            f"{describe(owner)} raised {type(error).__name__} while reading the settings of {path}: {error}"
        ) from error
    for name, value in said.items():
        if not name.endswith(PATH):
            _report(path, found, name, value, arguments.get(name))
    return said


def without_files(found: Found, said: Mapping[str, Any]) -> Found:
    """The same without the card's side files that the file itself brings."""
    row = found.weights
    if row is None:
        return found
    return replace(found, weights=replace(row, files=tuple(file for file in row.files if f"{file.role}{PATH}" not in said)))


def files_of(said: Mapping[str, Any], model: Located) -> dict[str, Located]:
    """Role -> file for those that the file itself brings, each by its hash."""
    paths = {name.removesuffix(PATH): Path(value) for name, value in said.items() if name.endswith(PATH)}
    return {role: model if path == model.path else hashed(path) for role, path in paths.items()}


def numbers_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What is no file: it shapes what is computed, and belongs to the identity."""
    return {name: value for name, value in said.items() if not name.endswith(PATH)}


def _report(path: Path, found: Found, name: str, value: Any, before: Any) -> None:
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        for inner in value:
            _report(path, found, f"{name}.{inner}", value[inner], before.get(inner))
    elif value != before:
        replaced = "the default" if before is None else repr(before)
        warn(f"{path}: its settings say {name} = {value!r}, which is taken in place of {replaced} of {found.card.name}")


def _carrier(path: Path) -> Path | None:
    """The file that carries settings: the weights themselves where their format always does, or one beside them."""
    with path.open("rb") as file:
        if is_gguf(file.read(HEAD_BYTES)):
            return path
    return next((path.parent / name for name in BESIDE if (path.parent / name).is_file()), None)
