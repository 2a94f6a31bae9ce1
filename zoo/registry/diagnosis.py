"""What `zoo doctor` reports: the machine, the folders, and every plugin after a trial in a process of its own."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from zoo import __version__
from zoo.registry.blame import damaged_distributions
from zoo.registry.discovery import API_VERSION, try_again
from zoo.registry.lookup import Registry
from zoo.registry.plugin import Plugin
from zoo.registry.settings import cache_dir, config_file, offline, state_dir

LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "safetensors", "huggingface_hub")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def environment() -> dict[str, Any]:
    """Versions, folders and settings, as JSON fields. Imports nothing heavy."""
    return {
        "zoo": __version__,
        "plugin_api": API_VERSION,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "cpu_features": _cpu_features(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "config": str(config_file()),
        "cache": str(cache_dir()),
        "state": str(state_dir()),
        "unwritable": [str(folder) for folder in (cache_dir(), state_dir()) if not _writable(folder)],
        "offline": offline(),
        "damaged": [f"{one.error}; {one.cure}" for one in damaged_distributions()],
    }


def try_all(registry: Registry, *, timeout_s: float) -> list[Plugin]:
    """Activate every usable plugin and import its builders, each in a child; returns the plugins with the state found.

    Failures are recorded, as any activation's are. Requirements that are installed in a version the plugin does not allow
    become notes.
    """
    tried = [try_again(plugin, timeout_s=timeout_s) for plugin in registry.plugins]
    return [replace(plugin, notes=(*plugin.notes, *_wrong_versions(plugin))) for plugin in tried]


def summary(plugins: Sequence[Plugin]) -> str:
    """`5 plugins tried, 4 ok, 1 broken (birdsong)`; those that are disabled were not tried."""
    tried = [plugin for plugin in plugins if plugin.state != "disabled"]
    words = [f"{len(tried)} plugin{'' if len(tried) == 1 else 's'} tried"]
    for state in ("ok", *sorted({plugin.state for plugin in tried} - {"ok"})):
        names = [plugin.name for plugin in tried if plugin.state == state]
        words.append(f"{len(names)} {state}" + ("" if state == "ok" else f" ({', '.join(names)})"))
    return ", ".join(words)


def _wrong_versions(plugin: Plugin) -> Iterator[str]:
    try:
        requirements = metadata.requires(plugin.distribution) or ()
    except metadata.PackageNotFoundError:
        return
    for text in requirements:
        try:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
        except (InvalidRequirement, ValueError):
            yield f"its requirement {text!r} cannot be read"
            continue
        installed = _version(requirement.name)
        if installed and not requirement.specifier.contains(installed, prereleases=True):
            yield (
                f"it needs {requirement.name}{requirement.specifier}, installed is {installed}: "
                f"pip install '{requirement.name}{requirement.specifier}'"
            )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_features() -> list[str]:
    """Those that number formats depend on, where the system tells (Linux)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\nflags")[2].partition("\n")[0].split()
    except OSError:
        return []
    return [feature for feature in CPU_FEATURES if feature in flags]


def _writable(folder: Path) -> bool:
    """Whether files can be made there, or the folder itself can."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
