"""Which label fits an image or a sound best: zero-shot by a dual encoder, few-shot by a probe, or by a model's own classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo.data.inputs import Item
from zoo.errors import UsageError
from zoo.models.build import Built, ModelSpec, device_of, spec_of
from zoo.models.provenance import Provenance, provenance_of
from zoo.tasks.classify_request import Request, open_classifier, resolve
from zoo.tasks.encoding import named, opened
from zoo.tasks.fewshot import Probe, probe_of_examples
from zoo.tasks.label_scores import Compute, checked, features_of, own_labels, scores_of, with_close_calls
from zoo.tasks.running import Row, run_items

Run = Callable[[Built, Sequence[Item], Compute], Iterator[Row]]

MANY_LABELS, SHOWN_OF_MANY = 20, 5

# 16-bit arithmetic moves a probability by up to 0.045 (measured on 768 photos), so a label that leads by less may not be the
# one that float32 would choose. Those few images are computed again in float32.
CLOSE_CALL = {torch.bfloat16: 0.05, torch.float16: 0.05}


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one input, or the reason why there is none.

    scores: label -> probability, best first; all labels, or the best `top`.
    """

    input: str
    label: str | None
    score: float | None
    scores: dict[str, float]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """Answers in the order of the inputs, and what produced them.

    method: "zero-shot", "own classes", or the few-shot probe that leave-one-out chose (with its accuracy there).
    """

    provenance: Provenance
    method: str
    results: tuple[Answer, ...]
    loo_accuracy: float | None = None


def classify(
    media: Any,
    labels: Sequence[str] | None = None,
    *,
    model: str | ModelSpec | Built | None = None,
    templates: Sequence[str] = ("{}",),
    shots: str | Path | None = None,
    top: int | None = None,
    batch_size: int | None = None,
    exact_close_calls: bool = True,
    allow_urls: bool = False,
    progress: bool = False,
) -> Classification:
    """Classify images, or sounds.

    media: one or many of: path, pattern, folder, `PIL.Image.Image`, array (see `zoo.open_image`), `zoo.Sound`.
    labels: two or more different names. None: the folders of `shots`, or else the model's own classes.
    model: a dual encoder for free labels, an encoder with classes for its own; the installed default when None. A `zoo.ModelSpec` says
        how it is opened: with dtype bfloat16 or float16 it computes faster, and close calls (two labels within 0.05) are computed
        again in float32, unless `exact_close_calls` is False. To ask many times, build it once: `zoo.open_model(name)`.
    templates: sentences with `{}` where the label goes; the unit text embeddings of all are averaged. Named sets are in
        `zoo.data.templates`.
    shots: a folder with one folder of examples for each class: few-shot on the model's frozen features. Copies of an example and
        examples that cannot be read are left out, with a warning.
    top: how many labels to report for each image; all when None and there are at most 20, else 5.
    Raises UsageError for arguments that make no sense, and what building the model raises. One that cannot be read
    becomes an answer with `error`; it never costs the others theirs.
    """
    for name, value in (("batch_size", batch_size), ("top", top)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is at least 1, got {value}")
    request = resolve(media, labels, templates, shots)
    asked = model if isinstance(model, Built) else named(spec_of(model), request.task)
    built = open_classifier(asked, request)
    device = str(device_of(built))
    run = partial(run_items, batch_size=batch_size, device=device, allow_urls=allow_urls, progress=progress)
    probe = _probe(run, built, request)
    names = own_labels(built) if request.names is None else request.names
    compute = scores_of(built, request, probe)
    if exact_close_calls and isinstance(asked, ModelSpec) and asked.dtype in CLOSE_CALL and probe is None:
        exact = opened(replace(asked, dtype=None), (request.modality,))
        compute = with_close_calls(compute, scores_of(exact, request, None), CLOSE_CALL[asked.dtype])
    rows = run(built, request.items, checked(compute, built, len(names), request.modality))
    limit = shown_labels(top, len(names))
    return Classification(
        provenance=provenance_of(built),
        method=probe.method if probe else ("own classes" if request.names is None else "zero-shot"),
        results=tuple(_answer(item, row, names, limit) for item, row in zip(request.items, rows, strict=True)),
        loo_accuracy=probe.loo_accuracy if probe else None,
    )


def shown_labels(top: int | None, count: int) -> int:
    """How many of `count` labels an answer reports: `top`, or all, or the first few of many."""
    return top or (count if count <= MANY_LABELS else SHOWN_OF_MANY)


def _probe(run: Run, built: Built, request: Request) -> Probe | None:
    """The probe on the examples of the request, where it has some."""
    if request.examples is None or request.names is None:
        return None
    rows = list(run(built, [item for item, _ in request.examples], features_of(built, request.modality)))
    probe = probe_of_examples(rows, [target for _, target in request.examples], request.names)
    return probe.to(device_of(built))


def _answer(item: Item, row: torch.Tensor | str, names: Sequence[str], limit: int) -> Answer:
    if isinstance(row, str):
        return Answer(item.label, None, None, {}, row)
    values, indices = row.topk(min(limit, len(names)))
    scores = {names[index]: value for value, index in zip(values.tolist(), indices.tolist(), strict=True)}
    label = next(iter(scores))
    return Answer(item.label, label, scores[label], scores)
