"""`zoo.lock`: which plugins, in which versions, made of which bytes, and whose name wins, written down and compared."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo import __version__
from zoo.errors import ManifestError
from zoo.registry.atomic_write import write_text
from zoo.registry.documents import parse_toml
from zoo.registry.lookup import Registry
from zoo.registry.plugin import Plugin, code_sha256

FORMAT = 1
HEADER = "# Plugins of the zoo, as they were when this file was written. Compare with: zoo lock --check"


def locked(registry: Registry) -> dict[str, Any]:
    """What a lock file says of this environment now. Reads the plugins' files; imports nothing."""
    return {
        "format": FORMAT,
        "zoo": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": metadata.version("torch"),
        "plugin": [_row(plugin) for plugin in registry.plugins],
        "pins": dict(registry.settings.pins),
        "defaults": dict(registry.settings.defaults),
    }


def write_lock(registry: Registry, path: Path) -> None:
    """Write the lock file, whole or not at all."""
    import tomlkit

    write_text(path, f"{HEADER}\n{tomlkit.dumps(locked(registry))}")


def read_lock(path: Path) -> dict[str, Any]:
    """Raises ManifestError, with the key at fault, for a file that is missing or that `write_lock` did not write."""
    try:
        document = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: there is no lock file; write one with: zoo lock") from None
    except OSError as error:
        raise ManifestError(f"{path}: the lock file cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ManifestError(f"{path}: not valid TOML ({error}); write it anew with: zoo lock") from None
    if document.get("format") != FORMAT:
        raise ManifestError(f"{path}: not a lock file of format {FORMAT}; write it anew with: zoo lock")
    for key, complaint in _complaints(document):
        raise ManifestError(f"{path}: {key} {complaint}; write it anew with: zoo lock")
    return document


def _complaints(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of a lock file that do not hold what `locked` puts there."""
    for key in ("zoo", "python", "torch"):
        yield from _other_than(document, key, key, str)
    for key in ("pins", "defaults"):
        yield from _other_than(document, key, key, dict)
        for name in document[key]:
            yield from _other_than(document[key], name, f"{key}.{name}", str)
    yield from _other_than(document, "plugin", "plugin", list)
    for number, row in enumerate(document["plugin"], 1):
        yield from _other_than({"": row}, "", f"[[plugin]] {number}", dict)
        for key, kind in _ROW.items():
            yield from _other_than(row, key, f"{key} of [[plugin]] {number}", kind)


_ROW = {"name": str, "distribution": str, "version": str, "enabled": bool, "files_sha256": str}
_KINDS = {str: "a string", bool: "true or false", dict: "a table", list: "an array of tables"}


def _other_than(row: Mapping[str, Any], key: str, where: str, kind: type) -> Iterator[tuple[str, str]]:
    if key not in row:
        yield where, f"is missing, expected {_KINDS[kind]}"
    elif not isinstance(row[key], kind):
        yield where, f"must be {_KINDS[kind]}, got {row[key]!r:.80}"


def differences(registry: Registry, path: Path) -> list[str]:
    """What is not as the lock file says, each with the command that mends it."""
    then, now = read_lock(path), locked(registry)
    found = [
        f"{name} is {now[name]}, locked is {then[name]}" for name in ("zoo", "python", "torch") if now[name] != then[name]
    ]
    return [*found, *_plugin_differences(then["plugin"], now["plugin"]), *_choices(then, now)]


def _plugin_differences(then: list[Mapping[str, Any]], now: list[Mapping[str, Any]]) -> Iterator[str]:
    installed = {(row["distribution"], row["name"]): row for row in now}
    for row in then:
        key = (row["distribution"], row["name"])
        requirement = f"'{row['distribution']}=={row['version']}'"
        other = installed.pop(key, None)
        if other is None:
            yield f"{row['distribution']} {row['version']} is not installed: zoo install {requirement}"
        elif other["version"] != row["version"]:
            yield f"{row['distribution']} is {other['version']}, locked is {row['version']}: zoo install {requirement}"
        elif other["enabled"] != row["enabled"]:
            verb = "enable" if row["enabled"] else "disable"
            yield f"{row['distribution']} is {'not ' if row['enabled'] else ''}enabled, unlike when it was locked: zoo {verb} {row['name']}"
        elif other["files_sha256"] != row["files_sha256"]:
            yield (
                f"{row['distribution']} {row['version']} has other files than were locked: "
                f"pip install --force-reinstall --no-deps {requirement}"
            )
    for distribution, name in installed:
        yield f"{distribution} is installed and not locked: zoo disable {name}, zoo uninstall {distribution}, or zoo lock"


def _choices(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for table, verb in (("pins", "pin"), ("defaults", "default")):
        before, after = then[table], now[table]
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                cure = (
                    f"zoo {verb} {name} {before[name]}" if name in before else "zoo lock, or take it out of the config file"
                )
                yield f"[{table}] {name} is {after.get(name, 'not set')}, locked is {before.get(name, 'not set')}: {cure}"


def _row(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "enabled": plugin.state != "disabled",
        "files_sha256": code_sha256(plugin) or "",
    }
