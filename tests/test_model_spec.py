"""Which model, and how it is opened: one value that every task takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo as library
from zoo.errors import UsageError
from zoo.models.build import ModelSpec, open_model
from zoo.tasks.adapter_training import train_adapter
from zoo.tasks.language_model import open_language_model
from zoo.tasks.transcription import open_transcriber

INT8 = ModelSpec(kernel="int8")


def test_every_task_takes_a_kernel(photos: Path, tmp_path: Path) -> None:
    """What the default photo classifier answers by rounded layers is nearly what it answers without, and is kept apart from it."""
    photo = photos / "chelsea.jpg"
    plain, rounded = (library.classify(photo, ["a cat", "a dog"], model=spec) for spec in (ModelSpec(), INT8))
    assert plain.provenance.kernel is None
    assert rounded.provenance.kernel == "int8"
    assert rounded.results[0].label == "a cat"
    assert 0 < abs(rounded.results[0].score - plain.results[0].score) < 0.02
    vectors = []
    for name, spec in (("plain", ModelSpec()), ("rounded", INT8)):
        library.embed([photo, "text:a cat"], out=tmp_path / f"{name}.npz", model=spec)
        vectors.append(np.load(tmp_path / f"{name}.npz")["embeddings"])
    cosines = (vectors[0] * vectors[1]).sum(1)
    assert (cosines > 0.99).all()
    assert (vectors[0][1] != vectors[1][1]).any(), "texts are read by rounded layers, not from what was kept before"
    assert (
        open_model(ModelSpec("text/minilm-tiny", weights="none", kernel="int8")).identity
        != open_model("text/minilm-tiny", weights=None).identity
    )
    with pytest.raises(UsageError, match="no gradient flows through kernel int8: leave it out"):
        train_adapter([("a", "b")], model=ModelSpec(name="lm/llama-tiny", weights=None, kernel="int8"))


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
            "a ModelSpec says how the model is opened: leave out weights, device, dtype and kernel beside it",
        ),
        (
            ModelSpec(name="smollm/tiny", weights=None, kernel="smollm/tiny"),
            {},
            "smollm/tiny is of kind decoder; a kernel is one of",
        ),
    ],
)
def test_what_opens_no_model(spec: ModelSpec, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_model(spec, **options)


def test_an_unknown_kernel_is_refused_before_anything_is_built() -> None:
    for open_ in (open_language_model, open_transcriber):
        with pytest.raises(UsageError, match="a kernel is one of float32, .*, got 'int3'; did you mean"):
            open_(ModelSpec(kernel="int3"))


def test_a_default_takes_the_same_settings(photos: Path) -> None:
    torch.manual_seed(0)
    outcome = library.classify(photos / "chelsea.jpg", ["cat", "dog"], model=ModelSpec(weights=None))
    assert outcome.provenance.random_weights
