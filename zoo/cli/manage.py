"""`zoo plugins`, `doctor`, `enable`, `disable`, `pin`, `default`, `install`, `uninstall`: they work while plugins do not."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from zoo.cli.options import finite_number
from zoo.cli.output import print_json, print_table, say
from zoo.errors import PluginError, UsageError
from zoo.registry.lookup import USABLE, Registry, default_registry
from zoo.registry.plugin import Plugin, code_sha256, origin
from zoo.registry.records import read_record
from zoo.registry.settings import change_config, config_file, load_settings
from zoo.registry.suggest import did_you_mean, nearest

LONGEST_TRIAL_S = 86_400


def add_commands(commands: Any) -> None:
    plugins = commands.add_parser("plugins", help="list plugins, their state and the cure")
    plugins.add_argument("--traceback", action="store_true", help="show the traceback of each broken plugin")
    plugins.set_defaults(run=run_plugins)
    doctor = commands.add_parser(
        "doctor",
        help="try every plugin in a process of its own and say what to mend",
        description="Exits with 1 when a plugin is broken, incompatible or lacks a dependency.",
    )
    doctor.add_argument("--timeout-s", type=finite_number, default=60.0, help="seconds one plugin may take (60)")
    doctor.add_argument("--timing", action="store_true", help="also measure what each plugin costs, in ms and MB")
    doctor.set_defaults(run=run_doctor)
    for verb, text in (("enable", "use a plugin again"), ("disable", "leave a plugin out, before it is looked at")):
        command = commands.add_parser(verb, help=text)
        command.add_argument("plugin", help="plugin or distribution name")
        command.set_defaults(run=run_disable, verb=verb)
    pin = commands.add_parser("pin", help="settle a name that several distributions provide")
    pin.add_argument("name", help="model name, short name or plugin name")
    pin.add_argument("distribution", nargs="?", help="the distribution that wins")
    pin.add_argument("--remove", action="store_true", help="settle nothing any more")
    pin.set_defaults(run=run_pin)
    default = commands.add_parser(
        "default", help="choose the model of a task", description="Without a name: which model it is now, and who says so."
    )
    default.add_argument("task", help="e.g. classify")
    default.add_argument("name", nargs="?", help="model name")
    default.add_argument("--remove", action="store_true", help="leave the choice to the plugins again")
    default.set_defaults(run=run_default)
    install = commands.add_parser("install", help="install a plugin's distribution with pip, into this environment")
    install.add_argument(
        "-e", "--editable", metavar="DIR", action="append", default=[], help="a folder, installed so that edits count"
    )
    install.add_argument("requirement", nargs="*", help="what pip takes: a name, name==version, a path or a wheel")
    install.set_defaults(run=run_install)
    uninstall = commands.add_parser("uninstall", help="remove a plugin's distribution, broken or not")
    uninstall.add_argument("name", nargs="+", help="plugin or distribution name")
    uninstall.set_defaults(run=run_uninstall)


def run_plugins(arguments: argparse.Namespace) -> int:
    registry = default_registry()
    report(registry.plugins, as_json=arguments.json, show_traceback=arguments.traceback)
    if not arguments.json:
        _warn_unknown_names(registry.plugins)
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    from zoo.registry.diagnosis import environment, summary, try_all
    from zoo.registry.timing import Cost, cost

    if not 0 < arguments.timeout_s <= LONGEST_TRIAL_S:
        raise UsageError(
            f"--timeout-s is a number of seconds above 0 and at most {LONGEST_TRIAL_S:,}, got {arguments.timeout_s:g}"
        )
    facts = environment()
    plugins = try_all(default_registry(), timeout_s=arguments.timeout_s)
    code = 1 if any(plugin.state in ("broken", "incompatible", "missing-extra") for plugin in plugins) else 0
    costs: dict[str, Cost | None] = {}
    if arguments.timing:
        usable = [plugin for plugin in plugins if plugin.state in USABLE]
        costs = {plugin.distribution: cost(plugin, timeout_s=arguments.timeout_s) for plugin in usable}
    if arguments.json:
        rows = [
            {**plugin_fields(plugin), **({"cost": asdict(found)} if (found := costs.get(plugin.distribution)) else {})}
            for plugin in plugins
        ]
        print_json({"environment": facts, "plugins": rows, "summary": summary(plugins)})
        return code
    for name, value in facts.items():
        words = ", ".join(f"{key} {item}" for key, item in value.items() if item) if isinstance(value, dict) else value
        say(f"{name:<14}{', '.join(words) if isinstance(words, list) else words}")
    say()
    report(plugins, as_json=False, show_traceback=False)
    if arguments.timing:
        say()
        _print_costs(costs)
    say(f"\n{summary(plugins)}")
    return code


def _print_costs(costs: Mapping[str, Any]) -> None:
    rows = []
    for name, found in costs.items():
        if found is None:
            rows.append([name, "-", "-", "-"])
            continue
        imported = "-" if found.import_ms is None else f"{found.import_ms:.0f} ms"
        memory = "-" if found.import_mb is None else f"{found.import_mb:.0f} MB"
        rows.append([name, f"{found.listing_ms:.1f} ms", imported, memory])
    print_table(["DISTRIBUTION", "TO LIST", "TO IMPORT", "MEMORY"], rows)
    bases = [found for found in costs.values() if found is not None]
    if bases:
        say(f"That is on top of torch, which takes {bases[0].torch_ms:.0f} ms and {bases[0].torch_mb:.0f} MB once.")


def run_disable(arguments: argparse.Namespace) -> int:
    settings = load_settings()
    plugins = default_registry().plugins
    known = {name for plugin in plugins for name in (plugin.name, plugin.distribution)}
    if arguments.plugin not in known | set(settings.disabled):
        raise UsageError(f"no plugin or distribution is called {arguments.plugin!r}; {_near(arguments.plugin, known)}")
    path = change_config("disabled", arguments.plugin, arguments.verb == "disable")
    if arguments.verb == "enable":
        for plugin in plugins:  # it may have been disabled by its other name
            if arguments.plugin in (plugin.name, plugin.distribution):
                change_config("disabled", plugin.name, value=False)
                change_config("disabled", plugin.distribution, value=False)
    after = [
        plugin for plugin in Registry(load_settings()).plugins if arguments.plugin in (plugin.name, plugin.distribution)
    ]
    for plugin in after:
        if (plugin.state == "disabled") != (arguments.verb == "disable"):
            raise UsageError(f"{plugin.name} is still {plugin.state}: {plugin.error}; {plugin.cure}")
    _done(arguments, {"plugin": arguments.plugin, "state": f"{arguments.verb}d", "config": str(path)})
    return 0


def run_pin(arguments: argparse.Namespace) -> int:
    if arguments.remove:
        return _remove_choice(arguments, "pins", arguments.name, arguments.distribution, load_settings().pins)
    if arguments.distribution is None:
        raise UsageError(f"which distribution wins {arguments.name!r}? zoo pin NAME DISTRIBUTION, or --remove")
    plugins = default_registry().plugins
    known = {plugin.distribution for plugin in plugins}
    if arguments.distribution not in known:
        raise UsageError(f"no plugin comes from {arguments.distribution!r}; {_near(arguments.distribution, known)}")
    provided = {
        name
        for plugin in plugins
        if plugin.distribution == arguments.distribution
        for name in (plugin.name, *(part for card in plugin.cards for part in (card.name, card.name.partition("/")[2])))
    }
    if arguments.name not in provided:
        raise UsageError(f"{arguments.distribution} provides no {arguments.name!r}; {_near(arguments.name, provided)}")
    path = change_config("pins", arguments.name, arguments.distribution)
    _done(arguments, {"name": arguments.name, "pinned": arguments.distribution, "config": str(path)})
    return 0


def run_default(arguments: argparse.Namespace) -> int:
    if arguments.remove:
        return _remove_choice(arguments, "defaults", arguments.task, arguments.name, load_settings().defaults)
    from zoo.registry.needs import NEEDS, complaint

    registry = default_registry()
    known = {*registry.tasks(), *NEEDS}
    if arguments.task not in known:
        raise UsageError(f"no task is called {arguments.task!r}: known are {', '.join(sorted(known))}")
    if arguments.name is None:
        name = registry.default(arguments.task)
        card = registry.find(name).card
        own = arguments.task in load_settings().defaults
        source = (
            f"your choice in {config_file()}" if own else f"the card of {card.provider.distribution}, which claims the task"
        )
        _done(arguments, {"task": arguments.task, "model": name, "from": source})
        return 0
    found = registry.find(arguments.name)
    wrong = complaint(arguments.task, found.card, found.classes)
    if wrong:
        raise UsageError(wrong)
    path = change_config("defaults", arguments.task, arguments.name)
    _done(arguments, {"task": arguments.task, "model": found.name, "config": str(path)})
    return 0


def _remove_choice(
    arguments: argparse.Namespace, table: str, name: str, value: str | None, chosen: Mapping[str, str]
) -> int:
    """Take one entry out of a table of the config file. Raises UsageError when it is not there."""
    if value is not None:
        raise UsageError(f"--remove takes {name!r} alone, got {value!r} besides")
    if name not in chosen:
        there = f"it holds {', '.join(sorted(chosen))}" if chosen else "it holds nothing"
        raise UsageError(f"{name!r} is not in [{table}] of the config file: {there}")
    path = change_config(table, name, None)
    _done(arguments, {"name": name, "removed": chosen[name], "config": str(path)})
    return 0


def run_install(arguments: argparse.Namespace) -> int:
    if not arguments.requirement and not arguments.editable:
        raise UsageError("name what to install: a distribution, a folder or a wheel")
    for name in arguments.requirement:
        if name.startswith("-"):
            raise UsageError(f"{name} is an option of pip: for those, call pip itself")
    return _pip(arguments, "install", *(f"--editable={folder}" for folder in arguments.editable), *arguments.requirement)


def run_uninstall(arguments: argparse.Namespace) -> int:
    from zoo.registry.discovery import plugin_distributions

    installed = plugin_distributions()
    # All names first: one that is wrong must not leave half of them removed.
    distributions = list(dict.fromkeys(_distribution_to_remove(name, installed) for name in arguments.name))
    code = _pip(arguments, "uninstall", "--yes", *distributions)
    importlib.invalidate_caches()
    left = [name for name in distributions if name in plugin_distributions()]
    if left:
        raise PluginError(
            f"{', '.join(left)}: still installed after pip uninstall, which removes nothing outside its own environment "
            f"({sys.executable})"
        )
    return code


def _distribution_to_remove(name: str, installed: Mapping[str, Sequence[str]]) -> str:
    """The distribution that a name means, which must bring plugins: anything else is not the zoo's to remove."""
    from packaging.utils import canonicalize_name

    wanted = canonicalize_name(name)
    found = next((distribution for distribution in installed if canonicalize_name(distribution) == wanted), None)
    if found is not None:
        return found
    owners = [distribution for distribution, plugins in installed.items() if name in plugins]
    if len(owners) > 1:
        raise UsageError(
            f"{name!r} is a plugin of {' and of '.join(sorted(owners))}: name the distribution; nothing was removed"
        )
    if owners:
        return owners[0]
    try:
        other = metadata.distribution(name).metadata["Name"]
    except (metadata.PackageNotFoundError, ValueError):
        known = {*installed, *(plugin for plugins in installed.values() for plugin in plugins)}
        raise UsageError(
            f"no plugin or distribution is called {name!r}; {_near(name, known)}; nothing was removed"
        ) from None
    raise UsageError(
        f"{other} is installed and is no plugin of the zoo (it has no entry point in the group 'zoo'): nothing was removed; "
        f"to remove it all the same: pip uninstall {other}"
    )


