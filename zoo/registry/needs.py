"""What the tasks of the zoo ask of a model, so that a choice that could never work is refused when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zoo.registry.card import Card
from zoo.registry.modality import IMAGE, TEXT


@dataclass(frozen=True, slots=True)
class Need:
    """kinds: of which the model's is one. modalities: all of which it takes. classes: it has a trained classifier of its own."""

    kinds: tuple[str, ...]
    modalities: tuple[str, ...]
    classes: bool = False


NEEDS: Mapping[str, Need] = {
    "classify": Need(("dual_encoder",), (IMAGE, TEXT)),
    "classify:own-labels": Need(("encoder",), (IMAGE,), classes=True),
    "embed": Need(("dual_encoder", "encoder"), ()),
    "search": Need(("dual_encoder",), (IMAGE, TEXT)),
    "filter": Need(("dual_encoder",), (IMAGE, TEXT)),
}


def complaint(task: str, card: Card, classes: int | None) -> str:
    """Why a model cannot be the default of a task; an empty string if it can, or if the task is one that a plugin brought.

    classes: outputs of its trained classifier, if it has one.
    """
    need = NEEDS.get(task)
    if need is None:
        return ""
    wanted = f"{' or '.join(need.kinds)}{' of ' + '+'.join(need.modalities) if need.modalities else ''}"
    wanted += " with classes of its own" if need.classes else ""
    fits = card.kind in need.kinds and set(need.modalities) <= set(card.modalities) and (classes or not need.classes)
    if fits:
        return ""
    has = "" if classes or not need.classes else ", without classes"
    return (
        f"{task} needs a {wanted}, {card.name} has kind {card.kind} and modality {'+'.join(card.modalities)}{has} "
        f"(zoo list --kind {need.kinds[0]} shows those that may fit)"
    )
