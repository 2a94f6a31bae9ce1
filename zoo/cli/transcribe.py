"""`zoo transcribe`: sounds in, text, subtitles or a JSON document out."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from zoo.cli.options import (
    add_model_arguments,
    check_weights,
    finite_number,
    load_adapter,
    model_spec,
    text_option,
)
from zoo.cli.output import about_model, print_json, say, spell_model, warn_of_random_weights
from zoo.cli.transcript_files import FORMATS, finished, format_of, journal_of, transcript_files, write_transcript
from zoo.errors import UsageError
from zoo.models.transcript import MAX_DURATION_S

# Of the model, by the names that it gives them: each is passed on only where it was given.
NUMBERS = {
    "beam_size": (int, "beams at temperature 0 (greedy without)"),
    "patience": (finite_number, "finished beams to wait for, as a share of --beam-size"),
    "best_of": (int, "samples to choose from at temperatures above 0"),
    "length_penalty": (finite_number, "exponent of the length that scores are divided by"),
    "compression_ratio_threshold": (finite_number, "a text that shrinks more than this is tried again (2.4)"),
    "logprob_threshold": (finite_number, "a window less probable than this is tried again (-1.0)"),
    "no_speech_threshold": (finite_number, "a window is silence above this, if it is also improbable (0.6)"),
    "max_initial_timestamp": (finite_number, "second where the first word of a window may begin at the latest (1.0)"),
    "hallucination_silence_threshold": (
        finite_number,
        "with --word-timestamps: seconds of silence around what was made up",
    ),
}


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "transcribe",
        help="write what is said in audio files",
        description="Reads wav, flac, ogg, opus, mp3 and aiff of any length, and m4a where ffmpeg is installed.",
    )
    command.add_argument("audio", nargs="+", metavar="AUDIO", help="audio files, folders or patterns")
    command.add_argument("--format", choices=FORMATS, help="what is written (what the name of --out ends in, else txt)")
    command.add_argument(
        "--out",
        metavar="PATH",
        help="a file, or for several sounds a folder; interrupted work goes on where it was",
    )
    command.add_argument("--overwrite", action="store_true", help="write transcripts anew that are there already")
    command.add_argument("--language", help="a code or a name, as de or german; without it, as the sound begins")
    command.add_argument(
        "--task", choices=("transcribe", "translate"), default="transcribe", help="translate writes English"
    )
    command.add_argument("--word-timestamps", action="store_true", help="the time of each word (in json)")
    command.add_argument("--initial-prompt", metavar="TEXT", help="what came before: names and spellings to expect")
    command.add_argument("--carry-initial-prompt", action="store_true", help="say it again before each window")
    command.add_argument(
        "--no-previous-text",
        action="store_true",
        help="tell no window what was written before it: fewer loops, less context",
    )
    command.add_argument("--temperature", metavar="T,...", help="the ladder of temperatures (0,0.2,0.4,0.6,0.8,1)")
    command.add_argument(
        "--suppress-tokens", metavar="ID,...", help="tokens never written; -1 is all that nobody speaks (-1)"
    )
    command.add_argument("--clip-timestamps", metavar="S,...", help="start, end, start, ... in seconds: listen only there")
    command.add_argument("--without-timestamps", action="store_true", help="text alone inside each window")
    for name, (kind, words) in NUMBERS.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=words)
    command.add_argument("--vad", action="store_true", help="find voices first, and listen only there")
    command.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="windows decoded together, cut in pauses; each stands alone (1)",
    )
    command.add_argument(
        "--normalise", action="store_true", help="texts as word errors are counted on them: no punctuation, numbers as one"
    )
    command.add_argument(
        "--engine", metavar="NAME", help="whose code computes, where a model has several implementations: zoo, openai (zoo)"
    )
    command.add_argument(
        "--max-duration",
        type=finite_number,
        default=MAX_DURATION_S,
        metavar="S",
        help=f"longest sound in seconds ({MAX_DURATION_S:.0f})",
    )
    add_model_arguments(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from zoo.data.inputs import audio_files, require_one

    check_weights(arguments)
    items = audio_files(arguments.audio)
    require_one(items)
    files = list(dict.fromkeys(Path(str(item.source)) for item in items))
    several = len(files) > 1
    format_ = format_of(arguments.out, arguments.format, several=several, as_json=arguments.json)
    if several and arguments.out is None and format_ in ("srt", "vtt", "tsv") and not arguments.json:
        raise UsageError(f"{len(files)} transcripts as {format_} are as many files: name a folder for them (--out DIR)")
    if arguments.word_timestamps and format_ != "json" and not arguments.json:
        raise UsageError(f"--word-timestamps are written in json, and {format_} has no place for them: add --format json")
    targets = {} if arguments.out is None else transcript_files(arguments.out, files, format_)
    there = finished(targets, single=not several, overwrite=arguments.overwrite)
    for file in there:
        say(f"zoo: {targets[file]} is there already, and left as it is (--overwrite writes it anew)", file=sys.stderr)
    files = [file for file in files if file not in there]
    if not files:
        return 0
    return _transcribe(arguments, files, targets, format_)


def _transcribe(arguments: argparse.Namespace, files: list[Path], targets: dict[Path, Path], format_: str) -> int:
    options = _options(arguments)
    from zoo.tasks.transcription import RunOptions, open_transcriber, transcribe
    from zoo.tasks.voice_activity import open_detector

    built = open_transcriber(model_spec(arguments), engine=arguments.engine)
    load_adapter(built, arguments)
    detector = open_detector() if arguments.vad or arguments.batch_size > 1 else False
    streamed = format_ == "txt" and not targets and len(files) == 1 and not arguments.json
    documents = []
    for file in files:
        target = targets.get(file)
        outcome = transcribe(
            file,
            model=built,
            language=arguments.language,
            task=arguments.task,
            vad=detector,
            batch_size=arguments.batch_size,
            run=RunOptions(
                max_duration_s=arguments.max_duration,
                journal=None if target is None else journal_of(target),
                on_window=_print_window if streamed else None,
                on_done=None if target is None else partial(_write, target, format_),
            ),
            progress=not streamed or not sys.stdout.isatty(),
            **options,
        )
        result = outcome.results[0]
        if result.error:
            say(f"zoo: {result.error}", file=sys.stderr)
        elif target is None and format_ != "json" and not streamed and not arguments.json:
            _print_result(result, format_, len(files))
        documents.append(_document(outcome))
    merged = {**documents[0], "results": [entry for document in documents for entry in document["results"]]}
    if arguments.json or (format_ == "json" and not targets):
        print_json(merged)
    warn_of_random_weights(outcome.provenance)
    note = f"; {outcome.note}" if outcome.note else ""
    language = f", {result.language}" if len(files) == 1 and result.language else ""
    about = f"{spell_model(outcome.provenance)}, {outcome.provenance.kernel}{language}{note}"
    say(about, file=sys.stderr)
    return 1 if any("error" in entry for entry in merged["results"]) else 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the model that were given."""
    options: dict[str, Any] = {name: getattr(arguments, name) for name in NUMBERS if getattr(arguments, name) is not None}
    for name in ("word_timestamps", "carry_initial_prompt", "without_timestamps", "normalise"):
        if getattr(arguments, name):
            options[name] = True
    if arguments.initial_prompt is not None:
        options["initial_prompt"] = text_option(arguments.initial_prompt, "--initial-prompt")
    if arguments.no_previous_text:
        options["condition_on_previous_text"] = False
    for name, kind in (("temperature", float), ("suppress_tokens", int), ("clip_timestamps", float)):
        given = getattr(arguments, name)
        if given is not None:
            options[name] = _numbers(f"--{name.replace('_', '-')}", given, kind)
    if arguments.seed:
        options["seed"] = arguments.seed
    return options