def report(plugins: list[Plugin], *, as_json: bool, show_traceback: bool) -> None:
    """Print plugins as the document of `zoo plugins`, or as a table with a line of cure under each that needs one."""
    if as_json:
        print_json({"plugins": [plugin_fields(plugin) for plugin in plugins]})
        return
    rows = []
    for plugin in plugins:
        size = f"{len(plugin.cards)}" + (" + families" if plugin.families else "")
        cost = "" if plugin.import_ms is None else f"imported to list it: {plugin.import_ms:.0f} ms"
        rows.append([plugin.name, f"{plugin.distribution} {plugin.version}", plugin.state, size, _checked(plugin), cost])
    print_table(["PLUGIN", "DISTRIBUTION", "STATE", "CARDS", "CHECKED", ""], rows)
    for plugin in plugins:
        for note in plugin.notes:
            say(f"\n{plugin.name}: {note}")
        if plugin.state != "ok":
            say(f"\n{plugin.name} ({plugin.distribution} {plugin.version}) is {plugin.state}: {plugin.error}")
            say(f"  cure: {plugin.cure}")
            if show_traceback and plugin.traceback:
                say(plugin.traceback)


def _checked(plugin: Plugin) -> str:
    """What `zoo check` found of these very files."""
    badge = read_record("badge", plugin)
    if badge is None:
        return "no"
    counts = (("FAILED", badge["failed"]), ("passed", badge["passed"]), ("skipped", badge["skipped"]))
    unknown = [f"unknown: {', '.join(badge['unknown'])}"] if badge.get("unknown") else []
    return ", ".join([*unknown, *(f"{count} {status}" for status, count in counts if count)])


