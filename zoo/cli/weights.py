"""`zoo fetch` and `zoo cache`: weights ahead of time, and what lies on the disk."""

from __future__ import annotations

import argparse
from typing import Any

from zoo.cli.output import human_bytes, print_json, print_table
from zoo.errors import UsageError
from zoo.registry import default_registry


def add_commands(commands: Any) -> None:
    fetch = commands.add_parser("fetch", help="bring weights into the cache, so that models work without a network")
    fetch.add_argument("name", nargs="*", help="model names")
    fetch.add_argument("--defaults", action="store_true", help="every model that a command uses when none is named")
    fetch.set_defaults(run=run_fetch)
    cache = commands.add_parser("cache", help="show what the cache holds, and prune it")
    cache.add_argument("--prune", action="store_true", help="delete files that no installed card names, and leftovers")
    cache.set_defaults(run=run_cache)


def run_fetch(arguments: argparse.Namespace) -> int:
    from zoo.weights import Fetched, fetch

    registry = default_registry()
    names = list(arguments.name)
    if arguments.defaults:
        tasks = {task for plugin in registry.plugins for card in plugin.cards for task in card.default_for}
        names += [registry.default(task) for task in sorted(tasks)]
    if not names:
        raise UsageError("name the models to fetch, or give --defaults")
    files: dict[tuple[str, str], Fetched] = {}
    for name in names:
        for file in fetch(name, registry=registry):
            files.setdefault((file.name, file.role), file)
    if arguments.json:
        rows = [
            {
                "model": file.name,
                "role": file.role,
                "path": str(file.path),
                "sha256": file.sha256,
                "bytes": file.size_bytes,
                "fresh": file.fresh,
            }
            for file in files.values()
        ]
        print_json({"files": rows})
        return 0
    print_table(
        ["MODEL", "FILE", "BYTES", "SHA256", ""],
        [
            [file.name, file.role, human_bytes(file.size_bytes), file.sha256[:16], "fetched" if file.fresh else "was there"]
            for file in files.values()
        ],
    )
    return 0


def run_cache(arguments: argparse.Namespace) -> int:
    from zoo.weights import blobs_dir, cached_blobs, prune

    freed = prune(default_registry()) if arguments.prune else 0
    owners: dict[str, list[str]] = {}
    for plugin in default_registry().plugins:
        for card in plugin.cards:
            for row in card.weights:
                for file in row.files:
                    if file.sha256:
                        owners.setdefault(file.sha256, []).append(f"{card.name}.{row.tag} ({file.role})")
    blobs = [(sha256, size, owners.get(sha256, [])) for sha256, size in cached_blobs()]
    if arguments.json:
        rows = [{"sha256": sha256, "bytes": size, "models": models} for sha256, size, models in blobs]
        print_json({"directory": str(blobs_dir()), "files": rows, "freed_bytes": freed})
        return 0
    table = [[sha256[:16], human_bytes(size), ", ".join(models) or "no installed card"] for sha256, size, models in blobs]
    print_table(["SHA256", "BYTES", "USED BY"], table)
    print(f"{len(blobs)} files, {human_bytes(sum(size for _, size, _ in blobs))} in {blobs_dir()}")
    if arguments.prune:
        print(f"pruned {human_bytes(freed)}")
    return 0
