"""What earlier processes found out about plugins, kept in the state folder: one small JSON file for each kind and plugin.

    activation   a failure of its code: a listing imports nothing, so it knows of the failure only from here
    listing      the cards of a plugin without a manifest, which had to be imported to be asked
    attempt      an activation that has begun: left behind by a process that did not survive it
    badge        what `zoo check` found

A record counts while the plugin's version and files are those it was made for, by their times and sizes. One that holds
`files_sha256` (a badge) outlives a `touch` or a fresh checkout: where times differ, the bytes are compared, once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoo.registry.atomic_write import write_text
from zoo.registry.documents import parse_json
from zoo.registry.plugin import Plugin, code_sha256, package_files
from zoo.registry.settings import state_dir

MOST_PROCESSES = 2**31  # numbers of processes are below


def write_record(kind: str, plugin: Plugin, fields: Mapping[str, Any]) -> None:
    """Keep `fields` for this plugin as it is now. A home that cannot be written loses the record, never the answer."""
    path = _path(kind, plugin)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": plugin.version, "fingerprint": fingerprint(plugin), **fields}, indent=1)
        write_text(path, text, durable=False)


def read_record(kind: str, plugin: Plugin) -> Mapping[str, Any] | None:
    """What was kept for this plugin, or None if there is nothing or its version or files have changed since."""
    try:
        record = parse_json(_path(kind, plugin).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("version") != plugin.version:
        return None
    now = fingerprint(plugin)
    if record.get("fingerprint") == now:
        return record
    if "files_sha256" not in record or record.get("changed_to") == now:
        return None
    same = record["files_sha256"] == code_sha256(plugin)
    # The answer is kept with the times that it is about, so that the next listing reads no file for it.
    write_record(kind, plugin, {**record, "fingerprint" if same else "changed_to": now})
    return record if same else None


def drop_record(kind: str, plugin: Plugin) -> None:
    with suppress(OSError):
        _path(kind, plugin).unlink()


@contextmanager
def attempt(plugin: Plugin) -> Iterator[None]:
    """Around code of a plugin: if this process does not survive it, the next one finds the record. Interrupting it leaves none."""
    write_record("attempt", plugin, {"process": os.getpid()})
    try:
        yield
    finally:
        drop_record("attempt", plugin)


def ended_the_interpreter(plugin: Plugin) -> bool:
    """Whether the last process that ran this plugin's code came to its end while it did."""
    record = read_record("attempt", plugin)
    if record is None:
        return False
    import psutil

    process = record.get("process")
    return not (isinstance(process, int) and 0 < process < MOST_PROCESSES and psutil.pid_exists(process))


def remember_default(task: str, name: str) -> None:
    """That this model was the only one to claim a task."""
    path = _default_path(task)
    if remembered_default(task) != name:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, name, durable=False)


def remembered_default(task: str) -> str:
    """The model that was the only one to claim a task when it was last asked; an empty string if there was none."""
    try:
        return _default_path(task).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _default_path(task: str) -> Path:
    return state_dir() / "default" / "".join(character if character.isalnum() else "-" for character in task)


def fingerprint(plugin: Plugin) -> str:
    """Changes when a file of the plugin's package does; reads no file."""
    if plugin.location is None:
        return ""
    stats = [(str(path), path.stat()) for path in package_files(plugin.location)]
    return hashlib.sha256(repr([(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]).encode()).hexdigest()


def _path(kind: str, plugin: Plugin) -> Path:
    key = "".join(character if character.isalnum() or character in "-_." else "_" for character in plugin.distribution)
    return state_dir() / kind / f"{key}+{plugin.name}.json"
