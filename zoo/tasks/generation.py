"""Text that goes on from a prompt, and which of given answers fits it: by any installed decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zoo.data.arguments import Text, file_texts, holds_text, is_there, known_suffixes
from zoo.data.lines import short_enough
from zoo.decoding.beams import beam_answer
from zoo.decoding.generation import Generated, Piece, stream
from zoo.decoding.generation import generate as generate_ids
from zoo.decoding.prompt import Prompt
from zoo.decoding.sampling import Sampling
from zoo.decoding.scoring import NORMALISATIONS, score_choices
from zoo.errors import UsageError
from zoo.models.build import Built, ModelSpec
from zoo.models.composition import Composition
from zoo.models.fusion.item import Item
from zoo.models.provenance import Provenance, provenance_of
from zoo.tasks.encoding import plugin_errors
from zoo.tasks.language_model import LanguageModel, open_language_model
from zoo.tasks.media_prompt import Part

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated after one prompt.

    finish: "end", "stop", "length" or "context" (see `zoo.decoding.generation.Generated`). tokens: how many it has.
    """

    prompt: str
    text: str
    finish: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer that fits a prompt best, and the probability of each among them, best first.

    logprobs: what they were ranked by, before the softmax.
    """

    prompt: str
    choice: str
    scores: dict[str, float]
    logprobs: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Completions or choices, in the order of the prompts, and what produced them.

    Its kernel is the number format of the linear layers: a kernel's, or that of a module that runs as it was built.
    """

    provenance: Provenance
    results: tuple[Any, ...]


