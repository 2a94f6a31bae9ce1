"""`zoo can`: whether a model works with a device, a number format, an adapter or a kernel, answered before any download.

First what the cards declare, then a trial: the architecture is built with random weights and run on samples, under the adapter or by the
kernel that was asked for. What neither a card nor a trial can say is unknown, and never yes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zoo.adapters.adapt import Adapters
from zoo.adapters.adapted import Adapted
from zoo.errors import PluginError, ResolutionError, UnknownNameError, UsageError, WeightsMissingError
from zoo.media.audio import open_reader
from zoo.models.kernels import FLOAT32, check_kernel
from zoo.models.transcript import TranscriptionOptions
from zoo.registry.lookup import USABLE, Registry, default_registry
from zoo.registry.modality import AUDIO
from zoo.testing.check import CheckFailed, CheckSkipped, Subject
from zoo.testing.numbers import must_be_near, outputs
from zoo.testing.samples import ordinary
from zoo.testing.speech import TRANSCRIBERS
from zoo.testing.truth import MODELS

KERNEL_COSINE = 0.9  # of numbers in 4 bits; with random weights nothing is alike, and they lose more than trained ones


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
    """Answers in the order plugin, adapter, kernel, device, dtype; those that were asked, and last whether all of them go together.

    The last is tried where two or more were asked and each of them can be alone. Raises UnknownNameError for the name.

    dtype: `float32`, `bfloat16` or `float16`. verify: False for what the cards declare, without running anything.
    """
    registry = registry or default_registry()
    found = registry.find(name)
    plugin = registry.owner(found.card)
    if verify and plugin.state == "broken":
        plugin = registry.tried_again(plugin)
    usable = plugin.state in USABLE
    words = (
        f"{plugin.error}; {plugin.cure}" if plugin.error else f"{plugin.distribution} {plugin.version} is {plugin.state}"
    )
    missing = plugin.state == "missing-extra"  # whether it would work then, nobody can say
    answers = [Answer("plugin", None if missing else usable, "unknown" if missing else "declared", words)]
    subject, tries = Subject(found, plugin, registry), verify and usable
    if adapter is not None:
        answers.append(_with_adapter(adapter, subject, verify=tries))
    if kernel is not None:
        answers.append(_by_kernel(kernel, subject, verify=tries))
    if device is not None:
        answers.append(_on_device(device, subject, verify=tries))
    if dtype is not None:
        answers.append(_in_format(dtype, subject, verify=tries))
    if len(answers) > 2 and tries and all(answer.can for answer in answers):
        asked = ", ".join(answer.question for answer in answers[1:])
        answers.append(_tried(asked, subject, lambda: _together(subject, adapter, kernel, device, dtype)))
    return answers


def _with_adapter(name: str, subject: Subject, *, verify: bool) -> Answer:
    question, registry = f"adapter {name}", subject.registry
    try:
        method = registry.find(name).card
        owner = registry.owner(method)
    except UnknownNameError:
        known = ", ".join(candidate.name for candidate in registry.cards(kind="adapter")) or "none"
        return Answer(question, False, "declared", f"no installed plugin provides it; adapters are {known}")
    except (PluginError, ResolutionError) as error:
        return Answer(question, None, "unknown", str(error))
    kind = subject.found.card.kind
    if method.kind != "adapter":
        return Answer(question, False, "declared", f"{method.name} is of kind {method.kind}")
    if method.applies_to and kind not in method.applies_to:
        return Answer(question, False, "declared", f"{method.name} applies to {', '.join(method.applies_to)}")
    if owner.state not in USABLE:
        return Answer(question, None, "unknown", f"{owner.distribution} {owner.version} is {owner.state}: {owner.cure}")
    if verify:
        return _tried(question, subject, lambda: _adapted(subject, name))
    if not method.applies_to:
        return Answer(question, None, "unknown", f"{method.name} does not say what it applies to (applies_to)")
    return Answer(question, True, "declared", f"{method.name} applies to {', '.join(method.applies_to)}; not tried")


def _adapted(subject: Subject, method: str) -> str:
    """The words of a trial under a new adapter: what it gives is finite, and the adapter has something to train."""
    built = subject.open(weights=None)
    adapters = Adapters(Adapted(built.module), subject.registry)
    adapters.add(method, name="tried")
    run(subject, built.module)
    return f"run with random weights under a new one, which trains {sum(adapters.trainable().values()):,} parameters"


def _by_kernel(name: str, subject: Subject, *, verify: bool) -> Answer:
    question, kind, registry = f"kernel {name}", subject.found.card.kind, subject.registry
    try:
        check_kernel(name, registry)
    except UsageError as error:
        return Answer(question, False, "declared", str(error))
    card = None if name == FLOAT32 else registry.find(name).card
    if card is not None and card.applies_to and kind not in card.applies_to:
        words = f"{card.name} applies to {', '.join(card.applies_to)}, {subject.found.card.name} is of kind {kind}"
        return Answer(question, False, "declared", words)
    if verify:
        return _tried(
            question, subject, lambda: _near(subject, subject.open(weights=None, kernel=name).module, KERNEL_COSINE)
        )
    if card is None or not card.applies_to:
        return Answer(question, None, "unknown", "whether it has layers that fit is not tried")
    return Answer(question, True, "declared", f"{card.name} applies to {', '.join(card.applies_to)}; not tried")


def _together(subject: Subject, adapter: str | None, kernel: str | None, device: str | None, dtype: str | None) -> str:
    """The words of one trial with all that was asked, in the order in which a command sets it up."""
    placed: dict[str, Any] = {"device": device, "dtype": dtype and getattr(torch, dtype), "kernel": kernel}
    module: Any = subject.open(weights=None, **{name: value for name, value in placed.items() if value is not None}).module
    if adapter is not None:
        Adapters(Adapted(module), subject.registry).add(adapter, name="tried")
    run(subject, module)
    return "run together with random weights"


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
    return _tried(question, subject, lambda: _moved(subject, device=device))


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
    return _tried(question, subject, lambda: _moved(subject, dtype=value))


def _moved(subject: Subject, **changes: Any) -> str:
    return _near(subject, subject.open(weights=None, **changes).module, 0.98)


def _near(subject: Subject, changed: Any, cosine: float) -> str:
    """The words of a trial of what was changed, against float32 on the CPU; both with random weights of one seed."""
    if subject.found.card.kind not in MODELS:
        run(subject, changed)
        return "run with random weights"
    least = must_be_near(subject, subject.open(weights=None).module, changed, "so", cosine)
    bound = math.floor(least * 10_000) / 10_000
    return f"run with random weights: cosine at least {bound} to float32 on the CPU"


def run(subject: Subject, module: Any) -> None:
    """Run a model on samples. Raises CheckFailed for what is not finite, and CheckSkipped for a modality without samples."""
    if subject.found.card.kind in TRANSCRIBERS:
        with open_reader(ordinary(AUDIO)[0], sample_rate_hz=module.sample_rate_hz) as reader:
            next(iter(module.windows(reader, TranscriptionOptions())), None)
        return
    for modality in subject.reads:
        for name, value in outputs(subject, modality, module=module).items():
            if not bool(value.isfinite().all()):
                raise CheckFailed(f"its {name} holds NaN or infinity")


def _tried(question: str, subject: Subject, trial: Callable[[], str]) -> Answer:
    """What a trial says; what it lacks makes the answer unknown, and what it raises makes it no."""
    kind = subject.found.card.kind
    if kind not in (*MODELS, *TRANSCRIBERS):
        return Answer(question, None, "unknown", f"nothing runs a model of kind {kind} by itself")
    try:
        return Answer(question, True, "verified", trial())
    except CheckFailed as reason:
        return Answer(question, False, "verified", str(reason))
    except CheckSkipped as reason:
        return Answer(question, None, "unknown", str(reason))
    except UsageError as reason:
        return Answer(question, False, "verified", str(reason))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's model raises is the answer
        if _lacks_something(error):
            return Answer(question, None, "unknown", " ".join(str(error).split()))
        return Answer(
            question, False, "verified", f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )


def _lacks_something(error: BaseException | None) -> bool:
    """Whether it failed for want of a module or a file, which says nothing about the model."""
    while error is not None:
        if isinstance(error, (ModuleNotFoundError, FileNotFoundError, WeightsMissingError)):
            return True
        error = error.__cause__
    return False
