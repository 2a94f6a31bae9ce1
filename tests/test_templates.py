"""Named sets of templates."""

from pathlib import Path

import pytest
import torch

from zoo.data.templates import TEMPLATE_SETS, template_set
from zoo.errors import UsageError
from zoo.models.build import ModelSpec
from zoo.tasks.classify import classify
from zoo.tasks.label_scores import label_embeddings


def test_every_sentence_has_one_place_for_the_label() -> None:
    assert {name: len(sentences) for name, sentences in TEMPLATE_SETS.items()} == {
        "openai-80": 80,
        "openai-7": 7,
        "zoo-9": 9,
        "plain": 1,
    }
    for sentences in TEMPLATE_SETS.values():
        assert len(set(sentences)) == len(sentences)
        assert all(
            sentence.count("{}") == 1 and sentence.format("x") == sentence.replace("{}", "x") for sentence in sentences
        )


def test_a_name_that_no_set_has() -> None:
    with pytest.raises(UsageError, match="there is no template set 'openai80'; did you mean openai-80 or openai-7\\?"):
        template_set("openai80")
    with pytest.raises(UsageError, match="'x'; there are openai-80, openai-7, zoo-9, plain"):
        template_set("x")


def test_the_command_line_takes_a_set(zoo, photos: Path) -> None:
    photo = str(photos / "chelsea.jpg")
    run = zoo("classify", photo, "--labels", "cat,dog", "--templates", "openai-7")
    assert (run.returncode, "cat" in run.stdout) == (0, True), run.stderr
    both = zoo("classify", photo, "--labels", "cat,dog", "--templates", "openai-7", "--template", "a {}")
    assert (both.returncode, both.stderr) == (2, "zoo: give --template or --templates, not both\n")
    unknown = zoo("classify", photo, "--labels", "cat,dog", "--templates", "zoo-8")
    assert (unknown.returncode, "there is no template set 'zoo-8'; did you mean zoo-9" in unknown.stderr) == (2, True)


def test_templates_are_averaged_as_unit_vectors() -> None:
    """Each embedding has length one, then the mean, then length one again: no sentence counts for more by being longer."""

    class Module:
        def embed(self, modality: str, items: list[str]) -> torch.Tensor:
            vectors = torch.tensor([[float(len(item)), 10.0, float(ord(item[0]))] for item in items])
            return torch.nn.functional.normalize(vectors, dim=-1)

    class Made:
        module = Module()
        state_identity = "a test's own model"
        random = False

    labels, templates = ["cat", "dog"], ("{}", "a long photo of a {}", "my {}")
    expected = torch.stack([Module().embed("text", [t.replace("{}", label) for label in labels]) for t in templates]).mean(
        0
    )
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert torch.allclose(label_embeddings(Made(), labels, templates), expected, atol=1e-6)


def test_close_calls_can_be_left_as_they_are(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.tasks import classify as module

    calls = []
    monkeypatch.setattr(module, "with_close_calls", lambda compute, *_: calls.append(compute) or compute)
    for exact in (True, False):
        classify(photos / "chelsea.jpg", ["cat", "dog"], model=ModelSpec(dtype=torch.bfloat16), exact_close_calls=exact)
        assert len(calls) == 1
