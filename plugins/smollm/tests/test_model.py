"""The published model against `LlamaForCausalLM` of transformers with the same weights, and what it answers."""

import os
from collections.abc import Callable
from functools import cache
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from smollm_reference import PUBLISHED, transformers_smollm

import zoo
from zoo.decoding.generation import generate
from zoo.decoding.scoring import perplexity
from zoo.tasks.language_model import LanguageModel, open_language_model
from zoo.weights.cache import blobs_dir

SLOWLY = os.environ.get("ZOO_SLOW_TESTS") == "1"
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "Water boils at",
    "1, 2, 3, 5, 8,",
    "The three primary colours are",
    "Dear Sir or Madam,\n\n",
    "Question: Who wrote Hamlet?\nAnswer:",
    "import numpy as np\n\nx = np.",
    "In 1969, ",
    "La capitale de l'Italie est",
    "The opposite of hot is",
    "Roses are red,",
    "A recipe for pancakes:\n1.",
    "If it rains tomorrow",
    "SELECT name FROM users WHERE",
    "The mitochondria is",
    "Photosynthesis is the process by which",
    "To be, or not to be,",
    "My favourite animal is the",
]
TOKENS = 40 if SLOWLY else 16


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    if not (blobs_dir() / PUBLISHED).is_file():
        pytest.skip("the weights are not on this machine; bring them with: zoo fetch smollm/135m-instruct")
    return open_language_model(zoo.open_model("smollm/135m-instruct"))  # as it is built, with the weights under their names


@pytest.fixture(scope="module")
def opened() -> Callable[[str], LanguageModel]:
    """The model by a kernel, opened once."""
    return cache(lambda kernel: open_language_model(zoo.ModelSpec(name="smollm/135m-instruct", kernel=kernel)))


@pytest.fixture(scope="module")
def reference(language: LanguageModel) -> Any:
    return transformers_smollm(language.built)


def test_greedy_answers_are_those_of_transformers(language: LanguageModel, reference: Any) -> None:
    """Each token of each answer is the one that transformers finds likeliest after all before it: so the texts are the same."""
    asked = PROMPTS if SLOWLY else PROMPTS[::4]
    rows = [language.tokenizer.encode(prompt) for prompt in asked]
    answers = generate(language.decoder, rows, max_tokens=TOKENS)
    checked = 0
    for row, answer in zip(rows, answers, strict=True):
        ends = [language.tokenizer.end_ids[0]] if answer.finish == "end" else []
        ids = [*row, *answer.ids, *ends]
        with torch.inference_mode():
            likeliest = reference(torch.tensor([ids])).logits[0, len(row) - 1 : -1].argmax(-1).tolist()
        if answer.finish == "end":
            assert likeliest[-1] in language.tokenizer.end_ids
            likeliest.pop()
        assert likeliest == list(answer.ids)
        checked += len(answer.ids)
    assert checked >= TOKENS * len(asked) // 2


def test_logits_are_those_of_transformers(language: LanguageModel, reference: Any) -> None:
    ids = torch.tensor([language.tokenizer.encode("".join(PROMPTS))])
    with torch.inference_mode():
        ours, theirs = language.decoder(ids), reference(ids).logits  # type: ignore[operator]  # it is a module
    assert float((ours - theirs).abs().max()) < 1e-3  # of logits up to 30


KERNELS = {"float32": 1e-4, "bf16": 0.01, "int8": 0.02, "int4": 0.02}


@pytest.mark.parametrize(("kernel", "allowed"), KERNELS.items() if SLOWLY else [("int4", 0.02)])
def test_kernels_foretell_text_nearly_as_well(
    language: LanguageModel, opened: Callable[[str], LanguageModel], kernel: str, allowed: float
) -> None:
    text = " ".join(PROMPTS)
    ids = language.tokenizer.encode(text)
    exact = perplexity(language.decoder, ids).nll_nats / len(ids)
    assert perplexity(opened(kernel).decoder, ids).nll_nats / len(ids) == pytest.approx(exact, abs=allowed)


@pytest.mark.parametrize("kernel", ["float32", "int4"] if SLOWLY else ["int4"])
@pytest.mark.usefixtures("language")
def test_it_knows_the_capital_of_france(opened: Callable[[str], LanguageModel], kernel: str) -> None:
    model = opened(kernel)
    (plain,) = zoo.generate("The capital of France is", model=model, max_tokens=8).results
    assert plain.text.startswith(" Paris.")
    (chat,) = zoo.generate("What is the capital of France?", model=model, chat=True).results
    assert (chat.text, chat.finish) == ("The capital of France is Paris.", "end")
    (choice,) = zoo.score("The capital of France is", ["London", "Paris", "Rome"], model=model).results
    assert choice.choice == "Paris"
    assert sum(choice.scores.values()) == pytest.approx(1)


def test_a_stop_string_ends_it(language: LanguageModel) -> None:
    (answer,) = zoo.generate("The capital of France is", model=language, stop=["ris.", "xyz"], max_tokens=20).results
    assert (answer.text, answer.finish) == (" Pa", "stop")


def test_the_command_line(main: Callable[..., CompletedProcess[str]], language: LanguageModel) -> None:
    run = main("generate", "The capital of France is", "--max-tokens", "4", "--stop", ".")
    assert (run.returncode, run.stdout) == (0, " Paris\n")
    assert run.stderr == "smollm/135m-instruct.q4_1 (modalzoo-smollm 0.1.0), float32\n"
