"""Which label fits an image or a sound best: zero-shot by a dual encoder, few-shot by a probe, or by a model's own classes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo.data.inputs import Item, distinct_shots, media_items, printable, shot_items, shot_names
from zoo.errors import MediaError, PluginError, UsageError
from zoo.models.build import Built, ModelSpec, device_of, spec_of
from zoo.models.provenance import Provenance, provenance_of
from zoo.registry.activation import warn
from zoo.registry.lookup import default_registry
from zoo.registry.modality import AUDIO, IMAGE, TEXT
from zoo.registry.plugin import describe
from zoo.tasks.encoding import checked_rows, named, opened, plugin_errors, pooled, refuse_nonfinite, rows_in
from zoo.tasks.fewshot import Probe, fit_probe
from zoo.tasks.running import Row, run_items
from zoo.weights.derived import derived

Compute = Callable[[Any], torch.Tensor]  # what a model's preparation gives -> a row for each item

MANY_LABELS = 20

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

    media: one or many of: path, pattern, folder, `PIL.Image.Image`, array (see `zoo.media.image.open_image`), `zoo.media.audio.Sound`.
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
    items = media_items(media)
    modality = items[0].modality
    names = None if labels is None else check_labels(labels)
    _check_templates(templates)
    for name, value in (("batch_size", batch_size), ("top", top)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is at least 1, got {value}")
    examples: list[tuple[Item, int]] | None = None
    if shots is not None:
        folder = Path(shots).expanduser()
        names = shot_names(folder, names)
        examples, copies = distinct_shots(shot_items(folder, names, modality), names)
        if copies:
            warn(
                f"{len(copies)} of {len(examples) + len(copies)} examples are left out, being copies of another of their class, byte "
                f"for byte (the first: {printable(copies[0][0].label)} of {printable(copies[0][1].label)})"
            )
    closed = names is None and shots is None
    task = f"classify:{modality}" if modality != IMAGE else "classify:own-labels" if closed else "classify"
    asked = model if isinstance(model, Built) else named(spec_of(model), task)
    built = _open(asked, modality, task)
    if tuple(templates) != ("{}",) and (closed or shots is not None):
        warn(f"templates are ignored: {'a probe on examples' if shots is not None else built.name} reads no labels")
    if names is not None and built.found.card.kind != "dual_encoder" and shots is None:
        raise UsageError(_not_dual(built, modality))
    if closed and not built.found.classes:
        raise UsageError(
            f"{built.found.name} has no classes of its own: give it "
            + ("labels (--labels a,b,c)" if modality == IMAGE else "examples (--shots DIR, one folder for each class)")
        )
    device = str(device_of(built))
    run = partial(run_items, batch_size=batch_size, device=device, allow_urls=allow_urls, progress=progress)
    probe: Probe | None = None
    if examples is not None and names is not None:
        probe = _fit_shots(run, built, modality, names, examples)
    elif names is None:
        names = _own_labels(built)
    zero_shot = probe is None and not closed
    compute = _compute(built, modality, probe, _label_embeddings(built, names, templates).to(device) if zero_shot else None)
    if exact_close_calls and isinstance(asked, ModelSpec) and asked.dtype in CLOSE_CALL and probe is None:
        exact = _open(replace(asked, dtype=None), modality, task)
        exact_CE = _label_embeddings(exact, names, templates).to(device) if zero_shot else None
        compute = _with_close_calls(compute, _compute(exact, modality, None, exact_CE), CLOSE_CALL[asked.dtype])
    compute = _checked(compute, built, len(names), modality)
    limit = top or (len(names) if len(names) <= MANY_LABELS else 5)
    results = tuple(_answer(item, row, names, limit) for item, row in zip(items, run(built, items, compute), strict=True))
    return Classification(
        provenance=provenance_of(built),
        method=probe.method if probe else ("own classes" if closed else "zero-shot"),
        results=results,
        loo_accuracy=probe.loo_accuracy if probe else None,
    )


def _batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _open(asked: ModelSpec | Built, modality: str, task: str) -> Built:
    card = asked.found.card if isinstance(asked, Built) else default_registry().find(str(asked.name)).card
    if card.kind not in ("encoder", "dual_encoder") or modality not in card.modalities:
        what = "sounds" if modality == AUDIO else "images"
        raise UsageError(
            f"classifying {what} needs an encoder or dual encoder of {what} (zoo list --modality {modality}); "
            f"{card.name} has kind {card.kind} and modality {'+'.join(card.modalities)}"
        )
    return asked if isinstance(asked, Built) else opened(asked, task, (modality,))


def check_labels(labels: Sequence[str]) -> list[str]:
    """Labels without the blanks around them. Raises UsageError for fewer than two, and for any that are empty or alike."""
    if isinstance(labels, str):
        raise UsageError(f"labels are a list of names, got the single string {labels!r}")
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong:
        raise UsageError(f"a label is a string, got {wrong[0]!r}")
    names = [label.strip() for label in labels]
    if not [name for name in names if name]:
        raise UsageError("no labels given: name at least two, as in --labels cat,dog")
    if "" in names:
        raise UsageError(f"an empty label among {names}")
    if len(names) == 1:
        raise UsageError(f"one label given ({names[0]}): everything would get it; name at least two")
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
    if repeated:
        raise UsageError(f"labels given twice: {', '.join(repeated)}")
    folded = [name.casefold() for name in names]
    alike = (
        [name for name, fold in zip(names, folded, strict=True) if folded.count(fold) > 1]
        if len(set(folded)) < len(folded)
        else []
    )
    if alike:
        raise UsageError(f"labels that differ in capitals alone, which text encoders do not see: {', '.join(alike)}")
    return names


def _check_templates(templates: Sequence[str]) -> None:
    if isinstance(templates, str) or not templates:
        raise UsageError(f"templates are a list of at least one sentence with {{}}, got {templates!r}")
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f"a template has one {{}} where the label goes, got {template!r}")


@torch.inference_mode()
def _label_embeddings(built: Built, labels: list[str], templates: Sequence[str]) -> torch.Tensor:
    """Unit vectors float[C, E], from disk when the same model met the same labels and templates before."""
    module: Any = built.module

    def embed(texts: list[str]) -> torch.Tensor:
        rows = checked_rows(module.embed(TEXT, texts), built, len(texts), TEXT)
        return refuse_nonfinite(rows, built, "the labels")

    def compute() -> dict[str, torch.Tensor]:
        with plugin_errors(built):
            embeddings = [
                torch.cat([embed([template.replace("{}", label) for label in chunk]) for chunk in _batches(labels, 64)])
                for template in templates
            ]
        mean_CE = torch.stack(embeddings).float().mean(0)
        return {"labels": torch.nn.functional.normalize(mean_CE, dim=-1)}

    inputs = {"model": built.state_identity, "labels": labels, "templates": list(templates)}
    return derived("label embeddings", inputs, compute, keep=not built.random)["labels"]


def _compute(built: Built, modality: str, probe: Probe | None, text_CE: torch.Tensor | None) -> Compute:
    """A prepared batch -> probabilities float[B, C]: by the probe, the labels or the own classes."""
    module: Any = built.module
    if probe is not None:
        features = _features(built, modality)
        return lambda prepared: probe.probabilities(features(prepared))
    if text_CE is not None:
        return lambda prepared: (module.logit_scale * module.encode(modality, prepared).float() @ text_CE.T).softmax(-1)
    return lambda prepared: module.logits(prepared).float().softmax(-1)


def _checked(compute: Compute, built: Built, classes: int, modality: str) -> Compute:
    """`compute`, which must give a finite probability for each item and class: anything else is no answer. Raises PluginError."""

    def check(prepared: Any) -> torch.Tensor:
        probabilities_BC = compute(prepared)
        if probabilities_BC.shape != (rows_in(prepared), classes):
            raise PluginError(
                f"{describe(built.found.card.provider)}: {built.name} gave {list(probabilities_BC.shape)} for {rows_in(prepared)} "
                f"{'sounds' if modality == AUDIO else 'images'} and {classes} labels"
            )
        if not bool(probabilities_BC.isfinite().all()):
            raise PluginError(f"{describe(built.found.card.provider)}: {built.name} gave NaN or infinity")
        return probabilities_BC

    return check


def _own_labels(built: Built) -> list[str]:
    """The names of the model's own classes. Raises PluginError unless they are as many as declared, and differ."""
    names = list(built.module.labels)  # type: ignore[arg-type]
    if len(names) != built.found.classes or len(set(names)) != len(names):
        raise PluginError(
            f"{describe(built.found.card.provider)}: {built.name} has {len(set(names))} different labels, the card says "
            f"classes = {built.found.classes}"
        )
    return names


