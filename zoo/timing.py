"""What a plugin costs, measured in a process of its own: to list it, and to import its code on top of torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from zoo import child
from zoo.activation import activate, identified, identify, new_manager, resolve
from zoo.discovery import scan
from zoo.errors import PluginError
from zoo.plugin import Plugin
from zoo.settings import load_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds and MB (resident memory) of one plugin.

    listing_ms: processor time to list it; imported: modules of the plugin, and torch, that listing it imported.
    torch_ms, torch_mb: importing torch, in the same process before the rest. import_ms, import_mb: its module and those of its
    builders, after that; None if that failed.
    """

    listing_ms: float
    imported: tuple[str, ...]
    torch_ms: float
    torch_mb: float
    import_ms: float | None
    import_mb: float | None


def cost(plugin: Plugin, *, timeout_s: float) -> Cost | None:
    """What a plugin costs; None if the child did not survive it."""
    targets = list(dict.fromkeys(card.build for card in plugin.cards if card.build))
    outcome = child.call("zoo.timing:_cost_here", {**identify(plugin), "targets": targets}, timeout_s=timeout_s)
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
    torch_ms, torch_mb = _measured(lambda: __import__("torch"))

    def load() -> None:
        activate(plugin, manager)
        for target in fields["targets"]:
            resolve(plugin, target, manager)

    try:
        import_ms, import_mb = _measured(load)
    except PluginError:
        import_ms = import_mb = None  # type: ignore[assignment]
    return {
        "listing_ms": listing_ms,
        "imported": imported,
        "torch_ms": torch_ms,
        "torch_mb": torch_mb,
        "import_ms": import_ms,
        "import_mb": import_mb,
    }


def _measured(load: Any) -> tuple[float, float]:
    memory, start = _peak_mb(), time.perf_counter()
    load()
    return 1000 * (time.perf_counter() - start), _peak_mb() - memory


def _peak_mb() -> float:
    import resource  # POSIX has it; nothing else of the zoo needs it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