def _numbers(flag: str, text: str, kind: type[float | int]) -> tuple[float, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{flag} takes numbers between commas, got {text!r}") from None


def _write(target: Path, format_: str, outcome: Any) -> None:
    (result,) = outcome.results
    if result.error:
        return
    as_json = json.dumps(_document(outcome), ensure_ascii=False, indent=2) + "\n"
    write_transcript(target, as_json if format_ == "json" else _formatted(result, format_))
    say(f"{target}", file=sys.stderr)


def _formatted(result: Any, format_: str) -> str:
    from zoo.data.subtitles import FORMATS as WRITERS

    return WRITERS[format_](result.segments)


def _print_window(_: str, window: Any) -> None:
    from zoo.data.subtitles import plain

    say(plain(window.segments), end="", flush=True)


def _print_result(result: Any, format_: str, count: int) -> None:
    if count > 1 and format_ == "txt":
        say(f"{result.input}: {result.text}")
        return
    say(_formatted(result, format_), end="")


def _document(outcome: Any) -> dict[str, Any]:
    """The JSON document of a transcription."""
    return {
        **about_model(outcome.provenance),
        "weights": outcome.provenance.weights,
        "settings": outcome.settings,
        "note": outcome.note,
        "results": [
            {"input": result.input, "error": result.error}
            if result.error
            else {
                "input": result.input,
                "text": result.text,
                "language": result.language,
                "duration_s": result.duration_s,
                "warnings": list(result.warnings),
                "segments": [_segment(segment) for segment in result.segments],
            }
            for result in outcome.results
        ],
    }


def _segment(segment: Any) -> dict[str, Any]:
    fields = asdict(segment)
    if fields["words"] is None:
        del fields["words"]
    return fields
