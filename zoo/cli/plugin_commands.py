"""Commands that plugins bring, as rows of their manifests: `zoo --help` lists them, and only running one imports its plugin."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import PluginError

if TYPE_CHECKING:
    from zoo.registry.lookup import Registry
    from zoo.registry.offers import Command
    from zoo.registry.plugin import Plugin

HELP = ("-h", "--help")


def add_plugin_commands(commands: Any, arguments: Sequence[str]) -> None:
    """Add what the arguments need to know: nothing for a command of the core, else a row for each command of a usable plugin.

    The one that is asked for gets its arguments from its plugin. A command of the core keeps its name; of one that two plugins bring
    none runs, and the error says which they are.
    """
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    if asked in commands.choices:
        return
    if asked is None and not any(argument in HELP for argument in arguments):
        return
    from zoo.registry.lookup import default_registry

    registry = default_registry()
    for name, owners in _rows(registry, commands.choices).items():
        (plugin, row), *others = owners
        summary = f"{row.summary} (plugin {plugin.name})"
        command = commands.add_parser(name, help=summary.replace("%", "%%"), description=row.summary.replace("%", "%%"))
        if name != asked:
            continue
        if others:
            names = " and ".join(f"{owner.name} ({owner.distribution})" for owner, _ in owners)
            raise PluginError(f"{name!r} is a command of two plugins, {names}: disable one of them (zoo disable NAME)")
        command.set_defaults(run=_built(command, plugin, row, registry))


def _rows(registry: Registry, taken: Collection[str]) -> dict[str, list[tuple[Plugin, Command]]]:
    from zoo.registry.lookup import USABLE

    found: dict[str, list[tuple[Plugin, Command]]] = {}
    for plugin in registry.plugins:
        if plugin.state in USABLE:
            for row in plugin.offers.commands:
                if row.name not in taken:
                    found.setdefault(row.name, []).append((plugin, row))
    return dict(sorted(found.items()))


def _built(command: argparse.ArgumentParser, plugin: Plugin, row: Command, registry: Registry) -> Any:
    """What runs a command, after its plugin has added the arguments. Raises PluginError, which names the plugin."""
    from zoo.errors import ZooError
    from zoo.registry.activation import resolve
    from zoo.registry.plugin import describe, one_line

    build = resolve(plugin, row.build, registry.manager)
    try:
        run = build(command)
    except ZooError:
        raise
    except Exception as error:
        raise PluginError(
            f"{describe(plugin)} raised {type(error).__name__} while building its command {row.name}: {one_line(error)}"
        ) from error
    if not callable(run):
        raise PluginError(
            f"{describe(plugin)}: {row.build} must return what runs its command {row.name}, got {type(run).__name__}"
        )

    def checked(arguments: argparse.Namespace) -> int:
        code = run(arguments)
        if not isinstance(code, int):
            raise PluginError(f"{describe(plugin)}: its command {row.name} must return an exit code, got {code!r:.80}")
        return code

    return checked
