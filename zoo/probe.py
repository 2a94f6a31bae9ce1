"""Trying a plugin in a child process, so that whatever it does (raise, hang, end the interpreter) happens there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from zoo.plugin import Plugin
from zoo.quarantine import record_failure, recorded
from zoo.registry import Registry

_CHILD = """
import sys
from zoo.registry import default_registry
from zoo.activation import activate, resolve
name, distribution = sys.argv[1:]
registry = default_registry()
plugin = next(p for p in registry.plugins if (p.name, p.distribution) == (name, distribution))
activate(plugin, registry.manager)
for target in dict.fromkeys(card.build for card in plugin.cards if card.build):
    resolve(plugin, target, registry.manager)
"""


def probe_all(registry: Registry, *, timeout_s: float) -> list[Plugin]:
    """Activate every usable plugin and import its builders, each in a child; returns the plugins with the state found.

    Failures are recorded by the child as any activation's are; a child that hangs or dies is recorded here.
    """
    return [
        probe(plugin, timeout_s=timeout_s) if plugin.state in ("ok", "shadowed", "broken") else plugin
        for plugin in registry.plugins
    ]


def probe(plugin: Plugin, *, timeout_s: float) -> Plugin:
    """One plugin's state after a trial of at most `timeout_s` seconds."""
    if plugin.manifest_sha256 is None:
        return plugin  # it was imported to be listed: its state is known
    command = [sys.executable, "-c", _CHILD, plugin.name, plugin.distribution]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)  # noqa: S603 - our own interpreter and code; the names come from installed metadata
    except subprocess.TimeoutExpired:
        return record_failure(plugin, f"its activation did not end within {timeout_s:g} s", "")
    if run.returncode == 0:
        return plugin if plugin.state == "shadowed" else replace(plugin, state="ok", error="", cure="", traceback="")
    known = recorded(plugin)
    if known.error and known.state != "shadowed":
        return known
    return record_failure(plugin, f"activating it ended the interpreter with exit code {run.returncode}", run.stderr)