def _features(built: Built, modality: str) -> Compute:
    """A prepared batch -> float[B, D], what a probe is trained on; finite, since one NaN among the examples spoils every answer."""
    module: Any = built.module
    dual = built.found.card.kind == "dual_encoder"
    what = f"the features of {'a sound' if modality == AUDIO else 'an image'}"

    def features(prepared: Any) -> torch.Tensor:
        rows = module.features(modality, prepared) if dual else pooled(module(prepared))
        return refuse_nonfinite(checked_rows(rows, built, rows_in(prepared), modality), built, what).float()

    return features


def _with_close_calls(compute: Compute, exact: Compute, lead: float) -> Compute:
    """`compute`, with the rows whose best label leads by less than `lead` computed again by `exact`."""

    def both(prepared: Any) -> torch.Tensor:
        probabilities_BC = compute(prepared)
        best_B2 = probabilities_BC.topk(2, dim=-1).values
        close_B = best_B2[:, 0] - best_B2[:, 1] < lead
        if close_B.any():
            single = isinstance(prepared, torch.Tensor)
            probabilities_BC[close_B] = exact(prepared[close_B] if single else tuple(part[close_B] for part in prepared))
        return probabilities_BC

    return both


def _fit_shots(
    run: Callable[..., Iterator[Row]],
    built: Built,
    modality: str,
    names: Sequence[str],
    examples: Sequence[tuple[Item, int]],
) -> Probe:
    """The probe on the examples that can be read. Raises MediaError for classes that none is left of, with all their files."""
    rows = list(run(built, [item for item, _ in examples], _features(built, modality)))
    fitted = [(row, target) for row, (_, target) in zip(rows, examples, strict=True) if isinstance(row, torch.Tensor)]
    problems = [(row, target) for row, (_, target) in zip(rows, examples, strict=True) if isinstance(row, str)]
    left = {target for _, target in fitted}
    lost = [target for target in range(len(names)) if target not in left]
    if lost:
        whys = "; ".join(problem for problem, target in problems if target in lost)
        raise MediaError(f"no example of {', '.join(names[target] for target in lost)} can be read: {whys}")
    for problem, target in problems:
        warn(f"an example of {names[target]} is left out: {problem}")
    features_ND = torch.stack([row for row, _ in fitted])
    probe = fit_probe(features_ND, [target for _, target in fitted], len(names))
    device = device_of(built)
    return replace(probe, weight_DC=probe.weight_DC.to(device), bias_C=probe.bias_C.to(device))


def _answer(item: Item, row: torch.Tensor | str, names: Sequence[str], limit: int) -> Answer:
    if isinstance(row, str):
        return Answer(item.label, None, None, {}, row)
    values, indices = row.topk(min(limit, len(names)))
    scores = {names[index]: value for value, index in zip(values.tolist(), indices.tolist(), strict=True)}
    label = next(iter(scores))
    return Answer(item.label, label, scores[label], scores)


def _not_dual(built: Built, modality: str) -> str:
    own = f"it knows {built.found.classes:,} classes of its own (leave out --labels)" if built.found.classes else ""
    dual = f"or choose a dual encoder (zoo list --kind dual_encoder --modality {modality})"
    ways = "; ".join(way for way in (own, "give it examples with --shots DIR", dual) if way)
    return f"{built.found.name} is an encoder and cannot read labels: {ways}"
