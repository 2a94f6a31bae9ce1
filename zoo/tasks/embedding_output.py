"""The output of an embedding while it is made: what an earlier run left, the journal of this one, and the finished file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import tables
from zoo.data.inputs import Source, printable
from zoo.data.journal import Journal, read_about
from zoo.errors import PluginError, UsageError, ZooError
from zoo.models.build import Built
from zoo.registry.atomic_write import atomic_write
from zoo.registry.plugin import describe
from zoo.tasks.embedding_batch import NOWHERE, Answer, Known

IN_OLD_OUTPUT = -1  # places below this one are rows of the finished output, as -2 - row


@dataclass(slots=True)
class Output:
    """A file on its way, and what is known of each input so far: its hash, where its vector lies, or its error.

    old_rows: of the finished file that is there. width: E of the vectors, 0 while none was seen. computed: vectors of this run.
    """

    file: Path
    about: tables.About
    old_rows: Sequence[tables.Row]
    journal: Journal
    places: np.ndarray[Any, np.dtype[np.int64]]
    sha256: list[str | None]
    errors: dict[int, str] = field(default_factory=dict)
    width: int = 0
    computed: int = 0


def read_old_rows(out: Path, about: tables.About) -> list[tables.Row]:
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


def open_journal(out: Path, about: tables.About, *, overwrite: bool) -> Journal:
    """The journal beside an output, new or as an interrupted run left it; refuses one of another model."""
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


def begin(out: Path, about: tables.About, old_rows: Sequence[tables.Row], journal: Journal, count: int) -> Output:
    """An output of which nothing is known yet; count: of the inputs."""
    return Output(out, about, old_rows, journal, np.full(count, NOWHERE, np.int64), [None] * count)


def known_before(output: Output, plan: str) -> Known:
    """What the journal and the finished file hold already."""
    known = Known(plan)
    for number, row in enumerate(output.old_rows):
        known.anywhere.setdefault(row.sha256, IN_OLD_OUTPUT - 1 - number)
    for header, place, payload_bytes in output.journal.records():
        for number, (position, sha256) in enumerate(header["rows"]):
            where = place + number * (payload_bytes // len(header["rows"]))
            if header["plan"] == plan:
                known.here[position, sha256] = where
            else:
                known.anywhere.setdefault(sha256, where)
    return known


def refuse_other_widths(output: Output, built: Built, answers: Sequence[Answer]) -> None:
    """A file has vectors of one width: a model whose images and texts differ in it cannot fill one."""
    for answer in answers:
        width = output.width if answer.vector is None else len(answer.vector)
        if output.width not in (0, width):
            raise PluginError(
                f"{describe(built.found.card.provider)}: {built.name} gave vectors of width {output.width} and of {width}"
            )


def keep(output: Output, plan: str, start: int, answers: Sequence[Answer]) -> None:
    """Note a batch, and append what is new in it to the journal."""
    fresh = [(number, answer) for number, answer in enumerate(answers) if answer.vector is not None]
    payload = b"".join(answer.vector.numpy().astype("<f4").tobytes() for _, answer in fresh if answer.vector is not None)
    place = 0
    if fresh:
        rows = [[start + number, answer.sha256] for number, answer in fresh]
        place = output.journal.append({"plan": plan, "rows": rows}, payload)
        output.width = len(payload) // 4 // len(fresh)
    for number, answer in enumerate(answers):
        output.sha256[start + number] = answer.sha256
        output.places[start + number] = answer.place
        if answer.error:
            output.errors[start + number] = answer.error
    for order, (number, _) in enumerate(fresh):
        output.places[start + number] = place + order * 4 * output.width
    output.computed += len(fresh)


def rows_of(output: Output, sources: Sequence[Source]) -> list[tables.Row]:
    """One row for each input without an error."""
    return [
        tables.Row(printable(source.item.label), source.modality, sha256 or "")
        for position, (source, sha256) in enumerate(zip(sources, output.sha256, strict=True))
        if position not in output.errors
    ]


def write(output: Output, rows: Sequence[tables.Row]) -> None:
    """Write the finished file. Raises ZooError where the disk refuses."""
    _bring_from_old(output)
    width = output.width = output.width or _journal_width(output.journal)
    out, journal = output.file, output.journal
    places = (int(place) for position, place in enumerate(output.places) if position not in output.errors)
    try:
        with atomic_write(out) as temporary:
            vectors = (journal.read(place, 4 * width) for place in places)
            tables.write_table(temporary, out.suffix.lower(), output.about, width, rows, vectors)
    except OSError as error:
        raise ZooError(
            f"{out}: cannot be written ({error.strerror or error}); what was done is kept in {journal.path}, "
            f"and the same command goes on from there"
        ) from error


def _bring_from_old(output: Output) -> None:
    """Copy the vectors that only the finished output has into the journal, from which the next output is written."""
    wanted = {int(place) for place in output.places if place < IN_OLD_OUTPUT}
    if not wanted:
        return
    moved: dict[int, int] = {}
    for number, vector in enumerate(tables.read_vectors(output.file)):
        place = IN_OLD_OUTPUT - 1 - number
        if place in wanted:
            moved[place] = output.journal.append({"plan": "", "rows": []}, vector)
            output.width = len(vector) // 4
    for position, place in enumerate(output.places.tolist()):
        output.places[position] = moved.get(place, place)


def _journal_width(journal: Journal) -> int:
    for header, _, payload_bytes in journal.records():
        if payload_bytes:
            return payload_bytes // 4 // max(1, len(header["rows"]))
    return 0
