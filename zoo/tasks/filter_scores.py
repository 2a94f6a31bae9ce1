"""Pairs of an image and a text -> cosines, by a dual encoder, in threads, in order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.data.pairs import Pair
from zoo.errors import MediaError
from zoo.media.readers import open_media
from zoo.models.build import Built
from zoo.registry.modality import IMAGE, TEXT
from zoo.tasks.encoding import not_finite, plugin_errors, vectors_or_reasons
from zoo.tasks.running import in_threads


@dataclass(frozen=True, slots=True)
class Scorer:
    """The model that scores, how many pairs it takes at once, and where it computes."""

    built: Built
    batch_size: int
    device: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair without its pixels, and its score or the reason why it has none."""

    pair: Pair
    score: float | None
    reason: str = ""
    detail: str = ""


def scored(scorer: Scorer, pairs: Iterable[Pair]) -> Iterator[Scored]:
    """Each pair with its score, in order."""
    batches = _batches(pairs, scorer.batch_size)
    for answers in in_threads(lambda batch: _score_batch(scorer, batch), batches, count=None):
        yield from answers


@torch.inference_mode()
def _score_batch(scorer: Scorer, pairs: Sequence[Pair]) -> list[Scored]:
    answers: dict[int, Scored] = {}
    images: dict[int, Any] = {}
    for number, pair in enumerate(pairs):
        if pair.problem is not None:
            answers[number] = Scored(_light(pair), None, *pair.problem)
            continue
        try:
            images[number] = open_media(
                pair.image or b"", IMAGE, label=str(pair.image) if isinstance(pair.image, Path) else pair.key
            )
        except MediaError as error:
            answers[number] = Scored(_light(pair), None, "unreadable-image", str(error))
    if images:
        image_rows = vectors_or_reasons(scorer.built, IMAGE, list(images.values()), device=scorer.device)
        texts = [pairs[number].text for number in images]
        text_rows = vectors_or_reasons(scorer.built, TEXT, texts, device=scorer.device)
        for number, image, text in zip(images, image_rows, text_rows, strict=True):
            answers[number] = _score(scorer.built, pairs[number], image, text)
    return [answers[number] for number in range(len(pairs))]


def _score(built: Built, pair: Pair, image: torch.Tensor | str, text: torch.Tensor | str) -> Scored:
    if isinstance(image, str) or isinstance(text, str):
        return Scored(_light(pair), None, "no-score", str(image if isinstance(image, str) else text))
    with plugin_errors(built):  # their widths may differ
        score = float((image * text).sum())
    finite = math.isfinite(score)
    return Scored(_light(pair), score) if finite else Scored(_light(pair), None, "no-score", not_finite(built))


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
