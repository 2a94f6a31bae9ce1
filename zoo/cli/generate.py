"""`zoo generate`: a prompt in, what a decoder goes on with out; or the likeliest of given choices."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.cli.classify import KERNELS, add_model_arguments, check_weights, prepare_torch
from zoo.cli.output import about_model, print_json, warn_of_random_weights
from zoo.errors import UsageError

MEDIA_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".wav",
    ".flac",
    ".mp3",
    ".ogg",
    ".opus",
    ".m4a",
    ".mp4",
    ".webm",
}
MAX_TOKENS = 256
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="go on from a prompt, or choose the likeliest of given answers",
        description="PART: a text; several are joined by line breaks, so that examples are just more parts. - reads one from stdin.",
    )
    command.add_argument("parts", nargs="+", metavar="PART", help="a text, or - for standard input")
    command.add_argument("--choices", help="comma-separated answers: rank them by likelihood instead of generating")
    command.add_argument("--normalise", choices=("sum", "token", "byte", "calibrated"), help="how choices are ranked (sum)")
    command.add_argument("--chat", action="store_true", help="the prompt is a message to a model trained to answer")
    command.add_argument("--system", metavar="TEXT", help="what stands before the message, with --chat")
    command.add_argument("--max-tokens", type=int, help="the most tokens of an answer (256)")
    command.add_argument("--stream", action="store_true", help="print the text while it comes")
    command.add_argument("--stop", action="append", metavar="TEXT", default=[], help="end the answer here; may be repeated")
    command.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy, the default; 1 draws as the model says"
    )
    command.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    command.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest that together reach P")
    command.add_argument(
        "--min-p", type=float, metavar="P", help="draw from those at least P times as likely as the likeliest"
    )
    command.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 disfavours what was said already")
    command.add_argument("--samples", type=int, default=1, metavar="N", help="answers to give (1)")
    command.add_argument("--beams", type=int, metavar="N", help="search for the likeliest answer with N hypotheses")
    command.add_argument(
        "--kernel", choices=KERNELS, default="float32", help="number format of the linear layers (float32)"
    )
    add_model_arguments(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    prompt = read_parts(arguments.parts)
    choices = read_choices(arguments)
    check_weights(arguments)
    check_together(arguments)
    import torch

    from zoo.decoding.sampling import Sampling
    from zoo.tasks.generation import generate, open_language_model, score

    prepare_torch(arguments)
    numbers = {name: getattr(arguments, name) for name in SAMPLING if getattr(arguments, name) is not None}
    language = open_language_model(
        arguments.model,
        weights=None if arguments.weights == "none" else arguments.weights,
        device=arguments.device,
        dtype=None if arguments.dtype == "float32" else getattr(torch, arguments.dtype),
        kernel=arguments.kernel,
    )
    sampling = Sampling(**numbers, seed=arguments.seed) if numbers or arguments.samples != 1 else None
    common: dict[str, Any] = {"model": language, "chat": arguments.chat, "system": arguments.system}
    if arguments.stream:
        return _stream(prompt, language, sampling, arguments)
    if choices is not None:
        outcome = score(prompt, choices, normalise=arguments.normalise or "sum", **common)
    else:
        outcome = generate(
            prompt,
            max_tokens=MAX_TOKENS if arguments.max_tokens is None else arguments.max_tokens,
            sampling=sampling,
            stop=arguments.stop,
            beams=arguments.beams,
            samples=arguments.samples,
            **common,
        )
    warn_of_random_weights(outcome)
    if arguments.json:
        print_json(document(outcome))
        return 0
    for result in outcome.results:
        print(result.text if choices is None else _shares(result))
    _say_model(outcome.model, outcome.distribution, outcome.version, outcome.kernel)
    return 0


def read_parts(parts: list[str]) -> str:
    """The prompt: texts joined by line breaks. Raises UsageError for a media file, which no decoder here reads yet."""
    texts = []
    for part in parts:
        if part == "-":
            try:
                texts.append(sys.stdin.buffer.read().decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UsageError(f"standard input must be UTF-8 text ({error})") from error
            continue
        if "\n" not in part and Path(part).suffix.lower() in MEDIA_SUFFIXES and _is_file(part):
            raise UsageError(f"{part} is a media file, and decoders read text alone so far: give its words")
        texts.append(part)
    return "\n".join(texts)


def _is_file(part: str) -> bool:
    try:
        return Path(part).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def check_together(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together, or that the others leave without effect."""
    chosen = arguments.choices is not None
    drawing = [name for name in SAMPLING if getattr(arguments, name) is not None]
    if arguments.stream and (arguments.json or chosen or arguments.beams is not None or arguments.samples != 1):
        raise UsageError("--stream shows one answer while it comes: leave out --json, --choices, --beams and --samples")
    if drawing and (chosen or arguments.beams is not None):
        raise UsageError(
            f"--{drawing[0].replace('_', '-')} is about drawing tokens: leave it out with --choices and --beams"
        )
    if chosen and (
        arguments.stop or arguments.max_tokens is not None or arguments.samples != 1 or arguments.beams is not None
    ):
        raise UsageError("--choices ranks given answers: leave out --stop, --max-tokens, --samples and --beams")
    if arguments.normalise is not None and not chosen:
        raise UsageError("--normalise is about --choices: give some, or leave it out")
    if arguments.samples != 1 and not drawing:
        raise UsageError("--samples are drawn, and greedy answers are all the same: add --temperature 1, say")


def read_choices(arguments: argparse.Namespace) -> list[str] | None:
    """Answers from --choices, blanks around them left out; None when it was not given."""
    if arguments.choices is None:
        return None
    return [choice.strip() for choice in arguments.choices.split(",") if choice.strip()]


def document(outcome: Any) -> dict[str, Any]:
    """The JSON document of a generation."""
    results = []
    for result in outcome.results:
        row = {"input": result.prompt}
        if hasattr(result, "choice"):
            row |= {"text": result.choice, "choice": result.choice, "scores": result.scores, "logprobs": result.logprobs}
        else:
            row |= {
                "text": result.text,
                "finish": result.finish,
                "prompt_tokens": result.prompt_tokens,
                "tokens": result.tokens,
            }
        results.append(row)
    return {**about_model(outcome), "kernel": outcome.kernel, "weights": outcome.weights, "results": results}


def _stream(prompt: str, language: Any, sampling: Any, arguments: argparse.Namespace) -> int:
    from zoo.tasks.generation import stream_text

    pieces = stream_text(
        prompt,
        language,
        chat=arguments.chat,
        system=arguments.system,
        max_tokens=MAX_TOKENS if arguments.max_tokens is None else arguments.max_tokens,
        sampling=sampling,
        stop=arguments.stop,
    )
    for piece in pieces:
        print(piece.text, end="", flush=True)
    print()
    if language.built.random:
        print(f"zoo: {language.built.name} has random weights: what it answers means nothing", file=sys.stderr)
    provider = language.built.found.card.provider
    _say_model(language.built.name, provider.distribution, provider.version, language.kernel)
    return 0


def _shares(result: Any) -> str:
    best, *others = result.scores.items()
    rest = ", ".join(f"{name} {share:.0%}" for name, share in others)
    return f"{best[0]}  {best[1]:.0%}   ({rest})"


def _say_model(model: str, distribution: str, version: str, kernel: str) -> None:
    print(f"{model} ({distribution} {version}), {kernel}", file=sys.stderr)
