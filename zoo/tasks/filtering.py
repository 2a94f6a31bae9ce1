"""Image-text pairs whose image and text do not fit each other, by a dual encoder's cosine, are left out.

The rule of LAION-400M (Schuhmann et al. 2021, arXiv:2111.02114) and LAION-5B (Schuhmann et al. 2022, arXiv:2210.08402). A shard
is read, scored and written at once, in memory that does not grow with it; its result gets its name when it is whole, and a record
beside it says from what it was made, so that a second run leaves it alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.data.filter_records import (
    describe_result,
    discard,
    is_intact,
    listing_of,
    open_records,
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
from zoo.data.journal import alone
from zoo.data.pairs import JsonlShard, Pair, Shard
from zoo.data.shards import find_shards
from zoo.errors import MediaError, UsageError, ZooError
from zoo.media.image import open_image
from zoo.models.build import Built, ModelSpec, device_of
from zoo.models.provenance import Provenance, provenance_of
from zoo.registry.atomic_write import atomic_write, replace_durably
from zoo.registry.modality import IMAGE, TEXT
from zoo.tasks.encoding import not_finite, open_for, plugin_errors, vectors_or_reasons
from zoo.tasks.running import CPU_BATCH, DEVICE_BATCH, in_threads, progress_bar

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Preset:
    """A published threshold. score_scale: what the weights row of the model it was chosen for has in its field of that name."""

    threshold: float
    origin: str
    score_scale: str


PRESETS = {
    "laion5b-english": Preset(
        0.28, "LAION-5B, English pairs, by the scores of its authors' encoder (arXiv:2210.08402)", "laion-english"
    ),
    "laion5b-multilingual": Preset(
        0.26,
        "LAION-5B, pairs in other languages, by the scores of its authors' encoder (arXiv:2210.08402)",
        "laion-multilingual",
    ),
    "laion400m": Preset(0.3, "LAION-400M, by the scores of its authors' encoder (arXiv:2111.02114)", "laion-english"),
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What was kept and dropped, by what rule. report: the file that names every dropped sample; None after a dry run.

    quantiles: share of the pairs -> the score that so many stay below; of a dry run alone.
    """

    provenance: Provenance
    identity: str
    threshold: float | None
    preset: str | None
    origin: str
    shards: tuple[ShardResult, ...]
    notes: tuple[str, ...]
    report: Path | None = None
    quantiles: dict[float, float] | None = None

    @property
    def counts(self) -> dict[str, Any]:
        """samples, kept (None without a threshold), and dropped by reason, of all shards that did not fail."""
        dropped: Counter[str] = Counter()
        for shard in self.shards:
            dropped.update(shard.dropped)
        return {
            "samples": sum(shard.samples for shard in self.shards),
            "kept": None if self.threshold is None else sum(shard.kept or 0 for shard in self.shards),
            "dropped": dict(sorted(dropped.items())),
        }


@dataclass(frozen=True, slots=True)
class _Scored:
    """A pair without its pixels, and its score or the reason why it has none."""

    pair: Pair
    score: float | None
    reason: str = ""
    detail: str = ""


def filter_pairs(
    source: str | Path,
    out: str | Path | None = None,
    *,
    threshold: float | None = None,
    preset: str | None = None,
    dry_run: bool = False,
    report: str | Path | None = None,
    model: str | ModelSpec | Built | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Filtered:
    """Copy the pairs of `source` whose score reaches the threshold to `out`, which has the same form.

    source: a folder (images with a `.txt` of the same stem), a `.jsonl` (`{"image": path from the file's folder, "text": ...}`), or one
        tar or a pattern of tars (`{00..99}`, `*`; `name.jpg` with `name.txt`, or `name.json` with a "caption").
    out: a folder, a `.jsonl`, a `.tar`, or a folder for several tars. `<out>.zoo-filter` beside it holds the records of what is done.
    threshold: a cosine in [-1, 1]. preset: a published one (`PRESETS`), which fits the model it was chosen for.
    dry_run: write nothing and return the quantiles of the scores.
    overwrite: replace what an earlier run with another rule or model wrote. What this function did not write is never replaced.
    Raises UsageError for arguments that make no sense and ZooError when the disk refuses. A shard that is damaged is `failed`, and
    costs the others nothing.
    """
    limit, origin = _rule(threshold, preset, dry_run=dry_run)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size is at least 1, got {batch_size}")
    _check_places(out, report, dry_run=dry_run)
    target = None if out is None or dry_run else Path(out).expanduser()
    shards = find_shards(str(source), target)
    if report is not None and target is not None:
        _refuse_report(Path(report), target, shards)
    both = (IMAGE, TEXT)
    built = open_for("filter", model, kinds=("dual_encoder",), modalities=both)
    device = str(device_of(built))
    notes = [note for note in (_preset_note(preset, built), _place_note(shards, target)) if note]
    scorer = _Scorer(built, batch_size or (CPU_BATCH if device == "cpu" else DEVICE_BATCH), device)
    about: dict[str, Any] = {
        "provenance": provenance_of(built), "identity": built.state_identity,
        "threshold": limit, "preset": preset, "origin": origin, "notes": tuple(notes),
    }  # fmt: skip
    if target is None:
        scores = array("f")
        results = [_dry(shard, scorer, limit, scores, progress=progress) for shard in shards]
        spread = dict(zip(QUANTILES, map(float, np.quantile(scores, QUANTILES)), strict=True)) if scores else {}
        return Filtered(**about, shards=tuple(results), quantiles=spread)
    if limit is None:
        raise UsageError("a threshold is needed to filter")
    state = _state_of(target)
    with alone(target):
        open_records(state, shards, {"identity": built.state_identity, "threshold": limit}, built.name, overwrite=overwrite)
        try:
            results = [_run(shard, state, scorer, limit, progress=progress) for shard in shards]
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("the finished shards stay; the same command goes on with the others") from stop
        outcome = Filtered(**about, shards=tuple(results), report=Path(report) if report else state / "report.json")
        _write_report(outcome, state, shards, str(source), target)
    return outcome


def _rule(threshold: float | None, preset: str | None, *, dry_run: bool) -> tuple[float | None, str]:
    if threshold is not None and preset is not None:
        raise UsageError("give --threshold or --preset, not both")
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"there is no preset {preset!r}: {', '.join(PRESETS)}")
        return PRESETS[preset].threshold, PRESETS[preset].origin
    if threshold is not None:
        if not -1 <= threshold <= 1:
            raise UsageError(f"a threshold is a cosine in [-1, 1], got {threshold}")
        return threshold, "the caller's"
    if not dry_run:
        presets = ", ".join(f"{name} ({preset.threshold})" for name, preset in PRESETS.items())
        raise UsageError(
            f"say which pairs stay: --threshold X, or --preset {presets}. Every model has a scale of its own: "
            f"--dry-run shows the scores of your pairs"
        )
    return None, ""


