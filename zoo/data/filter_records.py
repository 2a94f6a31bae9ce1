"""The records of a filtering, in `<out>.zoo-filter`: by which rule, which shard is finished, made from what, what was written (a hash
for each file's name, size and time), and what was dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.data.inputs import printable
from zoo.data.pairs import Shard
from zoo.data.tar_pairs import TarShard
from zoo.errors import UsageError, ZooError
from zoo.registry.atomic_write import atomic_write, write_text
from zoo.registry.documents import parse_json


def state_of(out: Path) -> Path:
    """The folder of records beside a result."""
    return out.with_name(f"{out.name}.zoo-filter")


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
        for rubble in (*state.glob("*.new"), *state.glob(".*.part")):  # of a run that was killed: this one is alone here
            discard(rubble)
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


def written_of(state: Path, shard: Shard) -> Path:
    return state / f"{(shard.out or shard.source).name}.written"


def read_record(path: Path) -> dict[str, Any]:
    """A record; empty where it is missing or damaged, and then what it recorded is made anew."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content))


def written(result: Path) -> list[str]:
    """A hash for each file of a result, of its place in it, size and time: what is recorded is known again by it, and nothing else is."""
    return [stamp for _, stamp in _stamps(result)]


def read_written(state: Path, shard: Shard) -> set[str]:
    """The hashes of what was written; none where that cannot be read, and then nothing that is there is taken for ours."""
    try:
        return set(written_of(state, shard).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return set()


def write_written(state: Path, shard: Shard, stamps: Iterable[str]) -> None:
    with atomic_write(written_of(state, shard)) as temporary, temporary.open("w", encoding="ascii") as stream:
        stream.writelines(f"{stamp}\n" for stamp in stamps)


def describe_result(result: Path) -> dict[str, Any]:
    """Size and sha256 of a finished file. A folder needs none: the hashes of what was written say them for each of its files."""
    if result.is_dir():
        return {}
    with result.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size_bytes": result.stat().st_size, "sha256": sha256}


def is_intact(state: Path, shard: Shard, result: Path, described: Any) -> bool:
    """Whether a result is there as it was written: of a file every byte, of a folder every file's name, size and time."""
    if not isinstance(described, dict) or not result.exists():
        return False
    if result.is_dir():
        return described == {} and written_of(state, shard).exists() and read_written(state, shard) <= set(written(result))
    return described.get("size_bytes") == result.stat().st_size and described == describe_result(result)


def refuse_foreign(state: Path, shard: Shard, out: Path) -> None:
    """Raise UsageError when a result that is to be replaced holds a file that zoo filter did not write, or that was changed since."""
    if not os.path.lexists(out):
        return
    ours = read_written(state, shard)
    foreign = [file for file, stamp in _stamps(out) if stamp not in ours]
    if foreign:
        more = f" (and {len(foreign) - 1:,} more)" if len(foreign) > 1 else ""
        raise UsageError(
            f"--out {out}: {printable(str(foreign[0]))}{more} was not written by zoo filter, or was changed since, and would be lost: "
            f"move it away, or give another --out"
        )


def _stamps(result: Path) -> Iterator[tuple[Path, str]]:
    """(file, hash) of everything but folders in a result, which is a folder or a file; what begins with a dot is somebody's too."""
    if result.is_dir() and not result.is_symlink():
        walked = (Path(parent, name) for parent, folders, names in os.walk(result) for name in sorted([*folders, *names]))
    else:
        walked = (path for path in [result])
    for file in walked:
        if file.is_dir() and not file.is_symlink():
            continue
        status = file.lstat()
        content = f"{file.relative_to(result)!r} {status.st_mode:o} {status.st_size} {status.st_mtime_ns}"
        yield file, hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def discard(staging: Path) -> None:
    """Remove what an unfinished run left."""
    if staging.is_dir():
        shutil.rmtree(staging)
    staging.unlink(missing_ok=True)


def _forget_results(state: Path, shards: Sequence[Shard]) -> None:
    """Have every shard made anew, and remove the tars of shards that are not made any more: they follow another rule."""
    current = {record_of(state, shard) for shard in shards}
    folders = {shard.out.parent for shard in shards if isinstance(shard, TarShard) and shard.out is not None}
    others = [record for record in state.glob("*.record.json") if record not in current]
    old = [TarShard(folder, folder / record.name.removesuffix(".record.json")) for record in others for folder in folders]
    for shard in old:  # all of them first: nothing is removed where one is somebody else's
        if shard.out is not None:
            refuse_foreign(state, shard, shard.out)
    for shard in old:
        if shard.out is not None:
            shard.out.unlink(missing_ok=True)
            written_of(state, shard).unlink(missing_ok=True)
    for record in others:
        record.unlink()
    for record in current:
        if record.exists():
            write_record(record, {})
