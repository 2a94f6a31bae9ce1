"""What is asked of `zoo.classify`: its inputs and labels checked, its model opened, before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

from zoo.data.inputs import Item, media_items, printable, refuse_lone_surrogates
from zoo.data.lines import short_enough
from zoo.data.shots import distinct_shots, shot_items, shot_names
from zoo.errors import UsageError
from zoo.media.file import expanded
from zoo.models.build import Built, ModelSpec
from zoo.registry.activation import warn
from zoo.registry.lookup import default_registry
from zoo.registry.modality import AUDIO, IMAGE
from zoo.tasks.encoding import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Items of one modality, and what they are to be told apart by.

    names: the labels; None for the model's own classes. examples: (item, number of its label) for a probe; None without.
    """

    items: Sequence[Item]
    modality: str
    names: list[str] | None
    templates: tuple[str, ...]
    examples: list[tuple[Item, int]] | None = None

    @property
    def task(self) -> str:
        """Whose default model is meant."""
        if self.modality != IMAGE:
            return f"classify:{self.modality}"
        return "classify:own-labels" if self.names is None else "classify"


def resolve(media: Any, labels: Sequence[str] | None, templates: Sequence[str], shots: str | Path | None) -> Request:
    """The request that the arguments of `zoo.classify` make. Raises UsageError, and MediaError where no input is there."""
    items = media_items(media)
    modality = items[0].modality
    names = None if labels is None else check_labels(labels)
    _check_templates(templates)
    examples: list[tuple[Item, int]] | None = None
    if shots is not None:
        folder = expanded(shots)
        names = shot_names(folder, names)
        examples, copies = distinct_shots(shot_items(folder, names, modality), names)
        if copies:
            warn(
                f"{len(copies)} of {len(examples) + len(copies)} examples are left out, being copies of another of their class, byte "
                f"for byte (the first: {printable(copies[0][0].label)} of {printable(copies[0][1].label)})"
            )
    return Request(items=items, modality=modality, names=names, templates=tuple(templates), examples=examples)


def open_classifier(asked: ModelSpec | Built, request: Request) -> Built:
    """The model, which must be able to answer the request. Raises UsageError."""
    card = asked.found.card if isinstance(asked, Built) else default_registry().find(str(asked.name)).card
    if card.kind not in ("encoder", "dual_encoder") or request.modality not in card.modalities:
        what = "sounds" if request.modality == AUDIO else "images"
        raise UsageError(
            f"classifying {what} needs an encoder or dual encoder of {what} (zoo list --modality {request.modality}); "
            f"{card.name} has kind {card.kind} and modality {'+'.join(card.modalities)}"
        )
    built = asked if isinstance(asked, Built) else opened(asked, (request.modality,))
    probed = request.examples is not None
    if request.templates != ("{}",) and (request.names is None or probed):
        warn(f"templates are ignored: {'a probe on examples' if probed else built.name} reads no labels")
    if request.names is not None and card.kind != "dual_encoder" and not probed:
        raise UsageError(_not_dual(built, request.modality))
    if request.names is None and not built.found.classes:
        raise UsageError(
            f"{built.found.name} has no classes of its own: give it "
            + (
                "labels (--labels a,b,c)"
                if request.modality == IMAGE
                else "examples (--shots DIR, one folder for each class)"
            )
        )
    return built


def check_labels(labels: Sequence[str], *, capitals_count: bool = False) -> list[str]:
    """Labels without the blanks around them. Raises UsageError for fewer than two, and for any that are empty or alike.

    capitals_count: two labels may differ in capitals alone, as for what reads them with their capitals.
    """
    if isinstance(labels, str):
        raise UsageError(f"labels are a list of names, got the single string {labels!r}")
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong:
        raise UsageError(f"a label is a string, got {wrong[0]!r}")
    for label in labels:
        refuse_lone_surrogates(short_enough(label, "a label"))
    names = [label.strip() for label in labels]
    if not [name for name in names if name]:
        raise UsageError("no labels given: name at least two, as in --labels cat,dog")
    if "" in names:
        raise UsageError(f"an empty label among {names}")
    if len(names) == 1:
        raise UsageError(f"one label given ({names[0]}): everything would get it; name at least two")
    repeated = _alike(names, str)
    if repeated:
        raise UsageError(f"labels given twice: {', '.join(sorted(set(repeated)))}")
    composed = _alike(names, partial(normalize, "NFC"))
    if composed:
        raise UsageError(f"labels that look the same, in other characters of Unicode: {', '.join(composed)}")
    # In small letters as text encoders read them. Folding would go further, and make one word of Masse and Maße.
    alike = [] if capitals_count else _alike(names, str.lower)
    if alike:
        raise UsageError(f"labels that differ in capitals alone, which text encoders do not see: {', '.join(alike)}")
    return names


def _alike(names: Sequence[str], read: Callable[[str], str]) -> list[str]:
    """The names that are the same as another when they are read so."""
    counts = Counter(map(read, names))
    return [name for name in names if counts[read(name)] > 1] if len(counts) < len(names) else []


def _check_templates(templates: Sequence[str]) -> None:
    if isinstance(templates, str) or not templates:
        raise UsageError(f"templates are a list of at least one sentence with {{}}, got {templates!r}")
    for template in templates:
        refuse_lone_surrogates(short_enough(template, "a template"))
        if template.count("{}") != 1:
            raise UsageError(f"a template has one {{}} where the label goes, got {template!r}")


def _not_dual(built: Built, modality: str) -> str:
    own = f"it knows {built.found.classes:,} classes of its own (leave out --labels)" if built.found.classes else ""
    dual = f"or choose a dual encoder (zoo list --kind dual_encoder --modality {modality})"
    ways = "; ".join(way for way in (own, "give it examples with --shots DIR", dual) if way)
    return f"{built.found.name} is an encoder and cannot read labels: {ways}"
