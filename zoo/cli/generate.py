"""`zoo generate`: a prompt in, what a decoder goes on with out; or the likeliest of given choices."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.options import (
    add_column_argument,
    add_model_arguments,
    check_column,
    check_weights,
    finite_number,
    load_adapter,
    model_spec,
    text_option,
)
from zoo.cli.output import about_model, print_json, read_stdin, say, separated, spell_model, warn_of_random_weights
from zoo.data.lines import TABLES
from zoo.data.walk import is_folder
from zoo.errors import UsageError
from zoo.registry.modality import IMAGE

if TYPE_CHECKING:
    from zoo.models.build import Built, ModelSpec

MAX_TOKENS = 256
MOST_PENALTY = 10
DRAFT = ("draft", "draft_kernel")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "lookup")


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="go on from a prompt, or choose the likeliest of given answers",
        description="PART: a text or a text file, or for a composition a media file; several are joined by line breaks, in their order, "
        "so that examples are just more parts. - reads a text from stdin, a folder of images is a film, and text:... is a text, whatever "
        "it looks like.",
    )
    command.add_argument("parts", nargs="+", metavar="PART", help="a text, a text or media file, or - for standard input")
    add_column_argument(command)
    command.add_argument("--choices", help="comma-separated answers: rank them by likelihood instead of generating")
    command.add_argument("--normalise", choices=("sum", "token", "byte", "calibrated"), help="how choices are ranked (sum)")
    command.add_argument(
        "--allow-random",
        action="store_true",
        help="rank --choices by a model with parameters that were drawn and never trained, too",
    )
    command.add_argument("--chat", action="store_true", help="the prompt is a message to a model trained to answer")
    command.add_argument("--system", metavar="TEXT", help="what stands before the message, with --chat")
    command.add_argument("--max-tokens", type=int, help="the most tokens of an answer (256)")
    command.add_argument("--stream", action="store_true", help="print the text while it comes")
    command.add_argument("--stop", action="append", metavar="TEXT", default=[], help="end the answer here; may be repeated")
    command.add_argument(
        "--temperature", type=finite_number, metavar="T", help="0 is greedy, the default; 1 draws as the model says"
    )
    command.add_argument(
        "--lookup",
        type=int,
        metavar="N",
        help="guess N tokens at once from what was read: the same text sooner, where it repeats itself",
    )
    command.add_argument(
        "--draft", metavar="NAME", help="a faster decoder with the same tokens guesses ahead: the same text sooner"
    )
    command.add_argument("--draft-kernel", metavar="KERNEL", help="by which kernel the draft runs")
    command.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    command.add_argument("--top-p", type=finite_number, metavar="P", help="draw from the likeliest that together reach P")
    command.add_argument(
        "--min-p", type=finite_number, metavar="P", help="draw from those at least P times as likely as the likeliest"
    )
    command.add_argument(
        "--repetition-penalty", type=finite_number, metavar="X", help="above 1 disfavours what was said already"
    )
    command.add_argument("--samples", type=int, default=1, metavar="N", help="answers to give (1)")
    command.add_argument("--beams", type=int, metavar="N", help="search for the likeliest answer with N hypotheses")
    command.add_argument(
        "--length-penalty",
        type=finite_number,
        metavar="X",
        help="with --beams: 1 ranks by the mean of the tokens, 0 by their sum (1)",
    )
    command.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="FILE.html",
        help="show the prompt that was built; with a file, what each word of the answer looked at",
    )
    add_model_arguments(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    check_column(arguments.column, arguments.parts)
    prompt = read_parts(arguments.parts, arguments.column)
    arguments.system = text_option(arguments.system, "--system")
    check_explain(arguments)
    choices = read_choices(arguments)
    check_weights(arguments)
    check_numbers(arguments)
    check_together(arguments)

    from zoo.decoding.sampling import Sampling
    from zoo.tasks.generation import generate, joined, score
    from zoo.tasks.language_model import open_language_model

    numbers = {name: getattr(arguments, name) for name in SAMPLING if getattr(arguments, name) is not None}
    sampling = Sampling(**numbers, seed=arguments.seed) if numbers or arguments.samples != 1 else None
    language = open_language_model(model_spec(arguments), plain=bool(arguments.explain))
    load_adapter(language, arguments)
    if arguments.draft is not None:
        language = replace(language, draft=open_language_model(draft_spec(arguments)).decoder)
    if choices is not None and not arguments.allow_random:
        refuse_random(language.built)
    if arguments.explain:
        from zoo.tasks.explanation import check_explanation

        check_explanation(language, prompt, Path(arguments.explain))
    if arguments.explain is not None:
        say(
            f"zoo: the prompt is {language.write(prompt, chat=arguments.chat, system=arguments.system).text!r}",
            file=sys.stderr,
        )
    common: dict[str, Any] = {"model": language, "chat": arguments.chat, "system": arguments.system}
    if arguments.stream:
        return _stream(prompt, language, sampling, arguments)
    if choices is not None:
        outcome = score([prompt], choices, normalise=arguments.normalise or "sum", **common)
    else:
        outcome = generate(
            [prompt],
            max_tokens=MAX_TOKENS if arguments.max_tokens is None else arguments.max_tokens,
            sampling=sampling,
            stop=arguments.stop,
            beams=arguments.beams,
            **({} if arguments.length_penalty is None else {"length_penalty": arguments.length_penalty}),
            samples=arguments.samples,
            **common,
        )
    warn_of_random_weights(outcome.provenance)
    if arguments.explain:
        from zoo.tasks.explanation import write_explanation

        answer = (
            outcome.results[0].text if choices is None else joined(outcome.results[0].prompt, outcome.results[0].choice)
        )
        write_explanation(language, prompt, answer, Path(arguments.explain))
    if arguments.json:
        print_json(document(outcome, settings(arguments)))
    else:
        _say_answers(outcome, arguments)
    return 0


def check_draft_name(arguments: argparse.Namespace) -> None:
    """Raise UnknownNameError for a draft that is neither installed nor a folder, before a model is opened for nothing."""
    if arguments.draft is not None and not Path(arguments.draft).exists():
        from zoo.registry.lookup import find

        find(arguments.draft)


def draft_spec(arguments: argparse.Namespace) -> ModelSpec:
    """What --draft names, on the model's device."""
    from zoo.models.build import ModelSpec

    return ModelSpec(name=arguments.draft, device=arguments.device, kernel=arguments.draft_kernel)


