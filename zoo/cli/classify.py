"""`zoo classify`: images or texts and labels in, a table or a JSON document out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from zoo.cli.options import add_column_argument, add_model_arguments, check_column, check_weights, model_for
from zoo.cli.output import about_model, print_json, read_stdin_lines, say, separated, spell_model, warn_of_random_weights
from zoo.data.lines import TABLES
from zoo.data.walk import is_file
from zoo.errors import UsageError
from zoo.media.file import expanded
from zoo.registry.terminal import on_one_line

LINE = 60  # characters of a text that stand before its answer
SHOWN = 3  # labels on a line, where nobody says how many


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "classify",
        help="say which label fits each image, sound or text",
        description="Without --labels and --shots: the image model's own classes.",
    )
    command.add_argument(
        "media", nargs="+", metavar="MEDIA", help="image or audio files, folders or patterns; texts with --text"
    )
    command.add_argument(
        "--text",
        action="store_true",
        help="MEDIA are texts or text files (- for the lines of stdin, text:... for a text), and a decoder ranks the labels",
    )
    command.add_argument("--labels", help="comma-separated labels")
    command.add_argument("--labels-file", type=Path, metavar="FILE", help="one label a line, or with --column a table")
    add_column_argument(command)
    command.add_argument(
        "--template",
        action="append",
        metavar="T",
        help="sentence with {} for the label, may be repeated; with --text, the prompt with {text} ('Text: {text}\\nLabel:')",
    )
    command.add_argument(
        "--templates", metavar="SET", help="a named set of such sentences, as openai-80, openai-7 or zoo-9"
    )
    command.add_argument(
        "--shots",
        metavar="PATH",
        help="few-shot: a folder of examples for each class; for texts a .jsonl or .csv file with the fields text and label",
    )
    command.add_argument(
        "--normalise", choices=("sum", "token", "byte", "calibrated"), help="how labels of texts are ranked (sum)"
    )
    command.add_argument(
        "--top", type=int, help="labels to report for each input (3 in the text; in --json all of up to 20, else 5)"
    )
    command.add_argument("--batch-size", type=int, help="images or sounds computed together (4 on a CPU)")
    command.add_argument(
        "--no-close-calls", action="store_true", help="keep 16-bit answers where two labels are within 5%%, too"
    )
    command.add_argument("--allow-urls", action="store_true", help="also follow http(s) addresses")
    add_model_arguments(command)
    command.set_defaults(run=run)


def read_labels(arguments: argparse.Namespace) -> list[str] | None:
    """Labels from --labels or --labels-file; None when neither was given."""
    if arguments.labels is not None and arguments.labels_file is not None:
        raise UsageError("give --labels or --labels-file, not both")
    if arguments.labels_file is not None:
        from zoo.data.lines import line_texts

        path = expanded(arguments.labels_file)
        lines = line_texts(path, arguments.column, f"--labels-file {arguments.labels_file}")
        labels = [line.strip() for line in lines if line.strip()]
        # Of a column each label is there as often as it is used.
        return labels if arguments.column is None else list(dict.fromkeys(labels))
    if arguments.labels is None:
        return None
    labels = separated(arguments.labels)
    if len(labels) == 1 and is_file(expanded(labels[0])):
        raise UsageError(f"--labels {labels[0]}: a file, where labels are expected: --labels-file {labels[0]}")
    return labels


def read_templates(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Sentences from --template or --templates; the label alone when neither was given."""
    if arguments.template is not None and arguments.templates is not None:
        raise UsageError("give --template or --templates, not both")
    if arguments.templates is not None:
        from zoo.data.templates import template_set

        return template_set(arguments.templates)
    return tuple(arguments.template or ("{}",))


def run(arguments: argparse.Namespace) -> int:
    if arguments.text:
        return run_texts(arguments)
    if arguments.normalise is not None:
        raise UsageError("--normalise is about texts: add --text")
    if arguments.column is not None and arguments.labels_file is None:
        raise UsageError("--column is about tables of texts: add --text, or --labels-file")
    labels = read_labels(arguments)
    templates = read_templates(arguments)
    # Paths first: importing torch takes a second, and a typing error should not.
    from zoo.data.inputs import media_items, require_one
    from zoo.data.shots import shot_names

    check_weights(arguments)
    items = media_items(arguments.media)
    require_one(items)
    if arguments.shots is not None:
        shot_names(expanded(arguments.shots), labels)
    from zoo.tasks.classify import classify

    outcome = classify(
        items,
        labels,
        templates=templates,
        shots=arguments.shots,
        top=arguments.top,
        batch_size=arguments.batch_size,
        model=model_for(arguments),
        exact_close_calls=not arguments.no_close_calls,
        allow_urls=arguments.allow_urls,
        progress=True,
    )
    warn_of_random_weights(outcome.provenance)
    if arguments.json:
        print_json(document(outcome))
    else:
        print_answers(outcome, shown=arguments.top or SHOWN)
    return 1 if any(answer.error for answer in outcome.results) else 0


