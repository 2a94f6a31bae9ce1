"""The records of a filtering, in `<out>.zoo-filter`: by which rule, which shard is finished, made from what, and what was dropped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UsageError, ZooError
from zoo.tasks.journal import replace_durably
from zoo.tasks.pairs import Shard
from zoo.tasks.tar_pairs import TarShard


def open_records(state: Path, shards: Sequence[Shard], rule: dict[str, Any], model: str, *, overwrite: bool) -> None:
    """Make the folder of records, refusing to mix two rules or to replace what was not written here."""
    settings = state / "rule.json"
    if settings.exists():
        old = read_record(settings)
        if old != rule and not overwrite:
            raise UsageError(
                f"{state} records another run (threshold {old.get('threshold')}, or other weights or code than {model} now has): "
                f"give another --out, or --overwrite to replace its result"
            )
        if old != rule:
            _forget_results(state, shards)
    for shard in shards:
        if shard.out is not None and shard.out.exists() and not record_of(state, shard).exists():
            raise UsageError(
                f"--out {shard.out}: it exists and zoo filter did not write it; give another name, or delete it"
            )
    try:
        state.mkdir(exist_ok=True)
        for shard in shards:
            if isinstance(shard, TarShard) and shard.out is not None:
                shard.out.parent.mkdir(exist_ok=True)
        write_record(settings, rule)
    except OSError as error:
        raise ZooError(f"{state}: cannot be written ({error.strerror or error})") from error


def record_of(state: Path, shard: Shard) -> Path:
    return state / f"{(shard.out or shard.source).name}.record.json"


def staging_of(state: Path, shard: Shard) -> Path:
    """Where the result is written until it is whole."""
    return state / f"{(shard.out or shard.source).name}.new"


def listing_of(state: Path, shard: Shard) -> Path:
    return state / f"{(shard.out or shard.source).name}.dropped.jsonl"


def read_record(path: Path) -> dict[str, Any]:
    """A record; empty where it is missing or damaged, and then what it recorded is made anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    replace_durably(temporary, path)


def discard(staging: Path) -> None:
    """Remove what an unfinished run left."""
    if staging.is_dir():
        shutil.rmtree(staging)
    staging.unlink(missing_ok=True)


def _forget_results(state: Path, shards: Sequence[Shard]) -> None:
    """Have every shard made anew, and remove the tars of shards that are not made any more: they follow another rule."""
    current = {record_of(state, shard) for shard in shards}
    folders = {shard.out.parent for shard in shards if isinstance(shard, TarShard) and shard.out is not None}
    for record in state.glob("*.record.json"):
        if record in current:
            write_record(record, {})
            continue
        for folder in folders:
            (folder / record.name.removesuffix(".record.json")).unlink(missing_ok=True)
        record.unlink()
