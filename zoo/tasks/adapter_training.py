"""An adapter from examples: pairs of prompt and completion for a decoder, folders of labelled images for an encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.adapters.adapt import Adapters, adapters_of
from zoo.data.item_content import load
from zoo.data.lines import json_lines, short_enough
from zoo.data.shots import shot_items, shot_names
from zoo.errors import MediaError, UsageError
from zoo.models.build import Built, ModelSpec
from zoo.models.provenance import Provenance, provenance_of
from zoo.nn.kernels.seam import gradients_flow
from zoo.registry.modality import IMAGE, TEXT
from zoo.tasks.encoding import open_for
from zoo.training.fit import FitOptions, Fitted, fit
from zoo.training.losses import centroid_loss, completion_loss, encode_completions

FIELDS = (("prompt", "completion"), ("text", "label"))
BATCH_SIZE = 8
IMAGE_BATCH_SIZE = 32  # each class needs several


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What was trained, how it went, and on how many examples.

    provenance: of the model, with the adapter as it was trained. share: of all parameters that were trained.
    """

    provenance: Provenance
    adapters: Adapters
    name: str
    fitted: Fitted
    examples: int
    held_out: int
    parameters: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How long, on how much at once, and what only measures.

    batch_size: 8 texts or 32 images when None. learning_rate: what suits the method when None.
    held_out: share of the examples that only measures; the best adapter by it is kept, and `patience` measurements without a better one
        end the training. 0: none.
    seed: of all that is random; the same gives the same adapter.
    """

    steps: int = 200
    batch_size: int | None = None
    learning_rate: float | None = None
    held_out: float = 0.1
    patience: int = 3
    seed: int = 0


AS_USUAL = TrainingOptions()


def train_adapter(
    data: str | Path | Sequence[tuple[str, str]],
    *,
    model: str | ModelSpec | Built,
    method: str = "lora",
    name: str = "default",
    training: TrainingOptions = AS_USUAL,
    report: Callable[[int, float], None] | None = None,
    **options: Any,
) -> Trained:
    """Train an adapter on a model, everything else frozen. The same seed gives the same adapter.

    data: pairs of (prompt, completion), or a `.jsonl` file of objects with these fields (or `text` and `label`), for a decoder; a folder with
        one folder of images for each class, for an encoder.
    report: called with each step's number and loss. options: those of the method.
    Raises UsageError for data that do not fit the model, MediaError for what cannot be read, and what `zoo.adapt` and `fit` raise.
    """
    torch.manual_seed(training.seed)
    if not 0 <= training.held_out < 1:
        raise UsageError(f"held_out is a share of the examples, from 0 to below 1, got {training.held_out}")
    folder = Path(data) if isinstance(data, (str, Path)) and Path(data).is_dir() else None
    kinds = ("encoder", "dual_encoder") if folder is not None else ("decoder",)
    built = open_for("adapt", model, kinds=kinds, modalities=(IMAGE if folder is not None else TEXT,))
    if not gradients_flow(built.module):
        raise UsageError(
            f"no gradient flows through kernel {built.kernel}: leave it out, what is trained without it runs by it, too"
        )
    adapters = adapters_of(built)
    active = adapters.active
    adapter = adapters.add(method, name=name, **options)
    try:
        lesson = _of_images(built, folder) if folder is not None else _of_texts(built, data, adapter.virtual_count)
        train, test = split(lesson.examples, training.held_out, training.seed, lesson.labels)
        fitted = fit(
            adapters.parameters(),
            lesson.loss,
            train,
            FitOptions(
                steps=training.steps,
                batch_size=lesson.batch_size if training.batch_size is None else training.batch_size,
                learning_rate=adapter.learning_rate if training.learning_rate is None else training.learning_rate,
                seed=training.seed,
                patience=training.patience,
            ),
            held_out=test,
            report=report,
            train=adapters.train_adapters,
        )
    except BaseException:
        adapters.use(*active)
        adapters.remove(name)
        raise
    trained = sum(adapters.trainable().values())
    every = trained + sum(one.numel() for one in built.module.parameters())
    return Trained(
        provenance=provenance_of(built), adapters=adapters, name=name, fitted=fitted, examples=len(train),
        held_out=len(test), parameters=trained, share=trained / every,
    )  # fmt: skip


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs from a `.jsonl` file of objects with `prompt` and `completion`, or `text` and `label`.

    Raises UsageError for no such file, MediaError with the line for what is no such object.
    """
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        raise UsageError(
            f"{path}{'' if path.is_file() else ' is not there'}: examples are a .jsonl file with the fields prompt and completion, or a folder with one folder of images for each class"
        )
    pairs = []
    for number, row in json_lines(path):
        fields = next(
            (pair for pair in FIELDS if isinstance(row, dict) and all(isinstance(row.get(one), str) for one in pair)), None
        )
        if fields is None:
            raise MediaError(
                f"{path}:{number}: an example has the fields prompt and completion, both texts, got {json.dumps(row, ensure_ascii=False)[:80]}"
            )
        first, second = (short_enough(row[field], f"{path}:{number}: {field}") for field in fields)
        pairs.append((first, second))
    if not pairs:
        raise MediaError(f"{path} holds no examples")
    return pairs


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Examples, the loss over a batch of them, the usual size of one, and the class of each where they have classes."""

    examples: list[Any]
    loss: Any
    batch_size: int
    labels: list[int] | None = None


def _of_texts(built: Built, data: str | Path | Sequence[tuple[str, str]], virtual: int) -> _Lesson:
    pairs = read_pairs(Path(data)) if isinstance(data, (str, Path)) else list(data)
    decoder: Any = built.module
    if decoder.tokenizer is None:
        raise UsageError(f"{built.name} has no tokenizer, so it reads no text")
    examples = list(encode_completions(decoder.tokenizer, pairs, longest=decoder.context - virtual))
    return _Lesson(examples, completion_loss(decoder), BATCH_SIZE)


def _of_images(built: Built, folder: Path) -> _Lesson:
    names = shot_names(folder, None)
    encoder: Any = built.module
    if built.found.card.kind == "dual_encoder":
        raise UsageError(
            f"{built.name} has two towers: train the one that reads images, an encoder (zoo list --kind encoder --modality image)"
        )
    items = shot_items(folder, names, IMAGE)
    examples = [(encoder.preprocess([load(one, allow_urls=False)]), label) for one, label in items]
    loss = centroid_loss(encoder, classes=len(names))
    return _Lesson(examples, loss, IMAGE_BATCH_SIZE, [label for _, label in items])


def split(
    examples: Sequence[Any], share: float, seed: int, labels: Sequence[int] | None = None
) -> tuple[list[Any], list[Any]]:
    """What is trained on and what only measures: at least one example where a share is asked for.

    labels: of each example its class; then of each class at least two measure and two train, or none of it measures.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    measured: set[int] = set()
    if share and labels is None and len(examples) > 1:
        measured = set(order[: max(round(share * len(examples)), 1)])
    for label in sorted(set(labels or ())) if share else ():
        own = [one for one in order if labels is not None and labels[one] == label]
        count = max(round(share * len(own)), 2)
        measured |= set(own[:count]) if len(own) - count >= 2 else set()
    return [examples[one] for one in order if one not in measured], [examples[one] for one in order if one in measured]
