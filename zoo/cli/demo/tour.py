"""The guided tour: bundled photos, a few words and a recording, real weights, and a picture of the answers."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageDraw, ImageFont, ImageOps

from zoo.errors import ZooError
from zoo.models.build import ModelSpec
from zoo.registry.atomic_write import atomic_write
from zoo.tasks.classify import Answer, Classification, classify
from zoo.tasks.generation import Generation, generate, score
from zoo.tasks.language_model import open_language_model
from zoo.tasks.transcription import Transcription, transcribe

_Outcome = TypeVar("_Outcome")
PHOTOS = Path(__file__).with_name("photos")
RECORDING = Path(__file__).with_name("sounds") / "sense_and_sensibility.flac"
LABELS_BESIDE = ("dog", "horse", "car", "bicycle", "pizza", "beach", "city street", "book")
SENTENCE = "The capital of France is"
QUESTION = "What is 2 + 3?"
RIDDLE, RIDDLE_CHOICES = "A dog is an animal. A rose is a", ("flower", "machine", "city")
COLUMNS = 5
CELL_WIDTH, CELL_HEIGHT, MARGIN = 250, 242, 12
RIGHT, WRONG, INK, PAPER = "#1a7f37", "#b42318", "#1f2328", "#ffffff"


def tour(out: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Classify the bundled photos twice (free labels, a model's own classes), draw a contact sheet, ask a language model, write down a
    recording, and report.

    out: folder for `contact-sheet.png`. say: called with each line meant for a person.
    Returns what was asked, the answers, the models and weights that gave them, and the seconds each took; None in the place of a part whose
    model cannot be had, and why under `missing`. Raises OSError where the disk refuses.
    """
    rows = json.loads((PHOTOS / "photos.json").read_text(encoding="utf-8"))
    photos = [row for row in rows if row["kind"] == "thing"]
    files = [str(PHOTOS / photo["file"]) for photo in photos]
    labels = sorted({photo["label"] for photo in photos} | set(LABELS_BESIDE))
    missing: dict[str, str] = {}

    def part(name: str, work: Callable[[], _Outcome]) -> _Outcome | None:
        try:
            return work()
        except ZooError as error:  # the others may be had all the same
            say(f"   left out: {error}")
            missing[name] = str(error)
            return None

    zero_shot = part("zero_shot", lambda: _classify_freely(files, photos, labels, say))
    own = part("own_classes", lambda: _classify_by_classes(files[:4], photos, say))
    language = part("language", lambda: _ask_language_model(say))
    recording = part("recording", lambda: _hear(say))
    sheet = None if zero_shot is None else _write_sheet(photos, zero_shot[0], out)
    if sheet is not None:
        say(f"\nThe answers on the photos: {sheet}")
    if missing:
        say(f"\nLeft out: {', '.join(missing)}. What could be had is above; connect once and run: zoo fetch --defaults")
    say(
        "Next: zoo classify YOUR.jpg --labels cat,dog,car   zoo transcribe YOUR.mp3   zoo generate 'Once upon a time'   zoo list"
    )
    return {
        "right": None if zero_shot is None else _count_right(photos, zero_shot[0]),
        "photos": len(photos),
        "labels": labels,
        "zero_shot": zero_shot and _fields(*zero_shot),
        "own_classes": own and _fields(*own),
        "language": language,
        "recording": recording,
        "contact_sheet": sheet and str(sheet),
        "missing": missing,
    }


def _classify_freely(
    files: list[str], photos: list[dict[str, Any]], labels: list[str], say: Callable[[str], None]
) -> tuple[Classification, float]:
    say(f"1. Free labels: which of these {len(labels)} words fits each of {len(photos)} photos?")
    say(textwrap.fill(", ".join(labels), 100, initial_indent="   ", subsequent_indent="   "))
    outcome, seconds = _timed(lambda: classify(files, labels, top=3))
    for photo, answer in zip(photos, outcome.results, strict=True):
        correct = answer.label == photo["label"]
        say(f"   {'right' if correct else 'WRONG'}  {photo['file']:<14} {_spell(answer)}{_expected(photo, answer)}")
    right = _count_right(photos, outcome)
    say(f"   {right} of {len(photos)} right (chance: {len(photos) / len(labels):.1f}) in {seconds:.1f} s")
    _say_origin(outcome, say)
    return outcome, seconds


def _classify_by_classes(
    files: list[str], photos: list[dict[str, Any]], say: Callable[[str], None]
) -> tuple[Classification, float]:
    say("\n2. No labels: the 1,000 ImageNet classes that the image model was trained on.")
    outcome, seconds = _timed(lambda: classify(files, top=3))
    for photo, answer in zip(photos, outcome.results, strict=False):
        say(f"          {photo['file']:<14} {_spell(answer)}")
    _say_origin(outcome, say)
    return outcome, seconds


