"""One batch of an embedding: read, hash, decode and compute what is not known; and where batches begin and end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo.data.inputs import Source, printable
from zoo.data.item_content import read_source, sha256_of_item
from zoo.errors import MediaError
from zoo.media.readers import open_media
from zoo.models.build import Built
from zoo.registry.modality import AUDIO, IMAGE, TEXT
from zoo.tasks.encoding import sample_rate_of, vectors_or_reasons

TEXTS_FOR_AN_IMAGE = 4  # a text is that much less work, so that many more go into a batch
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Known:
    """Vectors that were there when the run began: by position and content in this very list of inputs, or by content."""

    plan: str
    here: dict[tuple[int, str], int] = field(default_factory=dict)
    anywhere: dict[str, int] = field(default_factory=dict)


class Answer(NamedTuple):
    """What became of one input: a vector float32[E], the place of one that is there already, or an error."""

    sha256: str | None
    vector: torch.Tensor | None = None
    place: int = NOWHERE
    error: str | None = None


@dataclass(slots=True)
class _Input:
    """One input on its way to an answer.

    content: its bytes, or what `read_source` gives. place: where the journal has its vector, of this very batch. item: the RGB image, the
    sound or the text.
    """

    source: Source
    content: Any = None
    sha256: str = ""
    place: int = NOWHERE
    item: Any = None
    answer: Answer | None = None

    @property
    def label(self) -> str:
        return printable(self.source.item.label)

    def fail(self, error: str) -> None:
        self.answer = Answer(self.sha256 or None, error=error)


def batch_bounds(sources: Sequence[Source], size: int) -> list[tuple[int, int]]:
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


def plan_of(sources: Sequence[Source], size: int) -> str:
    """What the bounds of the batches, and with them the last digits of the vectors, depend on."""
    digest = hashlib.sha256(f"{size} {torch.get_num_threads()}".encode())
    for source in sources:
        digest.update(json.dumps([source.modality, source.item.label]).encode())
    return digest.hexdigest()[:16]


def answer_batch(
    built: Built, sources: Sequence[Source], bound: tuple[int, int], known: Known, *, device: str, allow_urls: bool
) -> list[Answer]:
    """Read and hash a batch, and compute together what is not known.

    What the journal has of this very batch counts only if it has all of it that can be read: a vector's last digits depend on
    what it is computed with, and an interrupted run is to end with the bytes of an uninterrupted one.
    """
    batch = [_Input(source) for source in sources[slice(*bound)]]
    for position, one in enumerate(batch, bound[0]):
        _read(one, position, known, allow_urls=allow_urls)
    journalled = [one for one in batch if one.place != NOWHERE]
    for one in batch:
        if one.answer is None and one.place == NOWHERE:
            _decode(one, built)
    if all(one.answer is not None for one in batch if one.place == NOWHERE):
        for one in journalled:
            one.answer = Answer(one.sha256, place=one.place)
    else:
        for one in journalled:
            _decode(one, built)
    _compute([one for one in batch if one.answer is None], built, device)
    return [one.answer for one in batch if one.answer is not None]


def _read(one: _Input, position: int, known: Known, *, allow_urls: bool) -> None:
    """Its content and hash, and what is known by them."""
    try:
        one.content = read_source(one.source.item, allow_urls=allow_urls)
    except MediaError as error:
        one.fail(str(error))
        return
    one.sha256 = sha256_of_item(one.source.item, one.content)
    if one.sha256 in known.anywhere:
        one.answer = Answer(one.sha256, place=known.anywhere[one.sha256])
        one.content = None
    else:
        one.place = known.here.get((position, one.sha256), NOWHERE)


def _decode(one: _Input, built: Built) -> None:
    """The image, the sound or the text of an input; its error where there is none."""
    path = one.source.item.source if isinstance(one.source.item.source, Path) else None
    try:
        if one.source.modality == TEXT:
            one.item = one.content.decode("utf-8")
        elif one.source.modality == AUDIO:
            one.item = open_media(one.content, AUDIO, path=path, sample_rate_hz=sample_rate_of(built), label=one.label)
        else:
            one.item = open_media(one.content, IMAGE, path=path, label=one.label)
    except MediaError as error:
        one.fail(str(error))


def _compute(inputs: Sequence[_Input], built: Built, device: str) -> None:
    """The vectors of decoded inputs of one modality, computed together."""
    if not inputs:
        return
    rows = vectors_or_reasons(built, inputs[0].source.modality, [one.item for one in inputs], device=device)
    for one, row in zip(inputs, rows, strict=True):
        if isinstance(row, str):
            one.fail(f"{one.label}: {row}")
        else:
            one.answer = Answer(one.sha256, row)