def _say_answers(outcome: Any, arguments: argparse.Namespace) -> None:
    for number, result in enumerate(outcome.results, start=1):
        if arguments.samples != 1:
            say(f"--- {number}")
        say(result.text if arguments.choices is None else _shares(result))
        _say_finish(getattr(result, "finish", None), arguments)
    _say_model(outcome.provenance)


def read_parts(parts: list[str], column: str | None = None) -> str | list[str | Path]:
    """The prompt: texts, joined by line breaks where no medium stands among them; media as paths, in their order.

    Raises UsageError for what is named like a file and is none, MediaError for what is no text.
    """
    from zoo.data.arguments import Text, file_texts, media_suffixes, read_argument

    found: list[str | Path] = []
    for part in parts:
        if part == "-":
            if parts.count("-") > 1:
                raise UsageError("- reads standard input, which is there once: give it once")
            found.append(Text(read_stdin()))
            continue
        meant = read_argument(part)
        if isinstance(meant, str):
            found.append(meant)
        elif is_folder(meant):
            found.append(_film(meant, part))
        elif meant.suffix.lower() in media_suffixes():
            found.append(meant)
        else:
            found += file_texts(meant, column if meant.suffix.lower() in TABLES else None)
    if any(isinstance(part, Path) for part in found):
        return found
    return "\n".join(map(str, found))


def _film(folder: Path, part: str) -> Path:
    """The folder itself. Raises UsageError where it holds no images."""
    from zoo.data.arguments import forced
    from zoo.data.walk import listing
    from zoo.media.readers import suffixes_of

    there = listing(folder)
    if not there.problem and not any(Path(name).suffix.lower() in suffixes_of(IMAGE) for name in there.files):
        suffixes = ", ".join(suffixes_of(IMAGE))
        raise UsageError(f"{folder} holds no images, so it is no film: expected files {suffixes}; {forced(part)}")
    return folder


