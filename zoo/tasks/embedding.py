"""Images, sounds and texts -> one file of vectors, in constant memory, and resumable at any moment.

Work goes in batches whose bounds depend on the list of inputs alone. A finished batch is appended to a journal beside the
output, under the sha256 of each item's content. Starting again reads the journal, computes the batches that are not in it and
writes the output from it, under its final name only when it is whole. The same inputs so give the same bytes, however often
the work was interrupted, and content that changed in between is computed again. A finished output serves the next run in the
same way: what it holds already is taken from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from zoo.data import tables
from zoo.data.inputs import Source, mixed_sources, printable, read_source, sha256_of_source
from zoo.data.journal import Journal, alone, read_about
from zoo.data.lost_rows import expected_rows, refuse_to_lose
from zoo.errors import MediaError, PluginError, UsageError, ZooError
from zoo.media.audio import open_audio
from zoo.media.image import open_image
from zoo.models.build import Built, ModelSpec, device_of
from zoo.models.provenance import Provenance, provenance_of
from zoo.registry.atomic_write import atomic_write
from zoo.registry.modality import AUDIO, TEXT
from zoo.registry.plugin import describe
from zoo.tasks.encoding import open_for, sample_rate_of, unit_vectors, vectors_or_reasons
from zoo.tasks.running import CPU_BATCH, DEVICE_BATCH, in_threads, progress_bar

TEXTS_FOR_AN_IMAGE = 4  # a text is that much less work, so that many more go into a batch
IN_OLD_OUTPUT = -1  # places below this one are rows of the finished output, as -2 - row
FAILED = -1


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


@dataclass(slots=True)
class _Done:
    """What is known of each input so far: its hash, where its vector lies, or its error."""

    places: np.ndarray[Any, np.dtype[np.int64]]
    sha256: list[str | None]
    errors: dict[int, str] = field(default_factory=dict)
    width: int = 0
    computed: int = 0


class _Answer(NamedTuple):
    """What a worker made of one input: a vector, the place of one that is there already, or an error."""

    sha256: str | None
    vector: torch.Tensor | None = None
    place: int = FAILED
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """Vectors that were there when the run began: by position and content in this very list of inputs, or by content."""

    plan: str
    here: dict[tuple[int, str], int] = field(default_factory=dict)
    anywhere: dict[str, int] = field(default_factory=dict)


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

    items: image or audio files, folders, patterns, `PIL.Image.Image`, arrays and `zoo.media.audio.Sound`; any other string is a text. texts: more texts, whatever
        they look like.
    out: a name ending in .npz (arrays embeddings float32[N, E], items_utf8, items_offsets, modality, sha256, about), .parquet or
        .jsonl. While the work goes on, `<out>.part` lies beside it; the same call goes on from there.
    overwrite: begin anew, whatever `out` and its journal hold. Otherwise the work of another model is refused, and so are inputs
        without which rows of a finished `out` would be lost.
    Raises UsageError for arguments that make no sense, ZooError when the disk refuses, and what building the model raises. An
    item that cannot be read becomes a result with `error`; it never costs the others theirs.
    """
    out = Path(out).expanduser()
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
        old_rows = [] if overwrite else _old_rows(out, about)
        refuse_to_lose(out, old_rows, expected_rows(sources, old_rows, allow_urls=allow_urls))
        journal = _open_journal(out, about, overwrite=overwrite)
        try:
            return _fill(
                built, about, sources, out, old_rows, journal,
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


def _old_rows(out: Path, about: tables.About) -> list[tables.Row]:
    """The rows of an earlier output of the same model; refuses to replace anything else."""
    if not out.exists():
        return []
    try:
        found, rows = tables.read_table(out)
        tables.check_vectors(out, len(rows))
    except ZooError as error:
        raise UsageError(f"{error}; it is left alone: give another --out, or --overwrite") from error
    _refuse_other(f"--out {out}: it", found.model, found.identity, about)
    return rows


def _open_journal(out: Path, about: tables.About, *, overwrite: bool) -> Journal:
    path = out.with_name(f"{out.name}.part")
    if overwrite:
        path.unlink(missing_ok=True)
    begun = read_about(path)
    if begun is not None:
        _refuse_other(f"{path}: it", str(begun.get("model")), str(begun.get("identity")), about)
    return Journal(path, {"model": about.model, "identity": about.identity})


def _refuse_other(what: str, model: str, identity: str, about: tables.About) -> None:
    if identity == about.identity:
        return
    other = f"of {model}" if model != about.model else f"of {model} with other weights, code or settings"
    raise UsageError(
        f"{what} holds embeddings {other}, and is not mixed with {about.model}: give another --out, or --overwrite"
    )


def _fill(
    built: Built,
    about: tables.About,
    sources: Sequence[Source],
    out: Path,
    old_rows: Sequence[tables.Row],
    journal: Journal,
    *,
    size: int,
    device: str,
    allow_urls: bool,
    progress: bool,
) -> Embedding:
    bounds = _batches(sources, size)
    known = _known(_plan(sources, size), journal, old_rows)

    @torch.inference_mode()
    def answer(bound: tuple[int, int]) -> list[_Answer]:
        return _answer_batch(built, sources, bound, known, device=device, allow_urls=allow_urls)

    done = _Done(np.full(len(sources), FAILED, np.int64), [None] * len(sources))
    with progress_bar(len(sources), "item", progress=progress) as bar:
        for (start, stop), answers in zip(bounds, in_threads(answer, bounds, count=len(bounds)), strict=True):
            _refuse_other_widths(built, done, answers)
            _keep(done, journal, known.plan, start, answers)
            bar.update(stop - start)
    rows = _rows(sources, done)
    up_to_date = bool(rows) and done.computed == 0 and rows == list(old_rows)
    if rows and not up_to_date:
        kept = f"; what was done is kept in {journal.path}" if done.computed else ""
        refuse_to_lose(out, old_rows, rows, kept)
        _bring_from_old(out, journal, done)
        _write(out, about, rows, journal, done)
    journal.delete()
    width = len(next(tables.read_vectors(out))) // 4 if up_to_date else done.width
    return Embedding(
        provenance=provenance_of(built),
        file=out,
        shape=(len(rows), width),
        normalised=about.normalised,
        computed=done.computed,
        up_to_date=up_to_date,
        results=tuple(
            Embedded(printable(source.item.label), source.modality, sha256, done.errors.get(position))
            for position, (source, sha256) in enumerate(zip(sources, done.sha256, strict=True))
        ),
    )


def _batches(sources: Sequence[Source], size: int) -> list[tuple[int, int]]:
    """(start, stop) of runs of one modality, `size` images or a multiple of texts long."""
    bounds = []
    start = 0
    for position in range(1, len(sources) + 1):
        limit = size * (TEXTS_FOR_AN_IMAGE if sources[start].modality == TEXT else 1)
        full = position - start == limit
        if position == len(sources) or full or sources[position].modality != sources[start].modality:
            bounds.append((start, position))
            start = position
    return bounds


def _plan(sources: Sequence[Source], size: int) -> str:
    """What the bounds of the batches, and with them the last digits of the vectors, depend on."""
    digest = hashlib.sha256(f"{size} {torch.get_num_threads()}".encode())
    for source in sources:
        digest.update(json.dumps([source.modality, source.item.label]).encode())
    return digest.hexdigest()[:16]


def _known(plan: str, journal: Journal, old_rows: Sequence[tables.Row]) -> _Known:
    known = _Known(plan)
    for number, row in enumerate(old_rows):
        known.anywhere.setdefault(row.sha256, IN_OLD_OUTPUT - 1 - number)
    for header, place, payload_bytes in journal.records():
        for number, (position, sha256) in enumerate(header["rows"]):
            where = place + number * (payload_bytes // len(header["rows"]))
            if header["plan"] == plan:
                known.here[position, sha256] = where
            else:
                known.anywhere.setdefault(sha256, where)
    return known


def _answer_batch(
    built: Built,
    sources: Sequence[Source],
    bound: tuple[int, int],
    known: _Known,
    *,
    device: str,
    allow_urls: bool,
) -> list[_Answer]:
    """Read and hash a batch, and compute together what is not known.

    What the journal has of this very batch counts only if it has all of it that can be read: a vector's last digits depend on
    what it is computed with, and an interrupted run is to end with the bytes of an uninterrupted one.
    """
    answers: dict[int, _Answer] = {}
    hashes: dict[int, str] = {}
    contents: dict[int, Any] = {}
    for position in range(*bound):
        try:
            content = read_source(sources[position].item, allow_urls=allow_urls)
        except MediaError as error:
            answers[position] = _Answer(None, error=str(error))
            continue
        hashes[position] = sha256_of_source(content)
        if hashes[position] in known.anywhere:
            answers[position] = _Answer(hashes[position], place=known.anywhere[hashes[position]])
        else:
            contents[position] = content
    there = {
        position: known.here[position, hashes[position]]
        for position in contents
        if (position, hashes[position]) in known.here
    }
    decoded = {
        position: _decode(sources[position], content, sample_rate_of(built))
        for position, content in contents.items()
        if position not in there
    }
    if all(isinstance(item, MediaError) for item in decoded.values()):
        answers |= {position: _Answer(hashes[position], place=place) for position, place in there.items()}
    else:
        decoded |= {position: _decode(sources[position], contents[position], sample_rate_of(built)) for position in there}
    good = {
        position: decoded[position]
        for position in contents
        if not isinstance(decoded.get(position, MediaError()), MediaError)
    }
    if good:
        rows = vectors_or_reasons(built, sources[bound[0]].modality, list(good.values()), device=device)
        for position, row in zip(good, rows, strict=True):
            if isinstance(row, str):
                answers[position] = _Answer(hashes[position], error=f"{printable(sources[position].item.label)}: {row}")
            else:
                answers[position] = _Answer(hashes[position], row)
    failed = {position: item for position, item in decoded.items() if isinstance(item, MediaError)}
    answers |= {position: _Answer(hashes[position], error=str(error)) for position, error in failed.items()}
    return [answers[position] for position in range(*bound)]


def _decode(source: Source, content: Any, sample_rate_hz: int | None) -> Any:
    """The RGB image, the sound or the text; the error where there is none."""
    if source.modality == TEXT:
        return content.decode("utf-8")
    try:
        if source.modality == AUDIO:
            return open_audio(content, sample_rate_hz=sample_rate_hz, label=printable(source.item.label))
        return open_image(content, label=printable(source.item.label))
    except MediaError as error:
        return error


def _refuse_other_widths(built: Built, done: _Done, answers: Sequence[_Answer]) -> None:
    """A file has vectors of one width: a model whose images and texts differ in it cannot fill one."""
    for answer in answers:
        width = done.width if answer.vector is None else len(answer.vector)
        if done.width not in (0, width):
            raise PluginError(
                f"{describe(built.found.card.provider)}: {built.name} gave vectors of width {done.width} and of {width}"
            )


def _keep(done: _Done, journal: Journal, plan: str, start: int, answers: Sequence[_Answer]) -> None:
    """Note a batch, and append what is new in it to the journal."""
    fresh = [(number, answer) for number, answer in enumerate(answers) if answer.vector is not None]
    payload = b"".join(answer.vector.numpy().astype("<f4").tobytes() for _, answer in fresh if answer.vector is not None)
    place = 0
    if fresh:
        rows = [[start + number, answer.sha256] for number, answer in fresh]
        place = journal.append({"plan": plan, "rows": rows}, payload)
        done.width = len(payload) // 4 // len(fresh)
    for number, answer in enumerate(answers):
        done.sha256[start + number] = answer.sha256
        done.places[start + number] = answer.place
        if answer.error:
            done.errors[start + number] = answer.error
    for order, (number, _) in enumerate(fresh):
        done.places[start + number] = place + order * 4 * done.width
    done.computed += len(fresh)


def _rows(sources: Sequence[Source], done: _Done) -> list[tables.Row]:
    return [
        tables.Row(printable(source.item.label), source.modality, sha256 or "")
        for position, (source, sha256) in enumerate(zip(sources, done.sha256, strict=True))
        if position not in done.errors
    ]


def _bring_from_old(out: Path, journal: Journal, done: _Done) -> None:
    """Copy the vectors that only the finished output has into the journal, from which the next output is written."""
    wanted = {int(place) for place in done.places if place < IN_OLD_OUTPUT}
    if not wanted:
        return
    moved: dict[int, int] = {}
    for number, vector in enumerate(tables.read_vectors(out)):
        place = IN_OLD_OUTPUT - 1 - number
        if place in wanted:
            moved[place] = journal.append({"plan": "", "rows": []}, vector)
            done.width = len(vector) // 4
    for position, place in enumerate(done.places.tolist()):
        done.places[position] = moved.get(place, place)


def _write(out: Path, about: tables.About, rows: Sequence[tables.Row], journal: Journal, done: _Done) -> None:
    width = done.width or _journal_width(journal)
    done.width = width
    places = (int(place) for position, place in enumerate(done.places) if position not in done.errors)
    try:
        with atomic_write(out, temporary=out.with_name(f"{out.name}.new")) as temporary:
            vectors = (journal.read(place, 4 * width) for place in places)
            tables.write_table(temporary, out.suffix.lower(), about, width, rows, vectors)
    except OSError as error:
        raise ZooError(
            f"{out}: cannot be written ({error.strerror or error}); what was done is kept in {journal.path}, "
            f"and the same command goes on from there"
        ) from error


def _journal_width(journal: Journal) -> int:
    for header, _, payload_bytes in journal.records():
        if payload_bytes:
            return payload_bytes // 4 // max(1, len(header["rows"]))
    return 0
