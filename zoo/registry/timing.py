"""What a plugin costs, measured in a process of its own: to list it, and to import its code on top of torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.errors import PluginError
from zoo.registry import child
from zoo.registry.activation import activate, identified, identify, new_manager, resolve, targets
from zoo.registry.discovery import scan
from zoo.registry.plugin import Plugin
from zoo.registry.settings import load_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds and MB (resident memory) of one plugin.

    listing_ms: processor time to list it; imported: modules of the plugin, and torch, that listing it imported.
    torch_ms, torch_mb: importing torch, in the same process before the rest. import_ms, import_mb: its module and those of its
    builders, after that. None if that failed, or was not asked for.
    """

    listing_ms: float
    imported: tuple[str, ...]
    torch_ms: float | None = None
    torch_mb: float | None = None
    import_ms: float | None = None
    import_mb: float | None = None


def cost(plugin: Plugin, *, timeout_s: float, listing_only: bool = False) -> Cost | None:
    """What a plugin costs; None if the child did not survive it."""
    argument = {**identify(plugin), "targets": targets(plugin), "listing_only": listing_only}
    outcome = child.call("zoo.registry.timing:_cost_here", argument, timeout_s=timeout_s)
    if not outcome.finished:
        return None
    return Cost(**{**outcome.value, "imported": tuple(outcome.value["imported"])})


def _cost_here(fields: Mapping[str, Any]) -> dict[str, Any]:
    plugin, manager = identified(fields), new_manager()
    settings = replace(load_settings(), only=(plugin.distribution,), disabled=())
    scan(settings)  # once for the modules that reading any manifest needs
    start = time.process_time()
    scan(settings)
    listing_ms = 1000 * (time.process_time() - start)
    imported = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", plugin.package})
    found: dict[str, Any] = {"listing_ms": listing_ms, "imported": imported}
    if fields["listing_only"]:
        return found
    found["torch_ms"], found["torch_mb"] = _measured(lambda: __import__("torch"))

    def load() -> None:
        activate(plugin, manager)
        for target in fields["targets"]:
            resolve(plugin, target, manager)

    with suppress(PluginError):
        found["import_ms"], found["import_mb"] = _measured(load)
    return found


def _measured(load: Any) -> tuple[float, float]:
    memory, start = _peak_mb(), time.perf_counter()
    load()
    return 1000 * (time.perf_counter() - start), _peak_mb() - memory


def _peak_mb() -> float:
    """The most resident memory so far. Linux: of what runs since the last exec, whereas rusage still counts what was before."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        sizes = dict(line.split(":", 1) for line in lines if ":" in line)
        for key in ("VmHWM", "VmRSS"):
            if key in sizes:
                return int(sizes[key].split()[0]) / (1 << 10)
    import resource  # POSIX has it; nothing else of the zoo needs it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