def plugin_fields(plugin: Plugin) -> dict[str, Any]:
    """One plugin as JSON fields."""
    return {
        "name": plugin.name,
        "dist": plugin.distribution,
        "version": plugin.version,
        "state": plugin.state,
        "cards": [card.name for card in plugin.cards],
        "families": [f"{plugin.name}/{family.pattern}" for family in plugin.families],
        "commands": [row.name for row in plugin.offers.commands],
        "reads": [suffix for row in plugin.offers.readers for suffix in row.suffixes],
        "formats": [row.name for row in plugin.offers.formats],
        "checks": [row.name for row in plugin.offers.checks],
        "error": plugin.error,
        "cure": plugin.cure,
        "traceback": plugin.traceback,
        "notes": list(plugin.notes),
        "origin": origin(plugin),
        "location": None if plugin.location is None else str(plugin.location),
        "manifest_sha256": plugin.manifest_sha256,
        "files_sha256": code_sha256(plugin),
        "import_ms": plugin.import_ms,
        "badge": read_record("badge", plugin),
    }


def _pip(arguments: argparse.Namespace, *words: str) -> int:
    from zoo.registry.pip import pip_command

    run = subprocess.run(pip_command(*words), stdout=sys.stderr, check=False)  # noqa: S603 - the user asked for pip, in our own interpreter
    if arguments.json:
        print_json({"command": ["pip", *words], "exit_code": run.returncode})
    return 1 if run.returncode else 0


def _done(arguments: argparse.Namespace, fields: dict[str, str]) -> None:
    if arguments.json:
        print_json(fields)
    else:
        say(", ".join(f"{key} {value}" for key, value in fields.items()))


def _warn_unknown_names(plugins: list[Plugin]) -> None:
    """A name in a list of the user's that matches nothing is a typing error nobody would otherwise see."""
    settings = load_settings()
    known = {name for plugin in plugins for name in (plugin.name, plugin.distribution)}
    for name in (*settings.disabled, *(settings.only or ())):
        if name not in known:
            say(f"zoo: warning: {name!r} is disabled or allowed but not installed; {_near(name, known)}", file=sys.stderr)


def _near(name: str, known: set[str]) -> str:
    return did_you_mean(nearest(name, sorted(known), most=2), "zoo plugins shows what is installed")