def generate(
    prompts: str | Sequence[str | Sequence[Part | tuple[str, str]]],
    *,
    model: str | Path | ModelSpec | Built | Composition | LanguageModel | None = None,
    chat: bool = False,
    system: str | None = None,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    beams: int | None = None,
    length_penalty: float = 1.0,
    samples: int = 1,
) -> Generation:
    """Text that goes on from each prompt.

    prompts: one text, or several, each answered for itself; in place of a text a list of texts, paths of media files and pictures,
        in their order, for a composition (`zoo.compose`), or of turns (role, text) with chat. chat: each is a user's message to a model trained to answer, with
        `system` before it where given.
    model: a decoder; the installed default when None. A `zoo.ModelSpec` says how it is opened: weights, device, dtype and kernel. To ask
        many times, open it once: `open_language_model`.
    sampling: greedy when None (equal prompts in one call draw alike: `samples` is for several draws). stop: strings at which an answer ends. beams: search with so many hypotheses instead, ranked
        by the log-probability of their tokens over their number to the power of `length_penalty` (1: the mean; 0: the sum, which favours
        short answers). samples: answers to each prompt, one after another in the results.
    Raises UsageError for arguments that make no sense and a prompt that leaves no room, and what building the model raises.
    """
    asked = _prompts(prompts)
    if beams is not None and (sampling is not None or samples != 1):
        raise UsageError("beams search for the likeliest answer: leave out sampling and samples")
    if beams is None and length_penalty != 1.0:
        raise UsageError("length_penalty ranks the hypotheses of a search: give beams as well")
    language = model if isinstance(model, LanguageModel) else open_language_model(model)
    rows = [language.write(prompt, chat=chat, system=system) for prompt in asked]
    with plugin_errors(language.built):
        if beams is None:
            answers = _answers(language, [row.prompt for row in rows], max_tokens, sampling, stop, samples)
        else:
            answers = [
                beam_answer(
                    language.decoder,
                    row.prompt,
                    beams=beams,
                    max_tokens=max_tokens,
                    length_penalty=length_penalty,
                    stop=stop,
                    prefixes=language.prefixes,
                )
                for row in rows
            ]
    results = tuple(
        Completion(
            rows[number // samples].text, answer.text, answer.finish, len(rows[number // samples].prompt), len(answer.ids)
        )
        for number, answer in enumerate(answers)
    )
    return _outcome(language, results)


def stream_text(
    prompt: str | Sequence[Part],
    language: LanguageModel,
    *,
    chat: bool = False,
    system: str | None = None,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
) -> Iterator[Piece]:
    """The pieces of one answer while they come; arguments as those of `generate`."""
    provenance_of(language.built, kernel=language.kernel)  # which warns of random weights
    row = language.write(prompt, chat=chat, system=system).prompt
    with plugin_errors(language.built):
        yield from stream(
            language.decoder,
            [row],
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            prefixes=language.prefixes,
            draft=language.draft,
        )


def score(
    prompts: str | Sequence[str | Sequence[Part | tuple[str, str]]],
    choices: Sequence[str],
    *,
    model: str | Path | ModelSpec | Built | Composition | LanguageModel | None = None,
    chat: bool = False,
    system: str | None = None,
    normalise: str = "sum",
) -> Generation:
    """Which choice is the likeliest answer to each prompt, by the log-probability of its tokens.

    normalise: "sum", or per "token" or "byte" of the choice as it was given, or "calibrated" by the empty prompt (see `zoo.decoding.scoring.Scored.score`).
    A choice is scored as it stands; where neither it nor the end of the prompt has a blank, one is put between, outside a
    conversation. Other arguments as those of `generate`. Raises UsageError for fewer than two different choices.
    """
    asked, names = _prompts(prompts), _check_choices(choices)
    if normalise not in NORMALISATIONS:
        raise UsageError(f"normalise is one of {', '.join(NORMALISATIONS)}, got {normalise!r}")
    language = model if isinstance(model, LanguageModel) else open_language_model(model)
    results = []
    for prompt in asked:
        row = language.write(prompt, chat=chat, system=system)
        answers = [name if chat else joined(row.text, name) for name in names]
        with plugin_errors(language.built):
            scored = score_choices(
                language.decoder,
                row.prompt,
                [language.tokenizer.encode(name) for name in answers],
                sizes_bytes=[len(name.encode()) for name in names],  # without the blank that was put before it
                calibrate=normalise == "calibrated",
                prefixes=language.prefixes,
            )
        logprobs = {name: one.score(normalise) for name, one in zip(names, scored, strict=True)}
        results.append(ranked(row.text, logprobs))
    return _outcome(language, tuple(results))


def joined(prompt: str, choice: str) -> str:
    """The choice as it follows the prompt: after a blank where neither brings one."""
    needs = bool(prompt) and not prompt[-1].isspace() and not choice[:1].isspace()
    return f" {choice}" if needs else choice


def ranked(prompt: str, logprobs: Mapping[str, float]) -> Choice:
    """Choices in the order of their log-probabilities, with the softmax over them."""
    order = sorted(logprobs, key=lambda name: -logprobs[name])
    shares = torch.tensor([logprobs[name] for name in order], dtype=torch.float64).softmax(0).tolist()
    return Choice(prompt, order[0], dict(zip(order, shares, strict=True)), {name: logprobs[name] for name in order})


def _answers(
    language: LanguageModel,
    rows: Sequence[Prompt],
    max_tokens: int,
    sampling: Sampling | None,
    stop: Sequence[str],
    samples: int,
) -> list[Generated]:
    return generate_ids(
        language.decoder,
        rows,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        samples=samples,
        prefixes=language.prefixes,
        draft=language.draft,
    )


def _prompts(prompts: str | Sequence[str | Sequence[Part | tuple[str, str]]]) -> list[Any]:
    if not isinstance(prompts, (str, list, tuple)):
        raise UsageError(f"prompts are a string or a list of prompts, got {type(prompts).__name__}")
    asked: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not asked:
        raise UsageError("no prompt given")
    for number, prompt in enumerate(asked):
        if isinstance(prompt, tuple) and len(prompt) == 2 and prompt[0] in ROLES:
            raise UsageError(f"prompt {number} is a turn of a conversation: the turns of one are a list in the list, "
                             f'[[("user", "Hello"), ...]], with chat=True')  # fmt: skip
        if not isinstance(prompt, (str, list, tuple)):
            raise UsageError(
                f"a prompt is a string, or a list of texts and media, prompt {number} is {type(prompt).__name__}; one prompt of several "
                f"parts is a list in the list: [[picture, 'a text']]"
            )
        for part in [prompt] if isinstance(prompt, str) else prompt:
            if isinstance(part, str):
                short_enough(part, f"prompt {number}")
        files = [] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, str) and _named_file(part)]
        if files:
            raise UsageError(
                f"prompt {number} has the text {files[0]!r}, which names a file: give it as pathlib.Path({files[0]!r})"
            )
        wrong = [part for part in prompt if not isinstance(part, (str, Path, Image.Image, Item, tuple))]
        if wrong or (not prompt and not isinstance(prompt, str)):
            got = type(wrong[0]).__name__ if wrong else "none"
            raise UsageError(
                f"the parts of prompt {number} are texts, paths, pictures or items of zoo.models.fusion.item, got {got}"
            )
    return [_with_texts(prompt) for prompt in asked]


def _named_file(text: str) -> bool:
    """Whether a text among parts is the name of a file that is there, and nobody said that it is a text."""
    if isinstance(text, Text) or Path(text).suffix.lower() not in known_suffixes():
        return False
    return "\n" not in text and is_there(Path(text)) and Path(text).is_file()


def _with_texts(prompt: Any) -> Any:
    """A prompt with what its text files hold in their place. Raises UsageError for a table, which holds many."""
    if isinstance(prompt, (str, tuple)) or not any(isinstance(part, Path) and holds_text(part) for part in prompt):
        return prompt
    parts: list[Any] = []
    for part in prompt:
        parts += file_texts(part) if isinstance(part, Path) and holds_text(part) else [part]
    return parts if any(not isinstance(part, str) for part in parts) else "\n".join(parts)


def _check_choices(choices: Sequence[str]) -> list[str]:
    if isinstance(choices, str):
        raise UsageError(f"choices are a list of texts, got the single string {choices!r}")
    names = list(choices)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UsageError(f"choices are at least two different texts, got {names}")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise UsageError(f"a choice is a text that is not empty, got {names}")
    for name in names:
        short_enough(name, "a choice")
    return names


def _outcome(language: LanguageModel, results: tuple[Any, ...]) -> Generation:
    return Generation(provenance=provenance_of(language.built, kernel=language.kernel), results=results)
