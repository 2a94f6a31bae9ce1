"""The report of a filtering: which samples were dropped, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.data.filter_records import listing_of, state_of
from zoo.data.pairs import Shard
from zoo.errors import UsageError, ZooError
from zoo.registry.atomic_write import atomic_write
from zoo.tasks.filter_shards import ShardResult


def refuse_report(report: Path, out: Path, shards: Sequence[Shard]) -> None:
    """Raise UsageError for a report that would take the place of something else: there is no way back from that."""
    place = report.resolve()
    taken = {shard.source.resolve(): "a source" for shard in shards} | {
        path.resolve(): "the result" for shard in shards for path in (out, shard.out) if path is not None
    }
    taken[state_of(out).resolve()] = "the records of what is done"
    for path, what in taken.items():
        if place == path or path in place.parents:
            raise UsageError(f"--report {report}: it would lie over or in {what}, {path}: give another name")
    if os.path.lexists(report) and not _is_report(report):
        raise UsageError(f"--report {report}: it exists and is no report of zoo filter; give another name, or delete it")


def _is_report(path: Path) -> bool:
    """Whether a file begins as `write_report` begins one; an empty one has nothing to lose."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(4096)
    return not head or (head.startswith(b'{\n "model": ') and b'"threshold_from": ' in head)


def write_report(
    report: Path, head: Mapping[str, Any], state: Path, shards: Sequence[Shard], results: Sequence[ShardResult]
) -> None:
    """One JSON document, the fields of `head` and every dropped sample; written as the lists are read, which may be long.

    head begins with "model" and has "threshold_from": a report is known again by them. Raises ZooError where the disk refuses.
    """
    try:
        with atomic_write(report) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(head), ensure_ascii=False, indent=1)[:-2] + ',\n "dropped": [')
            comma = ""
            for shard, result in zip(shards, results, strict=True):
                if result.state == "failed":
                    continue
                with listing_of(state, shard).open(encoding="utf-8") as lines:
                    for line in lines:
                        stream.write(
                            f"{comma}\n  {json.dumps({'shard': shard.source.name, **json.loads(line)}, ensure_ascii=False)}"
                        )
                        comma = ","
            stream.write("\n ]\n}\n")
    except OSError as error:
        raise ZooError(f"--report {report}: cannot be written ({error.strerror or error})") from error
