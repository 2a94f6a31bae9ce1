"""`zoo classify`: images or texts and labels in, a table or a JSON document out."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.cli.options import KERNELS, add_model_arguments, check_weights, model_for
from zoo.cli.output import about_model, print_json, read_stdin, separated, spell_model, warn_of_random_weights
from zoo.errors import UsageError

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
        "--text", action="store_true", help="MEDIA are texts (- for the lines of stdin), and a decoder ranks the labels"
    )
    command.add_argument("--labels", help="comma-separated labels")
    command.add_argument("--labels-file", type=Path, metavar="FILE", help="one label a line")
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
    command.add_argument("--kernel", choices=KERNELS, help="number format of a decoder's linear layers (float32)")
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
        try:
            lines = arguments.labels_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--labels-file {arguments.labels_file}: cannot be read ({error})") from error
        return [line.strip() for line in lines if line.strip()]
    if arguments.labels is None:
        return None
    return separated(arguments.labels)


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
    for name in ("normalise", "kernel"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} is about texts: add --text")
    labels = read_labels(arguments)
    templates = read_templates(arguments)
    # Paths first: importing torch takes a second, and a typing error should not.
    from zoo.data.inputs import media_items, require_one
    from zoo.data.shots import shot_names

    check_weights(arguments)
    items = media_items(arguments.media)
    require_one(items)
    if arguments.shots is not None:
        shot_names(Path(arguments.shots).expanduser(), labels)
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
    labels = read_labels(arguments)
    for name in ("templates", "batch_size", "no_close_calls", "allow_urls"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} is about images: leave it out with --text")
    if arguments.template is not None and len(arguments.template) != 1:
        raise UsageError("texts are put into one template: give --template once")
    check_weights(arguments)
    from zoo.tasks.text_classification import TEMPLATE, classify_texts

    texts = read_texts(arguments.media)
    outcome = classify_texts(
        texts,
        labels,
        shots=arguments.shots,
        template=arguments.template[0].replace("\\n", "\n") if arguments.template else TEMPLATE,
        normalise=arguments.normalise or "sum",
        top=arguments.top,
        model=model_for(arguments),
    )
    warn_of_random_weights(outcome.provenance)
    if arguments.json:
        print_json(document(outcome))
    else:
        briefly = tuple(replace(answer, input=_beginning(answer.input)) for answer in outcome.results)
        print_answers(replace(outcome, results=briefly), shown=arguments.top or SHOWN)
    return 1 if any(answer.error for answer in outcome.results) else 0


def read_texts(given: list[str]) -> list[str]:
    """Texts as given; - is the lines of standard input. Raises UsageError for no text."""
    texts: list[str] = []
    for text in given:
        texts += read_stdin().splitlines() if text == "-" else [text]
    if not any(text.strip() for text in texts):
        raise UsageError("there is no text to classify: each is an argument, or - for the lines of standard input")
    return texts


def _beginning(text: str) -> str:
    """A text on one line, of which the beginning is enough to tell it."""
    line = " ".join(text.split())
    return line if len(line) <= LINE else f"{line[: LINE - 3]}..."


def document(outcome: Any) -> dict[str, Any]:
    """The JSON document of a classification."""
    return {
        **about_model(outcome.provenance),
        "method": outcome.method,
        "loo_accuracy": outcome.loo_accuracy,
        "weights": outcome.provenance.weights,
        "results": [
            {"input": answer.input, "error": answer.error}
            if answer.error
            else {"input": answer.input, "label": answer.label, "score": answer.score, "scores": answer.scores}
            for answer in outcome.results
        ],
    }


def print_answers(outcome: Any, *, shown: int) -> None:
    """One line an image: the best label, its probability, and those that follow, `shown` in all."""
    width = max(len(answer.input) for answer in outcome.results)
    for answer in outcome.results:
        if answer.error:
            print(f"zoo: {answer.error}", file=sys.stderr)
            continue
        best, *others = answer.scores.items()
        rest = ", ".join(f"{label} {score:.0%}" for label, score in others[: shown - 1])
        print(f"{answer.input:<{width}}  {best[0]}  {best[1]:.0%}" + (f"   ({rest})" if rest else ""))
    loo = (
        ""
        if outcome.loo_accuracy is None
        else f", leave-one-out {outcome.loo_accuracy:.0%} (of the examples, each asked of a probe fitted without it)"
    )
    print(f"{spell_model(outcome.provenance)}, {outcome.method}{loo}", file=sys.stderr)