def run_texts(arguments: argparse.Namespace) -> int:
    check_column(arguments.column, [*arguments.media, arguments.labels_file])
    labels = read_labels(arguments)
    for name in ("templates", "batch_size", "no_close_calls", "allow_urls"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} is about images: leave it out with --text")
    if arguments.template is not None and len(arguments.template) != 1:
        raise UsageError("texts are put into one template: give --template once")
    check_weights(arguments)
    texts = read_texts(arguments.media, arguments.column)
    from zoo.tasks.text_classification import TEMPLATE, classify_texts

    outcome = classify_texts(
        [text for text, _ in texts],
        labels,
        shots=arguments.shots,
        template=arguments.template[0].replace("\\n", "\n") if arguments.template else TEMPLATE,
        normalise=arguments.normalise or "sum",
        top=arguments.top,
        model=model_for(arguments),
    )
    warn_of_random_weights(outcome.provenance)
    if arguments.json:
        print_json(document(outcome, [file for _, file in texts]))
    else:
        briefly = tuple(replace(answer, input=_beginning(answer.input)) for answer in outcome.results)
        print_answers(replace(outcome, results=briefly), shown=arguments.top or SHOWN)
    return 1 if any(answer.error for answer in outcome.results) else 0


def read_texts(given: list[str], column: str | None) -> list[tuple[str, str | None]]:
    """(text, file that it was read from) of each argument; - is the lines of standard input. Raises UsageError for no text."""
    from zoo.data.arguments import file_texts, read_argument

    texts: list[tuple[str, str | None]] = []
    for argument in given:
        if argument == "-":
            texts += [(line, None) for line in read_stdin_lines()]
            continue
        meant = read_argument(argument)
        if isinstance(meant, str):
            texts.append((meant, None))
        else:
            of_table = column if meant.suffix.lower() in TABLES else None
            texts += [(text, argument) for text in file_texts(meant, of_table)]
    if not any(text.strip() for text, _ in texts):
        raise UsageError(
            "there is no text to classify: each is an argument, a text file, or - for the lines of standard input"
        )
    return texts


def _beginning(text: str) -> str:
    """A text on one line, of which the beginning is enough to tell it."""
    line = " ".join(text.split())
    return line if len(line) <= LINE else f"{line[: LINE - 3]}..."


def document(outcome: Any, files: Sequence[str | None] = ()) -> dict[str, Any]:
    """The JSON document of a classification. files: of the texts among its inputs, where they were read from."""
    return {
        **about_model(outcome.provenance),
        "method": outcome.method,
        "loo_accuracy": outcome.loo_accuracy,
        "weights": outcome.provenance.weights,
        "results": [
            {"input": answer.input}
            | ({"file": file} if file else {})
            | (
                {"error": answer.error}
                if answer.error
                else {"label": answer.label, "score": answer.score, "scores": answer.scores}
            )
            for answer, file in zip_longest(outcome.results, files)
        ],
    }


def print_answers(outcome: Any, *, shown: int) -> None:
    """One line an image: the best label, its probability, and those that follow, `shown` in all."""
    inputs = [on_one_line(answer.input) for answer in outcome.results]
    width = max(map(len, inputs))
    for answer, shown_input in zip(outcome.results, inputs, strict=True):
        if answer.error:
            say(f"zoo: {answer.error}", file=sys.stderr)
            continue
        best, *others = answer.scores.items()
        rest = ", ".join(f"{on_one_line(label)} {score:.0%}" for label, score in others[: shown - 1])
        say(f"{shown_input:<{width}}  {on_one_line(best[0])}  {best[1]:.0%}" + (f"   ({rest})" if rest else ""))
    loo = (
        ""
        if outcome.loo_accuracy is None
        else f", leave-one-out {outcome.loo_accuracy:.0%} (of the examples, each asked of a probe fitted without it)"
    )
    say(f"{spell_model(outcome.provenance)}, {outcome.method}{loo}", file=sys.stderr)
