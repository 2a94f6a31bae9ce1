"""Commands that plugins bring, as rows of their manifests: `zoo --help` lists them, and only running one imports its plugin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from zoo.cli.output import add_output_options, say
from zoo.errors import PluginError, ZooError

if TYPE_CHECKING:
    from zoo.registry.lookup import Registry
    from zoo.registry.offers import Command
    from zoo.registry.plugin import Plugin

HELP = ("-h", "--help")
RUN = "zoo command of a plugin"  # where its function stands among the arguments: under a name that no argument has


def add_plugin_commands(commands: Any, arguments: Sequence[str]) -> None:
    """Add what the arguments need to know: nothing for a command of the core, else a row for each command of a usable plugin.

    The one that is asked for gets its arguments from its plugin. A command of the core keeps its name; of one that two plugins bring
    none runs, and the error says which they are, as it does for one whose plugin cannot be used.
    """
    asked = next((argument for argument in arguments if not argument.startswith("-") or argument in HELP), None)
    if asked is None or asked in commands.choices:
        return
    from zoo.registry.lookup import USABLE, default_registry

    try:
        registry = default_registry()
    except ZooError as error:
        if asked not in HELP:
            raise
        say(f"zoo: commands of plugins are left out: {error}", file=sys.stderr)
        return
    rows = _rows(registry, commands.choices)
    for name, owners in rows.items():
        usable = [(plugin, row) for plugin, row in owners if plugin.state in USABLE]
        if name == asked:
            _refuse_unusable(name, owners, usable)
        if not usable:
            continue
        plugin, row = usable[0]
        summary = f"{row.summary} (plugin {plugin.name})"
        command = commands.add_parser(name, help=summary.replace("%", "%%"), description=row.summary.replace("%", "%%"))
        add_output_options(command)
        if name == asked:
            command.set_defaults(**{RUN: _built(command, plugin, row, registry)})


def _rows(registry: Registry, taken: Collection[str]) -> dict[str, list[tuple[Plugin, Command]]]:
    """Command -> the plugins that bring it, whatever state they are in."""
    found: dict[str, list[tuple[Plugin, Command]]] = {}
    for plugin in registry.plugins:
        for row in plugin.offers.commands:
            if row.name not in taken and plugin.state != "disabled":
                found.setdefault(row.name, []).append((plugin, row))
    return dict(sorted(found.items()))


def _refuse_unusable(name: str, owners: Sequence[tuple[Plugin, Command]], usable: Sequence[tuple[Plugin, Command]]) -> None:
    """Raise PluginError for a command that no plugin, or more than one, can run."""
    from zoo.registry.plugin import describe

    if not usable:
        (plugin, _), *_ = owners
        raise PluginError(f"{name!r} cannot be run: {describe(plugin)} is {plugin.state} ({plugin.error}); {plugin.cure}")
    if len(usable) > 1:
        names = " and ".join(f"{owner.name} ({owner.distribution})" for owner, _ in usable)
        raise PluginError(f"{name!r} is a command of two plugins, {names}: disable one of them (zoo disable NAME)")


def _built(
    command: argparse.ArgumentParser, plugin: Plugin, row: Command, registry: Registry
) -> Callable[[argparse.Namespace], int]:
    """What runs a command, after its plugin has added the arguments. Raises PluginError, which names the plugin."""
    from zoo.registry.activation import resolve
    from zoo.registry.plugin import describe, one_line

    def guarded(call: Callable[[], Any], doing: str) -> Any:
        try:
            return call()
        except (ZooError, OSError):  # which the command line says in one line
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and doing == "running":
                raise
            raise PluginError(
                f"{describe(plugin)} raised {type(error).__name__} while {doing} its command {row.name}: {one_line(error)} "
                f"(--debug shows where)"
            ) from error

    build = resolve(plugin, row.build, registry.manager)
    run = guarded(lambda: build(command), "building")
    if not callable(run):
        raise PluginError(
            f"{describe(plugin)}: {row.build} must return what runs its command {row.name}, got {type(run).__name__}"
        )

    def checked(arguments: argparse.Namespace) -> int:
        code: object = guarded(lambda: run(arguments), "running")
        if not isinstance(code, int) or isinstance(code, bool):
            raise PluginError(f"{describe(plugin)}: its command {row.name} must return an exit code, got {code!r:.80}")
        return code

    return checked