def check_explain(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an explanation that is no HTML file, or of more than one answer."""
    if not arguments.explain:
        return
    if Path(arguments.explain).suffix.lower() != ".html":
        raise UsageError(
            f"--explain writes an HTML file, got {arguments.explain}; to see the prompt alone, put --explain last"
        )
    if arguments.stream or arguments.samples != 1 or arguments.chat:
        raise UsageError("--explain FILE explains one answer to a prompt: leave out --stream, --samples and --chat")


def refuse_random(built: Built) -> None:
    """Raise UsageError where choices would be ranked by parameters that were drawn: the answer would look like any other."""
    from zoo.models.provenance import provenance_of

    words = provenance_of(built).random_words
    if words:
        raise UsageError(f"{words}; give its trained weights, train its new parts (docs/fusion.md), or add --allow-random")


def check_together(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together, or that the others leave without effect."""
    chosen = arguments.choices is not None
    drawing = [name for name in SAMPLING if getattr(arguments, name) is not None]
    if arguments.stream and (arguments.json or chosen or arguments.beams is not None or arguments.samples != 1):
        raise UsageError("--stream shows one answer while it comes: leave out --json, --choices, --beams and --samples")
    idle = [name for name in drawing if name not in ("temperature", "repetition_penalty", "lookup")]
    if idle and not chosen and arguments.beams is None and not arguments.temperature:
        raise UsageError(
            f"--{idle[0].replace('_', '-')} is about drawing tokens, and greedy answers draw none: add --temperature 1, say"
        )
    if arguments.draft is not None and (chosen or arguments.beams is not None or arguments.samples != 1):
        raise UsageError("--draft guesses one answer ahead: leave out --choices, --beams and --samples, or it")
    if arguments.draft_kernel is not None and arguments.draft is None:
        raise UsageError("--draft-kernel is about the draft: add --draft NAME, the model itself for example")
    check_draft_name(arguments)
    if drawing and (chosen or arguments.beams is not None):
        raise UsageError(
            f"--{drawing[0].replace('_', '-')} is about drawing tokens: leave it out with --choices and --beams"
        )
    if chosen and (
        arguments.stop or arguments.max_tokens is not None or arguments.samples != 1 or arguments.beams is not None
    ):
        raise UsageError("--choices ranks given answers: leave out --stop, --max-tokens, --samples and --beams")
    if arguments.length_penalty is not None and arguments.beams is None:
        raise UsageError("--length-penalty ranks the hypotheses of a search: add --beams 4, say")
    if arguments.allow_random and not chosen:
        raise UsageError("--allow-random is about --choices: give some, or leave it out")
    if arguments.normalise is not None and not chosen:
        raise UsageError("--normalise is about --choices: give some, or leave it out")
    if arguments.samples != 1 and not drawing:
        raise UsageError("--samples are drawn, and greedy answers are all the same: add --temperature 1, say")


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raise UsageError for numbers out of range, before a model is opened. Those of drawing are checked by `Sampling`."""
    for name, least in (("max_tokens", 0), ("samples", 1), ("beams", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if arguments.length_penalty is not None and not 0 <= arguments.length_penalty <= MOST_PENALTY:
        raise UsageError(f"--length-penalty must be from 0 to {MOST_PENALTY}, got {arguments.length_penalty:g}")
    if "" in arguments.stop:
        raise UsageError("--stop ends an answer at a text, got an empty one")
    if arguments.system is not None and not arguments.chat:
        raise UsageError("--system is the beginning of a conversation: add --chat")


def read_choices(arguments: argparse.Namespace) -> list[str] | None:
    """Answers from --choices, blanks around them left out; None when it was not given."""
    if arguments.choices is None:
        return None
    choices = separated(arguments.choices)
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise UsageError(
            f"--choices are at least two different answers with commas between (in quotes with commas inside), got {choices}"
        )
    return choices


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What an answer depends on besides the model and the prompt, for who wants it again."""
    names = (
        "chat",
        "system",
        "max_tokens",
        "stop",
        "beams",
        "length_penalty",
        "samples",
        "normalise",
        *SAMPLING,
        *DRAFT,
        "seed",
        "device",
        "dtype",
    )
    found = {name: getattr(arguments, name) for name in names}
    chosen = arguments.choices is not None
    return {
        **found,
        "max_tokens": None if chosen else MAX_TOKENS if arguments.max_tokens is None else arguments.max_tokens,
        "normalise": (arguments.normalise or "sum") if chosen else None,
    }


def document(outcome: Any, used: dict[str, Any]) -> dict[str, Any]:
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
    return {
        **about_model(outcome.provenance),
        "weights": outcome.provenance.weights,
        "settings": used,
        "results": results,
    }


def _stream(prompt: Any, language: Any, sampling: Any, arguments: argparse.Namespace) -> int:
    from zoo.models.provenance import provenance_of
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
    provenance = provenance_of(language.built, kernel=language.kernel)
    warn_of_random_weights(provenance)
    finish = None
    try:
        for piece in pieces:
            say(piece.text, end="", flush=True)
            finish = piece.finish
    finally:
        say(flush=True)
    _say_finish(finish, arguments)
    _say_model(provenance)
    return 0


def _shares(result: Any) -> str:
    best, *others = result.scores.items()
    rest = ", ".join(f"{name} {share:.0%}" for name, share in others)
    return f"{best[0]}  {best[1]:.0%}   ({rest})"


def _say_finish(finish: str | None, arguments: argparse.Namespace) -> None:
    """On stderr, that an answer was cut."""
    if finish == "length" and arguments.max_tokens is None:
        say(f"zoo: the answer was cut after {MAX_TOKENS} tokens (--max-tokens)", file=sys.stderr)
    elif finish == "context":
        say("zoo: the answer was cut where the model's context was full", file=sys.stderr)


def _say_model(provenance: Any) -> None:
    say(f"{spell_model(provenance)}, {provenance.kernel}", file=sys.stderr)
