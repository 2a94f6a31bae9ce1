"""Items of a modality -> vectors, by any dual encoder or encoder: what embedding, searching and filtering share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from zoo.errors import MediaError, PluginError, UsageError, ZooError
from zoo.models.build import Built, ModelSpec, open_model, spec_of
from zoo.models.encoded import Encoded
from zoo.registry.lookup import default_registry
from zoo.registry.modality import IMAGE
from zoo.registry.plugin import describe, one_line

Prepare = Callable[[Sequence[Any]], Any]
Compute = Callable[[Any], torch.Tensor]


def open_for(
    task: str,
    model: str | ModelSpec | Built | None,
    *,
    kinds: tuple[str, ...],
    modalities: Sequence[str],
) -> Built:
    """The model of a task, built: the named one, the one handed over, or the installed default.

    Raises UsageError before anything is built when its kind is not among `kinds`, or it lacks one of `modalities`.
    """
    registry = default_registry()
    asked = model if isinstance(model, Built) else named(spec_of(model), task)
    card = asked.found.card if isinstance(asked, Built) else registry.find(str(asked.name)).card
    if card.kind not in kinds:
        wanted = " or ".join(kind.replace("_", " ") for kind in kinds)
        raise UsageError(
            f"zoo {task.partition(':')[0]} needs {'an' if wanted[0] in 'aeiou' else 'a'} {wanted}, {card.name} is of kind {card.kind} (zoo list --kind {kinds[0]} shows those that fit)"
        )
    missing = [modality for modality in modalities if modality not in card.modalities]
    if missing:
        raise UsageError(
            f"{card.name} takes {'+'.join(card.modalities)} and was given {'+'.join(missing)} "
            f"(zoo list --modality {missing[0]} shows those that fit)"
        )
    return asked if isinstance(asked, Built) else opened(asked, modalities)


def named(spec: ModelSpec, task: str) -> ModelSpec:
    """The spec with the name of the task's installed default where it has none."""
    return spec if spec.name is not None else replace(spec, name=default_registry().default(task))


def opened(spec: ModelSpec, modalities: Sequence[str]) -> Built:
    """The model of a spec, laid out for what it is given."""
    built = open_model(spec, registry=default_registry())
    if IMAGE in modalities and spec.kernel is None:
        built.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # images come in this order; convolutions are faster in it
    return built


def unit_vectors(built: Built) -> bool:
    """Whether the model's vectors have length 1: those of dual encoders do, the pooled ones of encoders are as they come."""
    return built.found.card.kind == "dual_encoder"


def vectors(built: Built, modality: str, items: Sequence[Any], *, device: str) -> torch.Tensor:
    """Raw items (RGB images, sounds or texts) -> float[B, D] on the CPU. To be called in inference mode."""
    prepare, compute = preparation(built, modality), _compute(built, modality)
    with plugin_errors(built):
        prepared = joined([prepare([item]) for item in items]) if modality == IMAGE else prepare(list(items))
        return checked_rows(compute(moved(prepared, device)), built, len(items), modality).float().cpu()


def vectors_or_reasons(built: Built, modality: str, items: Sequence[Any], *, device: str) -> list[torch.Tensor | str]:
    """Raw items -> for each its vector float[E] on the CPU, or why it has none. To be called in inference mode.

    An item that the plugin refuses (UsageError or MediaError from preprocess), or answers with NaN, costs the others nothing.
    """
    refused: dict[int, str] = {}
    try:
        rows = vectors(built, modality, items, device=device)
    except (UsageError, MediaError):
        refused = _refused(built, modality, items)
        if not refused:
            raise
        good = [item for number, item in enumerate(items) if number not in refused]
        rows = vectors(built, modality, good, device=device) if good else torch.empty(0, 0)
    found = iter(rows)
    answers: list[torch.Tensor | str] = []
    for number in range(len(items)):
        row = refused[number] if number in refused else next(found)
        answers.append(row if isinstance(row, str) or bool(row.isfinite().all()) else not_finite(built))
    return answers


def _refused(built: Built, modality: str, items: Sequence[Any]) -> dict[int, str]:
    """Number of each item that the model's preparation refuses by itself -> why."""
    prepare = preparation(built, modality)
    reasons = {}
    for number, item in enumerate(items):
        try:
            with plugin_errors(built):
                prepare([item])
        except (UsageError, MediaError) as error:
            reasons[number] = f"{describe(built.found.card.provider)}: {built.name} refuses it: {one_line(error)}"
    return reasons


@contextmanager
def plugin_errors(built: Built) -> Iterator[None]:
    """Around a call of a model: whatever a plugin's code raises becomes a PluginError that names plugin and model."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        raise PluginError(
            f"{describe(built.found.card.provider)} raised {type(error).__name__} while running {built.name}: {one_line(error)}"
        ) from error


def checked_rows(rows: Any, built: Built, count: int, what: str) -> torch.Tensor:
    """The vectors that a model gave for `count` items of `what`, if they are float[count, D]. Raises PluginError."""
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != count or not rows.is_floating_point():
        got = f"{rows.dtype}{list(rows.shape)}" if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise PluginError(
            f"{describe(built.found.card.provider)}: {built.name} gave {got} for {count} items ({what}), expected "
            f"float[{count}, D]"
        )
    return rows


def refuse_nonfinite(rows: torch.Tensor, built: Built, what: str) -> torch.Tensor:
    """The same vectors, if they hold neither NaN nor infinity. Raises PluginError."""
    if not bool(rows.isfinite().all()):
        raise PluginError(f"{describe(built.found.card.provider)}: {built.name} gave NaN or infinity for {what}")
    return rows


def not_finite(built: Built) -> str:
    """Why an item has no vector, where the others have theirs."""
    return f"{describe(built.found.card.provider)}: {built.name} answers with NaN or infinity"


def sample_rate_of(built: Built) -> int | None:
    """The rate at which an encoder hears, by its card: what is read at that rate at once takes no memory for more."""
    rate_hz: int | None = built.found.card.preprocess.get("sample_rate_hz")
    return rate_hz


def preparation(built: Built, modality: str) -> Prepare:
    """The model's own way from raw items of a modality to what it computes with."""
    module: Any = built.module
    if unit_vectors(built):
        return lambda items: module.preprocess(modality, items)
    prepare: Prepare = module.preprocess
    return prepare


def _compute(built: Built, modality: str) -> Compute:
    module: Any = built.module
    if unit_vectors(built):
        return lambda inputs: module.encode(modality, inputs)
    return lambda inputs: pooled(module(inputs))


def pooled(output: Any) -> torch.Tensor:
    """The pooled vectors of what an encoder gave. Raises TypeError for anything that is no `zoo.Encoded`."""
    if not isinstance(output, Encoded):
        raise TypeError(f"forward must return zoo.Encoded, got {type(output).__name__}")
    return output.pooled_BD


def rows_in(prepared: Any) -> int:
    """How many items a prepared batch holds."""
    return len(prepared if isinstance(prepared, torch.Tensor) else prepared[0])


def joined(prepared: Sequence[Any]) -> Any:
    """Prepared batches of one -> one prepared batch; a tensor, or a tuple of tensors."""
    if isinstance(prepared[0], torch.Tensor):
        return torch.cat(list(prepared))
    return tuple(torch.cat(columns) for columns in zip(*prepared, strict=True))


def moved(prepared: Any, device: str) -> Any:
    """A prepared batch on a device."""
    if isinstance(prepared, torch.Tensor):
        return prepared.to(device)
    return tuple(part.to(device) for part in prepared)