def _check_places(out: str | Path | None, report: str | Path | None, *, dry_run: bool) -> None:
    """Raise UsageError where nobody says where the result goes, and for a report in a folder that is not there."""
    if out is None and not dry_run:
        raise UsageError("--out says where the pairs go that stay (or --dry-run shows the scores alone)")
    if report is not None and not Path(report).absolute().parent.is_dir():
        raise UsageError(f"--report {report}: there is no folder {Path(report).parent} (mkdir -p {Path(report).parent})")


def _refuse_report(report: Path, out: Path, shards: Sequence[Shard]) -> None:
    """Raise UsageError for a report that would take the place of something else: there is no way back from that."""
    place = report.resolve()
    taken = {shard.source.resolve(): "a source" for shard in shards} | {
        path.resolve(): "the result" for shard in shards for path in (out, shard.out) if path is not None
    }
    taken[_state_of(out).resolve()] = "the records of what is done"
    for path, what in taken.items():
        if place == path or path in place.parents:
            raise UsageError(f"--report {report}: it would lie over or in {what}, {path}: give another name")
    if os.path.lexists(report) and not _is_report(report):
        raise UsageError(f"--report {report}: it exists and is no report of zoo filter; give another name, or delete it")


def _is_report(path: Path) -> bool:
    """Whether a file begins as `_write_report` begins one; an empty one has nothing to lose."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(4096)
    return not head or (head.startswith(b'{\n "model": ') and b'"threshold_from": ' in head)


def _state_of(out: Path) -> Path:
    """The folder of records beside a result."""
    return out.with_name(f"{out.name}.zoo-filter")


def _preset_note(preset: str | None, built: Built) -> str | None:
    if preset is None:
        return None
    row = built.found.weights
    own = row is not None and built.name == built.found.name  # a local file is another model on the same card
    if row is not None and own and row.score_scale == PRESETS[preset].score_scale:
        return None
    return (
        f"warning: {PRESETS[preset].threshold} was chosen for other scores than those of {built.name}: {PRESETS[preset].origin}; "
        f"--dry-run shows the scale of this model"
    )


def _place_note(shards: Sequence[Shard], out: Path | None) -> str | None:
    if out is None or not isinstance(shards[0], JsonlShard) or out.resolve().parent == shards[0].source.resolve().parent:
        return None
    return f"warning: the paths in {out} count from {shards[0].source.parent}, where the lines were, not from {out.parent}"


class _Scorer:
    """Pairs -> scores, in threads, in order."""

    def __init__(self, built: Built, size: int, device: str) -> None:
        self.built, self.size, self.device = built, size, device

    def scored(self, pairs: Iterable[Pair]) -> Iterator[_Scored]:
        answer = torch.inference_mode()(self._answer)
        for answers in in_threads(answer, _batches(pairs, self.size), count=None):
            yield from answers

    def _answer(self, pairs: Sequence[Pair]) -> list[_Scored]:
        answers: dict[int, _Scored] = {}
        images: dict[int, Any] = {}
        for number, pair in enumerate(pairs):
            if pair.problem is not None:
                answers[number] = _Scored(_light(pair), None, *pair.problem)
                continue
            try:
                images[number] = open_image(
                    pair.image or b"", label=str(pair.image) if isinstance(pair.image, Path) else pair.key
                )
            except MediaError as error:
                answers[number] = _Scored(_light(pair), None, "unreadable-image", str(error))
        if images:
            image_rows = vectors_or_reasons(self.built, IMAGE, list(images.values()), device=self.device)
            texts = [pairs[number].text for number in images]
            text_rows = vectors_or_reasons(self.built, TEXT, texts, device=self.device)
            for number, image, text in zip(images, image_rows, text_rows, strict=True):
                answers[number] = self._score(pairs[number], image, text)
        return [answers[number] for number in range(len(pairs))]

    def _score(self, pair: Pair, image: torch.Tensor | str, text: torch.Tensor | str) -> _Scored:
        if isinstance(image, str) or isinstance(text, str):
            return _Scored(_light(pair), None, "no-score", str(image if isinstance(image, str) else text))
        with plugin_errors(self.built):  # their widths may differ
            score = float((image * text).sum())
        finite = math.isfinite(score)
        return _Scored(_light(pair), score) if finite else _Scored(_light(pair), None, "no-score", not_finite(self.built))


def _light(pair: Pair) -> Pair:
    """Without the bytes of the image, which nobody needs any more."""
    return Pair(pair.key, None, "", pair.payload)


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    seen: set[bytes] = set()  # 16 bytes a pair: the one thing that grows with a shard
    batch = []
    for pair in pairs:
        digest = hashlib.blake2b((pair.unique or pair.key).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        repeated = pair.problem is None and digest in seen
        if pair.problem is None:
            seen.add(digest)
        batch.append(Pair(pair.key, None, "", (), ("duplicate-key", "it was there before")) if repeated else pair)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _dry(shard: Shard, scorer: _Scorer, limit: float | None, scores: array[float], *, progress: bool) -> ShardResult:
    dropped: Counter[str] = Counter()
    kept = samples = 0
    error = None
    before = len(scores)
    try:
        with progress_bar(None, "pair", progress=progress) as bar:
            for answer in scorer.scored(shard.pairs()):
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


def _run(shard: Shard, state: Path, scorer: _Scorer, limit: float, *, progress: bool) -> ShardResult:
    out, record = shard.out or shard.source, record_of(state, shard)
    fields: dict[str, Any] = {"source": str(shard.source), "out": str(out)}
    try:
        fingerprint = shard.fingerprint()
        old = read_record(record)
        done_before = old.get("fingerprint") == fingerprint and listing_of(state, shard).exists()
        if done_before and is_intact(state, shard, out, old.get("result")):
            return ShardResult(**fields, state="skipped", samples=old["samples"], kept=old["kept"], dropped=old["dropped"])
        refuse_foreign(state, shard, out)
        samples, kept, dropped = _filter(shard, out, state, scorer, limit, progress=progress)
        made = {"fingerprint": fingerprint, "result": describe_result(out)}
        write_record(record, {**made, "samples": samples, "kept": kept, "dropped": dropped})
    except (ZooError, OSError) as error:
        return ShardResult(**fields, state="failed", dropped={}, error=str(error))
    return ShardResult(**fields, state="done", samples=samples, kept=kept, dropped=dropped)


def _filter(
    shard: Shard, out: Path, state: Path, scorer: _Scorer, limit: float, *, progress: bool
) -> tuple[int, int, dict[str, int]]:
    """Filter one shard; returns samples, kept, and reason -> how many were dropped."""
    staging = staging_of(state, shard)
    discard(staging)
    dropped: Counter[str] = Counter()
    samples = kept = 0
    listing = listing_of(state, shard)
    unfinished = listing.with_name(f"{listing.name}.new")
    bar = progress_bar(None, "pair", progress=progress)
    try:
        with bar, shard.writer(staging) as write, unfinished.open("w", encoding="utf-8") as stream:
            for answer in scorer.scored(shard.pairs()):
                bar.update(1)
                samples += 1
                if answer.score is not None and answer.score >= limit:
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


def _write_report(outcome: Filtered, state: Path, shards: Sequence[Shard], source: str, out: Path) -> None:
    """One JSON document, written as it is read: the list of dropped samples may be long."""
    if outcome.report is None:
        return
    head = {
        "model": outcome.provenance.model,
        "plugin": {"dist": outcome.provenance.distribution, "version": outcome.provenance.version},
        "identity": outcome.identity,
        "threshold": outcome.threshold,
        "preset": outcome.preset,
        "threshold_from": outcome.origin,
        "source": source,
        "out": str(out),
        "counts": outcome.counts,
        "failed": [{"shard": shard.source, "error": shard.error} for shard in outcome.shards if shard.error],
    }
    try:
        with atomic_write(outcome.report) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "dropped": [')
            comma = ""
            for shard, result in zip(shards, outcome.shards, strict=True):
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
        raise ZooError(f"--report {outcome.report}: cannot be written ({error.strerror or error})") from error
