"""What a dual encoder promises besides: one space, in which nothing depends on who was embedded first or beside whom."""

from __future__ import annotations

import torch

from zoo.testing.check import CheckFailed, Subject, check
from zoo.testing.samples import ordinary

DUAL = ("dual_encoder",)
TOLERANCE = 1e-4


@check("pairs", "Every embedding is a unit vector.", kinds=DUAL)
def embeddings_are_unit_vectors(subject: Subject) -> None:
    for modality in subject.found.card.modalities:
        norms = _embed(subject, modality).norm(dim=-1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=TOLERANCE):
            raise CheckFailed(f"{modality} embeddings have norms {[round(norm, 4) for norm in norms.tolist()]}")


@check("pairs", "Scores do not depend on which modality was embedded first.", kinds=DUAL)
def scores_are_symmetric(subject: Subject) -> None:
    first, second = subject.found.card.modalities[0], subject.found.card.modalities[-1]
    forwards = _embed(subject, first), _embed(subject, second)
    backwards = _embed(subject, second), _embed(subject, first)
    if not torch.allclose(forwards[0] @ forwards[1].T, (backwards[0] @ backwards[1].T).T, atol=TOLERANCE):
        raise CheckFailed(f"scores of {first} against {second} are not those of {second} against {first}")


@check("pairs", "The order of the labels changes no label's embedding.", kinds=DUAL)
def label_order_changes_nothing(subject: Subject) -> None:
    for modality in subject.found.card.modalities:
        items = ordinary(modality)
        embeddings = _embed(subject, modality)
        with torch.inference_mode():
            turned = subject.module.embed(modality, items[::-1]).float()
        if not torch.allclose(embeddings, turned.flip(0), atol=TOLERANCE):
            raise CheckFailed(f"{modality} items in reverse order have other embeddings")


@check("pairs", "embed is preprocess and then encode.", kinds=DUAL)
def embed_is_preprocess_and_encode(subject: Subject) -> None:
    for modality in subject.found.card.modalities:
        with torch.inference_mode():
            encoded = subject.module.encode(modality, subject.module.preprocess(modality, ordinary(modality))).float()
        if not torch.allclose(_embed(subject, modality), encoded, atol=TOLERANCE):
            raise CheckFailed(f"embed({modality!r}, items) is not encode({modality!r}, preprocess({modality!r}, items))")


@check("pairs", "logit_scale is a positive number.", kinds=DUAL)
def logit_scale_is_positive(subject: Subject) -> None:
    scale = float(torch.as_tensor(subject.module.logit_scale).detach())
    if not 0 < scale < float("inf"):
        raise CheckFailed(f"logit_scale is {scale}")


def _embed(subject: Subject, modality: str) -> torch.Tensor:
    with torch.inference_mode():
        embeddings: torch.Tensor = subject.module.embed(modality, ordinary(modality))
    return embeddings.float()
