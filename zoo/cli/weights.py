"""`zoo fetch` and `zoo cache`: weights ahead of time, and what lies on the disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.cli.output import counted, human_bytes, print_json, print_table, say
from zoo.errors import PluginError, ResolutionError, UsageError, ZooError
from zoo.registry.lookup import Registry, default_registry
from zoo.registry.plugin import describe
from zoo.registry.settings import cache_dir

if TYPE_CHECKING:
    from zoo.weights.delivery import Fetched


def add_commands(commands: Any) -> None:
    fetch = commands.add_parser("fetch", help="bring weights into the cache, so that models work without a network")
    fetch.add_argument("name", nargs="*", help="model names")
    fetch.add_argument("--defaults", action="store_true", help="every model that a command uses when none is named")
    fetch.set_defaults(run=run_fetch)
    cache = commands.add_parser("cache", help="show what the cache holds, and prune it")
    cache.add_argument(
        "--prune", action="store_true", help="delete files that no installed card and no pin names, and leftovers"
    )
    cache.add_argument("--force", action="store_true", help="prune although a plugin's manifest or a pin cannot be read")
    cache.add_argument(
        "--unpin", metavar="NAME", help="accept other bytes of a model whose publisher pins nothing, at the next fetch"
    )
    cache.set_defaults(run=run_cache)


def run_fetch(arguments: argparse.Namespace) -> int:
    from zoo.weights.delivery import fetch

    registry = default_registry()
    names = list(arguments.name)
    if arguments.defaults:
        names += _defaults(registry)
    elif not names:
        raise UsageError("name the models to fetch, or give --defaults")
    files: dict[tuple[str, str], Fetched] = {}
    failures: list[ZooError] = []
    # All of them, each once: what one model lacks is no reason to leave the others out, and one may be several defaults.
    for name in dict.fromkeys(names):
        try:
            for file in fetch(name, registry=registry):
                files.setdefault((file.name, file.role), file)
        except ZooError as error:
            failures.append(error)
    if files or not failures:
        _print_files(list(files.values()), json=arguments.json)
    for failure in failures[:-1]:
        say(f"zoo: {failure}", file=sys.stderr)
    if failures:
        raise failures[-1]
    return 0


def _defaults(registry: Registry) -> list[str]:
    """The default model of every task, but for tasks that only plugins in trouble claim: those are named on stderr."""
    claims: dict[str, list[str]] = {}
    for plugin in registry.plugins:
        for task in {task for card in plugin.cards for task in card.default_for}:
            state = f"{describe(plugin)} is {plugin.state}"
            claims.setdefault(task, []).append(f"{state}: {plugin.error}; {plugin.cure}" if plugin.error else state)
    names = []
    for task in sorted(claims):
        try:
            names.append(registry.default(task))
        except (UsageError, PluginError, ResolutionError) as error:
            reason = str(error) if task in registry.settings.defaults else "; ".join(claims[task])
            say(f"zoo: nothing to fetch for {task!r}: {reason}", file=sys.stderr)
    return names


def _print_files(files: list[Fetched], *, json: bool) -> None:
    if json:
        rows = [
            {
                "model": file.name,
                "role": file.role,
                "path": str(file.path),
                "sha256": file.sha256,
                "bytes": file.size_bytes,
                "fresh": file.fresh,
            }
            for file in files
        ]
        print_json({"files": rows})
        return
    print_table(
        ["MODEL", "FILE", "BYTES", "SHA256", ""],
        [
            [file.name, file.role, human_bytes(file.size_bytes), file.sha256[:16], "fetched" if file.fresh else "was there"]
            for file in files
        ],
    )


def _by_kind(derived: Sequence[tuple[str, int, str]]) -> Iterator[list[str]]:
    """A row for each kind of derived file: they come by hundreds, and --json names each."""
    for kind in sorted({kind for _, _, kind in derived}):
        sizes = [size for _, size, one in derived if one == kind]
        yield [counted(len(sizes), "file"), human_bytes(sum(sizes)), f"derived: {kind}"]


def run_cache(arguments: argparse.Namespace) -> int:
    from zoo.weights.cache import blobs_dir, cached_blobs, cached_derived, cached_wheels, prune
    from zoo.weights.delivery import unpin
    from zoo.weights.pins import read_pins

    if arguments.force and not arguments.prune:
        raise UsageError("--force belongs to --prune")
    unpinned = unpin(arguments.unpin) if arguments.unpin else []
    freed = prune(default_registry(), force=arguments.force) if arguments.prune else 0
    pins, complaints = read_pins()
    for complaint in complaints:
        say(f"zoo: {complaint}", file=sys.stderr)
    owners: dict[str, list[str]] = {
        sha256: [f"{model or 'unnamed'} (pinned at first download)"] for sha256, model in pins.items()
    }
    for plugin in default_registry().plugins:
        for card in plugin.cards:
            for row in card.weights:
                for file in row.files:
                    if file.sha256:
                        owners.setdefault(file.sha256, []).append(f"{card.name}.{row.tag} ({file.role})")
    blobs = [(sha256, size, owners.get(sha256, [])) for sha256, size in cached_blobs()]
    derived, wheels = list(cached_derived()), list(cached_wheels())
    if arguments.json:
        print_json(
            {
                "directory": str(blobs_dir()),
                "files": [{"sha256": sha256, "bytes": size, "models": models} for sha256, size, models in blobs],
                "derived": [{"file": name, "bytes": size, "kind": kind} for name, size, kind in derived],
                "wheels": [{"file": name, "bytes": size} for name, size in wheels],
                "freed_bytes": freed,
                "unpinned": unpinned,
            }
        )
        return 0
    table = [[sha256[:16], human_bytes(size), ", ".join(models) or "no installed card"] for sha256, size, models in blobs]
    table += _by_kind(derived)
    table += [[name[:16], human_bytes(size), "wheel, kept until its files are out"] for name, size in wheels]
    print_table(["SHA256", "BYTES", "USED BY"], table)
    listed = [*(size for _, size, _ in blobs), *(size for _, size, _ in derived), *(size for _, size in wheels)]
    say(f"{counted(len(listed), 'file')}, {human_bytes(sum(listed))} in {cache_dir()}")
    say(f"{len(blobs)} weights, {human_bytes(sum(size for _, size, _ in blobs))} in {blobs_dir()}")
    for what, sizes in (("derived", [size for _, size, _ in derived]), ("wheels", [size for _, size in wheels])):
        if sizes:
            say(f"{len(sizes)} {what}, {human_bytes(sum(sizes))} in {cache_dir() / what}")
    if arguments.unpin:
        say(f"{arguments.unpin}: {', '.join(unpinned) or 'nothing'} unpinned")
    if arguments.prune:
        say(f"pruned {human_bytes(freed)}")
    return 0
