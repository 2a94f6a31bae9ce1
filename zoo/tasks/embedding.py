"""Images, sounds and texts -> one file of vectors, in constant memory, and resumable at any moment.

Work goes in batches whose bounds depend on the list of inputs alone. A finished batch is appended to a journal beside the
output, under the sha256 of each item's content. Starting again reads the journal, computes the batches that are not in it and
writes the output from it, under its final name only when it is whole. The same inputs so give the same bytes, however often
the work was interrupted, and content that changed in between is computed again. A finished output serves the next run in the
same way: what it holds already is taken from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.data import tables
from zoo.data.inputs import Source, mixed_sources, printable
from zoo.data.journal import alone
from zoo.data.lost_rows import expected_rows, refuse_to_lose
from zoo.errors import UsageError
from zoo.media.file import expanded
from zoo.models.build import Built, ModelSpec, device_of
from zoo.models.provenance import Provenance, provenance_of
from zoo.registry.modality import AUDIO
from zoo.tasks.embedding_batch import Answer, answer_batch, batch_bounds, plan_of
from zoo.tasks.embedding_output import (
    Output,
    begin,
    keep,
    known_before,
    open_journal,
    read_old_rows,
    refuse_other_widths,
    rows_of,
    write,
)
from zoo.tasks.encoding import open_for, unit_vectors
from zoo.tasks.running import CPU_BATCH, DEVICE_BATCH, in_threads, progress_bar


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of one input: the sha256 of its content, or the reason why it has no vector."""

    input: str
    modality: str
    sha256: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """A file of vectors float32[rows, width], one for each input without an error, in the order of the inputs.

    normalised: the vectors have length 1 (dual encoders); the pooled vectors of plain encoders are as the model gives them.
    computed: how many were computed in this run; the others were there. up_to_date: the file was left as it was.
    """

    provenance: Provenance
    file: Path
    shape: tuple[int, int]
    normalised: bool
    computed: int
    up_to_date: bool
    results: tuple[Embedded, ...]


def embed(
    items: Iterable[Any] | Any = (),
    *,
    out: str | Path,
    texts: Sequence[str] = (),
    model: str | ModelSpec | Built | None = None,
    batch_size: int | None = None,
    allow_urls: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Embedding:
    """Embed images, sounds and texts into the file `out`.

    items: image or audio files, folders, patterns, `PIL.Image.Image`, arrays and `zoo.Sound`; any other string is a text. texts: more texts, whatever
        they look like.
    out: a name ending in .npz (arrays embeddings float32[N, E], items_utf8, items_offsets, modality, sha256, about), .parquet or
        .jsonl. While the work goes on, `<out>.part` lies beside it; the same call goes on from there.
    overwrite: begin anew, whatever `out` and its journal hold. Otherwise the work of another model is refused, and so are inputs
        without which rows of a finished `out` would be lost.
    Raises UsageError for arguments that make no sense, ZooError when the disk refuses, and what building the model raises. An
    item that cannot be read becomes a result with `error`; it never costs the others theirs.
    """
    out = expanded(out)
    tables.check_out(out)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size is at least 1, got {batch_size}")
    sources = mixed_sources(items, texts)
    modalities = list(dict.fromkeys(source.modality for source in sources))
    kinds = ("dual_encoder", "encoder")
    built = open_for(_task(modalities, model), model, kinds=kinds, modalities=modalities)
    device = str(device_of(built))
    about = tables.About(built.name, built.state_identity, unit_vectors(built))
    with alone(out):
        old_rows = [] if overwrite else read_old_rows(out, about)
        refuse_to_lose(out, old_rows, expected_rows(sources, old_rows, allow_urls=allow_urls))
        journal = open_journal(out, about, overwrite=overwrite)
        try:
            return _fill(
                built, sources, begin(out, about, old_rows, journal, len(sources)),
                size=batch_size or (CPU_BATCH if device == "cpu" else DEVICE_BATCH),
                device=device, allow_urls=allow_urls, progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt as stop:
            journal.sync()
            raise KeyboardInterrupt(
                f"what was done is kept in {journal.path}; the same command goes on from there"
            ) from stop
        finally:
            journal.close()


def _task(modalities: Sequence[str], model: str | ModelSpec | Built | None) -> str:
    """Whose default model is meant. Raises UsageError where none reads all of it."""
    unnamed = model is None or (isinstance(model, ModelSpec) and model.name is None)
    if AUDIO in modalities and len(modalities) > 1 and unnamed:
        others = " and ".join(f"{name}s" for name in modalities if name != AUDIO)
        raise UsageError(
            f"sounds beside {others}: no default model reads both; give each a call of its own, or name a model"
        )
    return f"embed:{AUDIO}" if AUDIO in modalities else "embed"


def _fill(
    built: Built, sources: Sequence[Source], output: Output, *, size: int, device: str, allow_urls: bool, progress: bool
) -> Embedding:
    """Answer every input, batch by batch, and write the file."""
    bounds = batch_bounds(sources, size)
    known = known_before(output, plan_of(sources, size))

    @torch.inference_mode()
    def answer(bound: tuple[int, int]) -> list[Answer]:
        return answer_batch(built, sources, bound, known, device=device, allow_urls=allow_urls)

    with progress_bar(len(sources), "item", progress=progress) as bar:
        for (start, stop), answers in zip(bounds, in_threads(answer, bounds, count=len(bounds)), strict=True):
            refuse_other_widths(output, built, answers)
            keep(output, known.plan, start, answers)
            bar.update(stop - start)
    out, rows = output.file, rows_of(output, sources)
    up_to_date = bool(rows) and output.computed == 0 and rows == list(output.old_rows)
    if rows and not up_to_date:
        kept = f"; what was done is kept in {output.journal.path}" if output.computed else ""
        refuse_to_lose(out, output.old_rows, rows, kept)
        write(output, rows)
    output.journal.delete()
    width = len(next(tables.read_vectors(out))) // 4 if up_to_date else output.width
    return Embedding(
        provenance=provenance_of(built),
        file=out,
        shape=(len(rows), width),
        normalised=output.about.normalised,
        computed=output.computed,
        up_to_date=up_to_date,
        results=tuple(
            Embedded(printable(source.item.label), source.modality, sha256, output.errors.get(position))
            for position, (source, sha256) in enumerate(zip(sources, output.sha256, strict=True))
        ),
    )
