"""Image-text pairs whose image and text do not fit each other, by a dual encoder's cosine, are left out.

The rule of LAION-400M (Schuhmann et al. 2021, arXiv:2111.02114) and LAION-5B (Schuhmann et al. 2022, arXiv:2210.08402). A shard
is read, scored and written at once, in memory that does not grow with it; its result gets its name when it is whole, and a record
beside it says from what it was made, so that a second run leaves it alone.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.filter_records import open_records, state_of
from zoo.data.journal import alone
from zoo.data.pairs import JsonlShard, Shard
from zoo.data.shards import find_shards
from zoo.errors import UsageError
from zoo.media.file import expanded
from zoo.models.build import Built, ModelSpec, device_of
from zoo.models.provenance import Provenance, provenance_of
from zoo.registry.modality import IMAGE, TEXT
from zoo.tasks.encoding import open_for
from zoo.tasks.filter_report import refuse_report, write_report
from zoo.tasks.filter_scores import Scorer
from zoo.tasks.filter_shards import Run, ShardResult, filter_shard, score_shard
from zoo.tasks.running import CPU_BATCH, DEVICE_BATCH

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
    target = None if out is None or dry_run else expanded(out)
    shards = find_shards(str(source), target)
    if report is not None and target is not None:
        refuse_report(Path(report), target, shards)
    both = (IMAGE, TEXT)
    built = open_for("filter", model, kinds=("dual_encoder",), modalities=both)
    device = str(device_of(built))
    notes = [note for note in (_preset_note(preset, built), _place_note(shards, target)) if note]
    scorer = Scorer(built, batch_size or (CPU_BATCH if device == "cpu" else DEVICE_BATCH), device)
    about: dict[str, Any] = {
        "provenance": provenance_of(built), "identity": built.state_identity,
        "threshold": limit, "preset": preset, "origin": origin, "notes": tuple(notes),
    }  # fmt: skip
    if target is None:
        scores = array("f")
        results = [score_shard(shard, scorer, limit, scores, progress=progress) for shard in shards]
        spread = dict(zip(QUANTILES, map(float, np.quantile(scores, QUANTILES)), strict=True)) if scores else {}
        return Filtered(**about, shards=tuple(results), quantiles=spread)
    if limit is None:
        raise UsageError("a threshold is needed to filter")
    state = state_of(target)
    run = Run(state, scorer, limit, progress)
    with alone(target):
        open_records(state, shards, {"identity": built.state_identity, "threshold": limit}, built.name, overwrite=overwrite)
        try:
            results = [filter_shard(shard, run) for shard in shards]
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("the finished shards stay; the same command goes on with the others") from stop
        place = Path(report) if report else state / "report.json"
        outcome = Filtered(**about, shards=tuple(results), report=place)
        write_report(place, _report_head(outcome, str(source), target), state, shards, results)
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


def _report_head(outcome: Filtered, source: str, out: Path) -> dict[str, Any]:
    """All of the report but the dropped samples."""
    return {
        "model": outcome.provenance.model,
        "plugin": {"dist": outcome.provenance.distribution, "version": outcome.provenance.version},
        "random_weights": outcome.provenance.random_weights,
        "identity": outcome.identity,
        "threshold": outcome.threshold,
        "preset": outcome.preset,
        "threshold_from": outcome.origin,
        "source": source,
        "out": str(out),
        "counts": outcome.counts,
        "failed": [{"shard": shard.source, "error": shard.error} for shard in outcome.shards if shard.error],
    }
