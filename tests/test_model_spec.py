"""Which model, and how it is opened: one value that every task takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo as library
from zoo.errors import UsageError
from zoo.models.build import ModelSpec, open_model
from zoo.tasks.adapter_training import train_adapter
from zoo.tasks.language_model import open_language_model
from zoo.tasks.transcription import open_transcriber
from zoo.tasks.voice_activity import open_detector

INT8 = ModelSpec(kernel="int8")

TASKS: dict[str, Callable[[Path, Path], Any]] = {
    "classify": lambda photo, _: library.classify(photo, ["a", "b"], model=INT8),
    "embed": lambda photo, out: library.embed([photo], out=out / "e.npz", model=INT8),
    "search": lambda photo, _: library.search(photo.parent, "a cat", model=INT8),
    "filter": lambda photo, _: library.filter_pairs(photo.parent, dry_run=True, model=INT8),
    "voice-activity": lambda *_: open_detector(INT8),
    "adapt": lambda *_: train_adapter([("a", "b")], model=ModelSpec(name="lm/llama-tiny", weights=None, kernel="int8")),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_kernel_is_refused_where_none_is_applied(task: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^zoo {task} applies no kernel: kernel int8 is for language models and transcr"):
        TASKS[task](photos / "chelsea.jpg", tmp_path)


def test_a_spec_is_opened_as_it_says() -> None:
    torch.manual_seed(0)
    spec = ModelSpec(name="text/minilm-tiny", weights=None, dtype=torch.bfloat16)
    built = open_model(spec)
    assert (built.name, built.random) == ("text/minilm-tiny", True)
    torch.manual_seed(0)
    assert open_model("text/minilm-tiny", weights=None, dtype=torch.bfloat16).identity == built.identity


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (ModelSpec(), {}, "opens the model that is named: a default is that of a task"),
        (
            INT8,
            {"weights": None},
            "a ModelSpec says how the model is opened: leave out weights, device and dtype beside it",
        ),
        (ModelSpec(name="smollm/tiny", kernel="int8"), {}, "zoo.open_model applies no kernel"),
    ],
)
def test_what_opens_no_model(spec: ModelSpec, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_model(spec, **options)


def test_an_unknown_kernel_is_refused_before_anything_is_built() -> None:
    for open_ in (open_language_model, open_transcriber):
        with pytest.raises(UsageError, match="a kernel is one of float32, bf16, int8, int4, got 'int3'"):
            open_(ModelSpec(kernel="int3"))


def test_a_default_takes_the_same_settings(photos: Path) -> None:
    torch.manual_seed(0)
    outcome = library.classify(photos / "chelsea.jpg", ["cat", "dog"], model=ModelSpec(weights=None))
    assert outcome.provenance.random_weights
