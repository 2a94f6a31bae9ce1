"""`zoo new`, `check`, `can` and `lock`: for those who write plugins, and those who want to know what they are about to trust."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.cli.options import DTYPES
from zoo.cli.output import print_json, print_table, say
from zoo.cli.scaffold import CHOICES, new_plugin
from zoo.errors import UsageError
from zoo.registry.atomic_write import write_text


def add_commands(commands: Any) -> None:
    new = commands.add_parser("new", help="write a small plugin that installs and passes zoo check, to begin from")
    new.add_argument("name", help="name of the plugin, e.g. birdsong")
    new.add_argument("--kind", choices=CHOICES, default="encoder", help="of the model to begin from (encoder)")
    modalities = dict.fromkeys(modality for modalities in CHOICES.values() for modality in modalities)
    templates = "; ".join(f"{kind}: {' or '.join(modalities)}" for kind, modalities in CHOICES.items())
    new.add_argument("--modality", choices=modalities, help=f"what it reads ({templates}; the first if left out)")
    new.add_argument("--into", type=Path, metavar="DIR", help="where to write it (modalzoo-NAME)")
    new.set_defaults(run=run_new)
    check = commands.add_parser("check", help="try everything that a plugin or model promises")
    check.add_argument("name", nargs="?", help="plugin, distribution or model name")
    check.add_argument("--list", action="store_true", help="list the checks and what each one promises")
    check.add_argument("--out", type=Path, metavar="FILE", help="also write the result, as JSON, to a file")
    check.set_defaults(run=run_check)
    ask = commands.add_parser("can", help="ask whether a model works on a device, in a format, with an adapter or a kernel")
    ask.add_argument("name", help="model name")
    ask.add_argument("--adapter", metavar="NAME")
    ask.add_argument("--kernel", metavar="NAME")
    ask.add_argument("--device")
    ask.add_argument("--dtype", choices=DTYPES)
    ask.add_argument("--declared", action="store_true", help="only what the cards say; run nothing")
    ask.set_defaults(run=run_can)
    lock = commands.add_parser(
        "lock", help="write down plugins, versions, hashes and pins; or compare with what was written"
    )
    lock.add_argument("--file", type=Path, default=Path("zoo.lock"))
    lock.add_argument("--check", action="store_true", help="compare; exit 1 and say what to do if something differs")
    lock.set_defaults(run=run_lock)


def run_new(arguments: argparse.Namespace) -> int:
    folder = arguments.into or Path(f"modalzoo-{arguments.name}")
    files = new_plugin(arguments.name, kind=arguments.kind, modality=arguments.modality, folder=folder)
    _warn_of_namesakes(arguments.name)
    if arguments.json:
        print_json({"folder": str(folder), "files": [str(file) for file in files]})
    else:
        for file in files:
            say(file)
        say(f"Next: zoo install -e {folder}, then zoo check {arguments.name}", file=sys.stderr)
    return 0


def _warn_of_namesakes(name: str) -> None:
    """The name is the author's to choose; what becomes of what is installed under it should be known before it happens."""
    from packaging.utils import canonicalize_name

    from zoo.registry.discovery import plugin_distributions

    own = canonicalize_name(f"modalzoo-{name}")
    for distribution, plugins in plugin_distributions().items():
        if canonicalize_name(distribution) == own:
            outcome = "installing this one would replace it"
        elif name in plugins:
            outcome = f"models of the same name will need: zoo pin {name} DISTRIBUTION"
        else:
            continue
        try:
            version = f" {metadata.version(distribution)}"
        except Exception:  # noqa: BLE001 - damaged metadata may fail in any way, and has no version worth a word
            version = ""
        say(f"zoo: warning: plugin {name!r} is installed already ({distribution}{version}): {outcome}", file=sys.stderr)


def run_check(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list_checks(as_json=arguments.json)
    if arguments.name is None:
        raise UsageError("which plugin, distribution or model? zoo plugins and zoo list show their names")
    from zoo.registry.lookup import default_registry
    from zoo.testing.runner import check_model, check_plugin

    registry = default_registry()
    plugin = next((plugin for plugin in registry.plugins if arguments.name in (plugin.name, plugin.distribution)), None)
    if plugin is not None:
        if plugin.state in ("disabled", "incompatible", "missing-extra"):
            raise UsageError(f"{plugin.name} is {plugin.state}: {plugin.error}; {plugin.cure}")
        report = check_plugin(plugin, registry=registry, say=_progress)
    else:
        report = check_model(arguments.name, registry=registry, say=_progress)
    badge = report.badge()
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(badge, indent=1) + "\n")
    if arguments.json:
        print_json(badge)
    else:
        _print_report(report)
    return 0 if report.passed else 1


def run_can(arguments: argparse.Namespace) -> int:
    from zoo.testing.compatibility import can

    answers = can(
        arguments.name,
        adapter=arguments.adapter,
        kernel=arguments.kernel,
        device=arguments.device,
        dtype=arguments.dtype,
        verify=not arguments.declared,
    )
    verdict = None if any(answer.can is None for answer in answers) else True
    if any(answer.can is False for answer in answers):
        verdict = False
    if arguments.json:
        print_json({"model": arguments.name, "can": verdict, "answers": [asdict(answer) for answer in answers]})
    else:
        words = {True: "yes", False: "no", None: "unknown"}
        print_table(
            ["QUESTION", "ANSWER", "HOW", "REASON"],
            [[answer.question, words[answer.can], answer.how, answer.reason] for answer in answers],
        )
    return 0 if verdict else 1


def run_lock(arguments: argparse.Namespace) -> int:
    from zoo.registry.lock import differences, write_lock
    from zoo.registry.lookup import default_registry

    registry = default_registry()
    if not arguments.check:
        write_lock(registry, arguments.file)
        if arguments.json:
            print_json({"file": str(arguments.file), "plugins": len(registry.plugins)})
        else:
            say(f"{arguments.file}: {len(registry.plugins)} plugins")
        return 0
    found = differences(registry, arguments.file)
    if arguments.json:
        print_json({"file": str(arguments.file), "differences": found})
    else:
        say("\n".join(found) or f"{arguments.file}: nothing differs")
    return 1 if found else 0


def _progress(name: str) -> None:
    say(f"checking {name} ...", file=sys.stderr)


def _print_report(report: Any) -> None:
    for name, results in report.results.items():
        counts = [
            f"{sum(result.status == status for result in results)} {status}" for status in ("passed", "failed", "skipped")
        ]
        say(f"{name}: {', '.join(count for count in counts if not count.startswith('0 '))}")
        for result in results:
            if result.status != "passed":
                say(f"  {result.status:<8}{result.check}: {result.message}")
    verdict = {"failed": "FAILED", "unknown": f"unknown (of {', '.join(report.unknown)} nothing was tried)"}.get(
        report.verdict, report.verdict
    )
    say(f"{report.distribution} {report.version}, files sha256 {str(report.files_sha256)[:16]}: {verdict}")


def _list_checks(*, as_json: bool) -> int:
    from zoo.testing.check import CHECKS, LEVELS

    checks = sorted(CHECKS.values(), key=lambda check: LEVELS.index(check.level))
    rows = [
        {"check": check.name, "level": check.level, "kinds": list(check.kinds) or ["plugin"], "promise": check.promise}
        for check in checks
    ]
    if as_json:
        print_json({"checks": rows})
    else:
        print_table(
            ["CHECK", "LEVEL", "FOR", "WHAT MUST HOLD"],
            [[row["check"], row["level"], ", ".join(row["kinds"]), row["promise"]] for row in rows],
        )
    return 0
