"""The user's choices and the places on disk, from environment variables and one config file.

    ZOO_CONFIG   the config file           ZOO_DISABLE   plugins to leave out, comma-separated
    ZOO_CACHE    weights and derived data  ZOO_PLUGINS   the only plugins to use, comma-separated
    ZOO_STATE    records of failures       ZOO_STRICT    1: a broken plugin raises instead of being set aside
                                           ZOO_OFFLINE   1: never touch the network

The config file is TOML: `disabled = [...]`, `only = [...]`, `[pins]` and `[defaults]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from zoo.errors import ManifestError
from zoo.registry.atomic_write import write_text
from zoo.registry.documents import parse_toml
from zoo.registry.terminal import message as terminal_message

APPLICATION = "modalzoo"
KEYS = ("disabled", "only", "pins", "defaults")
NO_HOME = "set HOME, or ZOO_CONFIG, ZOO_CACHE and ZOO_STATE to paths without ~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What discovery needs to know before it looks at anything.

    disabled, only: plugin or distribution names; `only=None` allows all. disabled_by_environment: those of `disabled` that a
        variable names, which no command can enable.
    pins: a model name, short name or plugin name -> the distribution (or full name) that wins a clash.
    defaults: task -> model name.
    """

    disabled: tuple[str, ...] = ()
    disabled_by_environment: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False


def config_file() -> Path:
    return _place("ZOO_CONFIG", lambda: platformdirs.user_config_path(APPLICATION) / "config.toml")


def cache_dir() -> Path:
    return _place("ZOO_CACHE", lambda: platformdirs.user_cache_path(APPLICATION))


def state_dir() -> Path:
    return _place("ZOO_STATE", lambda: platformdirs.user_state_path(APPLICATION))


def _place(variable: str, usual: Callable[[], Path]) -> Path:
    """The path that a variable names, or the usual one; ~ is the home of the user, and never a folder of that name.

    Raises ManifestError where nobody says where that home is: no HOME, and no entry for the user.
    """
    given = os.environ.get(variable)
    try:
        path = (Path(given) if given else usual()).expanduser()
    except (RuntimeError, KeyError):  # as pathlib and pwd say it
        said = f"{variable}={given}" if given else f"{variable} is not set"
        raise ManifestError(
            f"there is no home folder (no HOME, and the user has no entry), and {said}: {NO_HOME}"
        ) from None
    return path


def offline() -> bool:
    """Whether the user forbade the network (`ZOO_OFFLINE` or the hub's own `HF_HUB_OFFLINE`)."""
    return any(os.environ.get(name, "") not in ("", "0") for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"))


def load_settings() -> Settings:
    """Environment over config file. Raises ManifestError when the config file is not what it must be."""
    path = config_file()
    try:
        document = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except ValueError as error:
        raise ManifestError(f"{path}: not valid TOML ({error}); mend it or delete it") from None
    except OSError as error:
        raise ManifestError(
            f"{path}: the config file cannot be read ({error.strerror}); mend it or set ZOO_CONFIG"
        ) from None
    unknown = [key for key in document if key not in KEYS]
    if unknown:
        _warn_once(f"{path}: unknown: {', '.join(unknown)}; known are {', '.join(KEYS)}. What is unknown has no effect")
    only = os.environ.get("ZOO_PLUGINS")
    by_environment = _split(os.environ.get("ZOO_DISABLE", ""))
    return Settings(
        disabled=(*_strings(path, document, "disabled"), *by_environment),
        disabled_by_environment=by_environment,
        only=_split(only) if only is not None else (_strings(path, document, "only") or None),
        pins=_string_table(path, document, "pins"),
        defaults=_string_table(path, document, "defaults"),
        strict=os.environ.get("ZOO_STRICT", "") not in ("", "0"),
    )


def change_config(key: str, name: str, value: str | bool | None) -> Path:
    """Write one choice into the config file, keeping its comments; returns the file.

    `key` is `disabled` (value True adds the name, False removes it) or a table (`pins`, `defaults`; None removes it). Raises ManifestError when
    the file cannot be written.
    """
    import tomlkit  # only the few commands that write the file pay for it

    path = config_file()
    try:
        return _change(path, tomlkit, key, name, value)
    except OSError as error:
        raise ManifestError(f"{path}: the config file cannot be written ({error.strerror}); set ZOO_CONFIG") from None


def _change(path: Path, tomlkit: Any, key: str, name: str, value: str | bool | None) -> Path:
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    if isinstance(value, bool):
        names = [item for item in document.get(key, []) if item != name]
        document[key] = [*names, name] if value else names
    else:
        table = document.setdefault(key, tomlkit.table())
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, tomlkit.dumps(document))
    return path


@cache
def _warn_once(message: str) -> None:
    """Settings are read more than once in a process; the same mistake is said once."""
    import logging  # listings that have nothing to say do not pay for it

    logging.getLogger("zoo").warning("%s", terminal_message(message))


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _strings(path: Path, document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ManifestError(f"{path}: {key} must be a list of names, got {value!r:.80}; mend it or delete it")
    return tuple(value)


def _string_table(path: Path, document: Mapping[str, Any], key: str) -> Mapping[str, str]:
    value = document.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ManifestError(f"{path}: [{key}] must map names to names, got {value!r:.80}; mend it or delete it")
    return value
