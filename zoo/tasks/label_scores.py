"""A prepared batch -> a probability for each label: by a probe, by the labels' embeddings, or by the model's own classes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from zoo.errors import PluginError
from zoo.models.build import Built, device_of
from zoo.registry.modality import AUDIO, TEXT
from zoo.registry.plugin import describe
from zoo.tasks.classify_request import Request
from zoo.tasks.encoding import checked_rows, plugin_errors, pooled, refuse_nonfinite, rows_in
from zoo.tasks.fewshot import Probe
from zoo.weights.derived import derived

Compute = Callable[[Any], torch.Tensor]  # what a model's preparation gives -> a row for each item


def scores_of(built: Built, request: Request, probe: Probe | None) -> Compute:
    """A prepared batch -> probabilities float[B, C]."""
    module: Any = built.module
    modality = request.modality
    if probe is not None:
        features = features_of(built, modality)
        return lambda prepared: probe.probabilities(features(prepared))
    if request.names is None:
        return lambda prepared: module.logits(prepared).float().softmax(-1)
    text_CE = label_embeddings(built, request.names, request.templates).to(device_of(built))
    return lambda prepared: (module.logit_scale * module.encode(modality, prepared).float() @ text_CE.T).softmax(-1)


@torch.inference_mode()
def label_embeddings(built: Built, labels: list[str], templates: Sequence[str]) -> torch.Tensor:
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


def own_labels(built: Built) -> list[str]:
    """The names of the model's own classes. Raises PluginError unless they are as many as declared, and differ."""
    names = list(built.module.labels)  # type: ignore[arg-type]
    if len(names) != built.found.classes or len(set(names)) != len(names):
        raise PluginError(
            f"{describe(built.found.card.provider)}: {built.name} has {len(set(names))} different labels, the card says "
            f"classes = {built.found.classes}"
        )
    return names


def features_of(built: Built, modality: str) -> Compute:
    """A prepared batch -> float[B, D], what a probe is trained on; finite, since one NaN among the examples spoils every answer."""
    module: Any = built.module
    dual = built.found.card.kind == "dual_encoder"
    what = f"the features of {'a sound' if modality == AUDIO else 'an image'}"

    def features(prepared: Any) -> torch.Tensor:
        rows = module.features(modality, prepared) if dual else pooled(module(prepared))
        return refuse_nonfinite(checked_rows(rows, built, rows_in(prepared), modality), built, what).float()

    return features


def with_close_calls(compute: Compute, exact: Compute, lead: float) -> Compute:
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


def checked(compute: Compute, built: Built, classes: int, modality: str) -> Compute:
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


def _batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
