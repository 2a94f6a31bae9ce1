"""What activations found, remembered between processes.

A plugin with a manifest is not imported by listings, so a listing knows of its failure only from here. A record counts while
the plugin's version and files are those it was made for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from zoo.plugin import Plugin, broken, package_files, replace_it
from zoo.settings import state_dir


def record(plugin: Plugin, missing_module: str = "") -> None:
    fields = {"state": plugin.state, "error": plugin.error, "cure": plugin.cure, "traceback": plugin.traceback}
    records = _read_records()
    records[_record_key(plugin)] = {**fields, "fingerprint": _fingerprint(plugin), "missing_module": missing_module}
    _write_records(records)


def forget(plugin: Plugin) -> None:
    records = _read_records()
    if records.pop(_record_key(plugin), None) is not None:
        _write_records(records)


def recorded(plugin: Plugin) -> Plugin:
    """The plugin with the failure of an earlier activation, if its files have not changed since."""
    record = _read_records().get(_record_key(plugin))
    if record is None or record.get("fingerprint") != _fingerprint(plugin):
        return plugin
    missing_module = str(record.get("missing_module", ""))
    if missing_module and find_spec(missing_module) is not None:
        return plugin
    state = str(record.get("state"))
    if state not in ("broken", "missing-extra"):
        return plugin
    error, cure, details = (str(record.get(key, "")) for key in ("error", "cure", "traceback"))
    return replace(plugin, state=state, error=error, cure=cure, traceback=details)


def record_failure(plugin: Plugin, error: str, details: str) -> Plugin:
    """The plugin as broken for a reason seen from outside (it hung, it ended its interpreter), remembered."""
    failure = replace(broken(plugin, error, replace_it(plugin)), traceback=details)
    record(failure)
    return failure


def _records_file() -> Path:
    return state_dir() / "activations.json"


def _read_records() -> dict[str, Mapping[str, str]]:
    try:
        records = json.loads(_records_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def _write_records(records: Mapping[str, Mapping[str, str]]) -> None:
    path = _records_file()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        pass  # a read-only home loses the record, never the answer


def _record_key(plugin: Plugin) -> str:
    return f"{plugin.distribution}:{plugin.name} {plugin.version}"


def _fingerprint(plugin: Plugin) -> str:
    if plugin.location is None or not plugin.location.exists():
        return ""
    stats = [(str(path), path.stat()) for path in package_files(plugin.location)]
    return hashlib.sha256(repr([(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]).encode()).hexdigest()
