"""`zoo can`: whether a model works with a device, a number format, an adapter or a kernel, answered before any download.

First what the cards declare, then a trial: the architecture is built with random weights and run on samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from zoo.errors import UnknownNameError, UsageError, WeightsMissingError
from zoo.nn.kernels.apply import LINEARS
from zoo.registry.card import Card
from zoo.registry.lookup import Registry, default_registry
from zoo.testing.check import CheckFailed, CheckSkipped, Subject
from zoo.testing.numbers import must_be_near


@dataclass(frozen=True, slots=True)
class Answer:
    """One question. how: `declared` by a card, `verified` by a trial, or `unknown`, when neither could say (can is None)."""

    question: str
    can: bool | None
    how: str
    reason: str


def can(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    adapter: str | None = None,
    kernel: str | None = None,
    verify: bool = True,
    registry: Registry | None = None,
) -> list[Answer]:
    """Answers in the order plugin, adapter, kernel, device, dtype; those that were asked. Raises UnknownNameError for the name.

    dtype: `float32`, `bfloat16` or `float16`. verify: False for what the cards declare, without running anything.
    """
    registry = registry or default_registry()
    found = registry.find(name)
    plugin = registry.owner(found.card)
    usable = plugin.state in ("ok", "shadowed")
    words = (
        f"{plugin.error}; {plugin.cure}" if plugin.error else f"{plugin.distribution} {plugin.version} is {plugin.state}"
    )
    missing = plugin.state == "missing-extra"  # whether it would work then, nobody can say
    answers = [Answer("plugin", None if missing else usable, "unknown" if missing else "declared", words)]
    subject = Subject(found, plugin, registry)
    for kind, wanted in (("adapter", adapter), ("kernel", kernel)):
        if wanted is not None:
            answers.append(_applies(found.card, kind, wanted, registry))
    if device is not None:
        answers.append(_on_device(device, subject, verify=verify and usable))
    if dtype is not None:
        answers.append(_in_format(dtype, subject, verify=verify and usable))
    return answers


def _applies(card: Card, kind: str, name: str, registry: Registry) -> Answer:
    question = f"{kind} {name}"
    if kind == "kernel" and name in LINEARS:
        return Answer(question, card.kind == "decoder", "declared", "a format of the core, for decoders on the processor")
    try:
        other = registry.find(name).card
    except UnknownNameError:
        known = [*(LINEARS if kind == "kernel" else ()), *(candidate.name for candidate in registry.cards(kind=kind))]
        return Answer(
            question, False, "declared", f"no installed plugin provides it; {kind}s are {', '.join(known) or 'none'}"
        )
    if other.kind != kind:
        return Answer(question, False, "declared", f"{other.name} is of kind {other.kind}")
    if not other.applies_to:
        return Answer(question, None, "unknown", f"{other.name} does not say what it applies to (applies_to)")
    return Answer(
        question, card.kind in other.applies_to, "declared", f"{other.name} applies to {', '.join(other.applies_to)}"
    )


def _on_device(device: str, subject: Subject, *, verify: bool) -> Answer:
    question, kind = f"device {device}", device.partition(":")[0]
    declared = subject.found.card.devices
    if declared and kind not in declared:
        return Answer(question, False, "declared", f"the card names {', '.join(declared)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        return Answer(question, False, "verified", f"not on this machine: {str(error).splitlines()[0]}")
    if not verify:
        return Answer(question, True if declared else None, "declared" if declared else "unknown", "not tried")
    return _tried(question, subject, device=device)


def _in_format(dtype: str, subject: Subject, *, verify: bool) -> Answer:
    question = f"dtype {dtype}"
    value = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise UsageError(f"dtype is one of float32, bfloat16, float16; got {dtype!r}")
    declared = subject.found.card.dtypes
    if declared and dtype not in declared:
        return Answer(question, False, "declared", f"the card names {', '.join(declared)}")
    if not verify:
        return Answer(question, True if declared else None, "declared" if declared else "unknown", "not tried")
    return _tried(question, subject, dtype=value)


def _tried(question: str, subject: Subject, **changes: Any) -> Answer:
    """Run on samples as asked, against float32 on the CPU; both with random weights of one seed."""
    try:
        moved = subject.open(weights=None, **changes).module
        least = must_be_near(subject, subject.open(weights=None).module, moved, "so", 0.98)
    except CheckFailed as reason:
        return Answer(question, False, "verified", str(reason))
    except CheckSkipped as reason:
        return Answer(question, None, "unknown", str(reason))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's model raises is the answer
        if _lacks_something(error):
            return Answer(question, None, "unknown", " ".join(str(error).split()))
        return Answer(
            question, False, "verified", f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    bound = math.floor(least * 10_000) / 10_000
    return Answer(question, True, "verified", f"run with random weights: cosine at least {bound} to float32 on the CPU")


def _lacks_something(error: BaseException | None) -> bool:
    """Whether it failed for want of a module or a file, which says nothing about the model."""
    while error is not None:
        if isinstance(error, (ModuleNotFoundError, FileNotFoundError, WeightsMissingError)):
            return True
        error = error.__cause__
    return False
