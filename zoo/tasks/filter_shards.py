"""One shard filtered: scored alone, or copied without the pairs that do not fit; whole, recorded, and never done twice."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from zoo.data.filter_records import (
    describe_result,
    discard,
    is_intact,
    listing_of,
    read_record,
    read_written,
    record_of,
    refuse_foreign,
    staging_of,
    write_record,
    write_written,
    written,
)
from zoo.data.inputs import printable
from zoo.data.pairs import Shard
from zoo.errors import ZooError
from zoo.registry.atomic_write import open_own, replace_durably
from zoo.tasks.filter_scores import Scorer, scored
from zoo.tasks.running import progress_bar


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """One shard. state: done, skipped (it was done before), scored (a dry run) or failed, with `error`.

    kept: None where no threshold says what stays (a dry run without one). dropped: reason -> how many.
    """

    source: str
    out: str | None
    state: str
    samples: int = 0
    kept: int | None = 0
    dropped: dict[str, int]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """What holds for every shard of a run that writes. records: their folder (`zoo.data.filter_records`)."""

    records: Path
    scorer: Scorer
    threshold: float
    progress: bool


def score_shard(shard: Shard, scorer: Scorer, limit: float | None, scores: array[float], *, progress: bool) -> ShardResult:
    """Append the scores of a shard to `scores`, and write nothing. limit: the threshold that is counted against."""
    dropped: Counter[str] = Counter()
    kept = samples = 0
    error = None
    before = len(scores)
    try:
        with progress_bar(None, "pair", progress=progress) as bar:
            for answer in scored(scorer, shard.pairs()):
                bar.update(1)
                samples += 1
                if answer.score is None:
                    dropped[answer.reason] += 1
                    continue
                scores.append(answer.score)
                below = limit is not None and answer.score < limit
                kept += not below
                dropped.update(["below-threshold"] if below else [])
    except (ZooError, OSError) as problem:  # what was read of it counts as little as in a run that writes
        error = str(problem)
        kept = samples = 0
        dropped.clear()
        del scores[before:]
    state = "failed" if error else "scored"
    return ShardResult(
        source=str(shard.source), out=None, state=state, samples=samples, kept=None if limit is None else kept,
        dropped=dict(dropped), error=error,
    )  # fmt: skip


def filter_shard(shard: Shard, run: Run) -> ShardResult:
    """Filter one shard, unless a record says that it was done; what is wrong with it becomes the result's error."""
    state, out = run.records, shard.out or shard.source
    record = record_of(state, shard)
    fields: dict[str, Any] = {"source": str(shard.source), "out": str(out)}
    try:
        fingerprint = shard.fingerprint()
        old = read_record(record)
        done_before = old.get("fingerprint") == fingerprint and listing_of(state, shard).exists()
        if done_before and is_intact(state, shard, out, old.get("result")):
            return ShardResult(**fields, state="skipped", samples=old["samples"], kept=old["kept"], dropped=old["dropped"])
        refuse_foreign(state, shard, out)
        samples, kept, dropped = _write_shard(shard, out, run)
        made = {"fingerprint": fingerprint, "result": describe_result(out)}
        write_record(record, {**made, "samples": samples, "kept": kept, "dropped": dropped})
    except (ZooError, OSError) as error:
        return ShardResult(**fields, state="failed", dropped={}, error=str(error))
    return ShardResult(**fields, state="done", samples=samples, kept=kept, dropped=dropped)


def _write_shard(shard: Shard, out: Path, run: Run) -> tuple[int, int, dict[str, int]]:
    """Write what stays of a shard; returns samples, kept, and reason -> how many were dropped."""
    state = run.records
    staging = staging_of(state, shard)
    discard(staging)
    dropped: Counter[str] = Counter()
    samples = kept = 0
    listing = listing_of(state, shard)
    unfinished = listing.with_name(f"{listing.name}.new")
    bar = progress_bar(None, "pair", progress=run.progress)
    try:
        with bar, shard.writer(staging) as write, TextIOWrapper(open_own(unfinished), encoding="utf-8") as stream:
            for answer in scored(run.scorer, shard.pairs()):
                bar.update(1)
                samples += 1
                if answer.score is not None and answer.score >= run.threshold:
                    write(answer.pair)
                    kept += 1
                    continue
                reason = answer.reason or "below-threshold"
                dropped[reason] += 1
                why: dict[str, Any] = (
                    {"error": printable(answer.detail)} if answer.score is None else {"score": round(answer.score, 6)}
                )
                stream.write(json.dumps({"key": answer.pair.key, "reason": reason, **why}, ensure_ascii=False) + "\n")
        refuse_foreign(state, shard, out)  # once more: that took its time
        # The list first, then the result; the caller's record comes last and makes both count. Old and new files are both known as
        # ours while one takes the place of the other.
        replace_durably(unfinished, listing)
        stamps = written(staging)
        write_written(state, shard, {*read_written(state, shard), *stamps})
        record = record_of(state, shard)
        if not record.exists():
            write_record(record, {})
        shard.publish(staging, out)
        write_written(state, shard, stamps)
    except BaseException:  # an interruption, too, leaves neither half a result nor half a list
        discard(staging)
        discard(unfinished)
        raise
    return samples, kept, dict(sorted(dropped.items()))
