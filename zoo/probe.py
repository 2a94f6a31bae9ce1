"""Trying plugins in processes of their own: what `zoo doctor` does."""

from __future__ import annotations

from zoo.activation import try_in_child
from zoo.plugin import Plugin
from zoo.registry import Registry


def probe_all(registry: Registry, *, timeout_s: float) -> list[Plugin]:
    """Activate every usable plugin and import its builders, each in a child; returns the plugins with the state found.

    Failures are recorded, as any activation's are.
    """
    return [try_in_child(plugin, timeout_s=timeout_s) if _can_be_tried(plugin) else plugin for plugin in registry.plugins]


def _can_be_tried(plugin: Plugin) -> bool:
    """Not one that is disabled or incomplete, nor one whose manifest or listing already failed."""
    return plugin.state in ("ok", "shadowed", "broken") and bool(plugin.cards or plugin.families or plugin.schemes)