def _write_sheet(photos: list[dict[str, Any]], outcome: Classification, out: Path) -> Path:
    sheet = out / "contact-sheet.png"
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(sheet) as temporary:
        contact_sheet(photos, outcome).save(temporary, format="PNG")
    return sheet


def _ask_language_model(say: Callable[[str], None]) -> dict[str, Any]:
    say("\n3. A language model: what comes next, an answer, and which of three words fits.")
    spoken, seconds = _timed(_speak)
    completed, answered, chosen = (outcome.results[0] for outcome in spoken)
    say(f"          {SENTENCE} ...  {completed.text.strip()}")
    say(f"          {QUESTION}  {answered.text.strip()}")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in chosen.scores.items())
    say(f"          {RIDDLE} ...  {shares}   ({seconds:.1f} s in all)")
    _say_origin(spoken[0], say)
    return {
        "model": spoken[0].provenance.model,
        "kernel": spoken[0].provenance.kernel,
        "seconds": round(seconds, 3),
        "completion": completed.text,
        "answer": answered.text,
        "choice": chosen.choice,
        "scores": chosen.scores,
    }


def _hear(say: Callable[[str], None]) -> dict[str, Any]:
    say("\n4. A recording: what does she read?")
    heard, seconds = _timed(lambda: transcribe(RECORDING))
    (said,) = heard.results
    say(textwrap.fill(said.text, 100, initial_indent=" " * 10, subsequent_indent=" " * 10))
    say(f"          ({said.language}, {said.duration_s:.1f} s of sound in {seconds:.1f} s, the weights read and checked)")
    _say_origin(heard, say)
    return {
        "model": heard.provenance.model,
        "weights": heard.provenance.weights,
        "seconds": round(seconds, 3),
        "text": said.text,
        "language": said.language,
        "duration_s": said.duration_s,
    }


def contact_sheet(photos: list[dict[str, Any]], outcome: Classification) -> Image.Image:
    """The photos in a grid, the answer and its probability under each, green where it is right and red where not."""
    rows = -(-len(photos) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL_WIDTH + MARGIN, rows * CELL_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=21), ImageFont.load_default(size=14)
    picture_width, picture_height = CELL_WIDTH - MARGIN, CELL_HEIGHT - 62
    for index, (photo, answer) in enumerate(zip(photos, outcome.results, strict=True)):
        left, top = MARGIN + index % COLUMNS * CELL_WIDTH, MARGIN + index // COLUMNS * CELL_HEIGHT
        with Image.open(PHOTOS / photo["file"]) as image:
            picture = ImageOps.fit(image.convert("RGB"), (picture_width, picture_height))
        sheet.paste(picture, (left, top))
        correct = answer.label == photo["label"]
        text = f"{answer.label}  {answer.score:.0%}"
        draw.text((left, top + picture_height + 4), text, fill=RIGHT if correct else WRONG, font=large)
        second = list(answer.scores.items())[1]
        draw.text((left, top + picture_height + 32), f"then {second[0]} {second[1]:.0%}", fill=INK, font=small)
    return sheet


def _speak() -> tuple[Generation, Generation, Generation]:
    """A completion, an answer and a choice, by the default decoder."""
    language = open_language_model(ModelSpec(kernel="int4"))
    return (
        generate(SENTENCE, model=language, max_tokens=8, stop=["."]),
        generate(QUESTION, model=language, chat=True, max_tokens=40),
        score(RIDDLE, RIDDLE_CHOICES, model=language),
    )


def _timed(work: Callable[[], _Outcome]) -> tuple[_Outcome, float]:
    start = time.perf_counter()
    outcome = work()
    return outcome, time.perf_counter() - start


def _spell(answer: Answer) -> str:
    return ", ".join(f"{label} {score:.0%}" for label, score in answer.scores.items())


def _count_right(photos: list[dict[str, Any]], outcome: Classification) -> int:
    return sum(answer.label == photo["label"] for photo, answer in zip(photos, outcome.results, strict=True))


def _expected(photo: dict[str, Any], answer: Answer) -> str:
    return "" if answer.label == photo["label"] else f"   (it shows: {photo['label']})"


def _say_origin(outcome: Classification | Generation | Transcription, say: Callable[[str], None]) -> None:
    made_by = outcome.provenance
    say(f"   answered by {made_by.model} from {made_by.distribution} {made_by.version}, weights:")
    for name, files in made_by.weights.items():
        say(f"     {name}  sha256 {files['model'][:16]}")


def _fields(outcome: Classification, seconds: float) -> dict[str, Any]:
    return {
        "model": outcome.provenance.model,
        "plugin": {"dist": outcome.provenance.distribution, "version": outcome.provenance.version},
        "weights": outcome.provenance.weights,
        "seconds": round(seconds, 3),
        "results": [
            {"input": Path(answer.input).name, "label": answer.label, "score": answer.score, "scores": answer.scores}
            for answer in outcome.results
        ],
    }
