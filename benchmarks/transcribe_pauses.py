"""Words that transcription loses where a recording has pauses: batches of windows beside one window after another.

    python benchmarks/transcribe_pauses.py --data DATA

DATA is the cache of speech_data.py. From its two sets 30 recordings are made, of 3 to 7 utterances each in an order that a seed draws, with
a pause of 1 to 6 s after each, and faint noise (60 dB below full scale) under all of it. Half of the recordings have one length of pause, half
have many. Every system hears the same samples, in float32, in English. This Python has zoo with its plugins whisper and audio, jiwer, and
openai-whisper for its EnglishTextNormalizer, by which references and answers go before words are compared. What it prints is kept in
results/transcribe_pauses.txt.

A word is lost where the alignment of reference and answer has nothing in its place, and made up where it has nothing in the reference;
errors count changed words, too. An interval is of 10,000 bootstrap draws of recordings; a difference is paired: the same draws for both. A
cue stretches over a pause where it holds more than a second in which nobody speaks, as the recording was made.

Expected before measuring: batches lose as many words as one window after another, within the interval; neither loses a sentence.
"""

import argparse
import json
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
from machine import machine, progress, show
from speech_data import RATE_HZ, SETS, Utterance

import zoo
from zoo.media.audio import open_audio
from zoo.tasks.transcription import open_transcriber

RECORDINGS, DRAWS = 30, 10_000
PAUSES_S = (1.0, 6.0)
NOISE = 1e-3
LONGEST_SILENCE_S = 1.0  # in a cue
SYSTEMS: dict[str, dict[str, Any]] = {
    "one by one": {},
    "one by one, --vad": {"vad": True},
    "--batch-size 4": {"batch_size": 4},
}

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Samples = np.ndarray[Any, np.dtype[np.float32]]


class Recording(NamedTuple):
    """Samples, what is said in them, and where (start and end in seconds)."""

    samples: Samples
    text: str
    spoken: list[tuple[float, float]]


class Heard(NamedTuple):
    """By recording: words lost, words made up, all errors, cues that stretch over a pause; and how long all took."""

    lost: Numbers
    made_up: Numbers
    errors: Numbers
    stretched: Numbers
    seconds: float


def recordings(utterances: Sequence[Utterance]) -> list[Recording]:
    """What is transcribed, the same whenever it is made."""
    generator = np.random.default_rng(0)
    return [_recording(utterances, generator, alike=number % 2 == 0) for number in range(RECORDINGS)]


def _recording(utterances: Sequence[Utterance], generator: np.random.Generator, *, alike: bool) -> Recording:
    chosen = [
        utterances[int(index)] for index in generator.choice(len(utterances), generator.integers(3, 8), replace=False)
    ]
    same_s = generator.uniform(*PAUSES_S)
    pieces: list[Samples] = []
    spoken, length = [], 0
    for utterance in chosen:
        samples = open_audio(utterance.path, sample_rate_hz=RATE_HZ).samples
        pause = round((same_s if alike else generator.uniform(*PAUSES_S)) * RATE_HZ)
        spoken.append((length / RATE_HZ, (length + len(samples)) / RATE_HZ))
        pieces += [samples, np.zeros(pause, np.float32)]
        length += len(samples) + pause
    noise = NOISE * generator.standard_normal(length).astype(np.float32)
    return Recording(np.concatenate(pieces) + noise, " ".join(utterance.text for utterance in chosen), spoken)


def listen(made: Sequence[Recording], model: Any, options: dict[str, Any]) -> Heard:
    """What one system makes of the recordings."""
    normal = import_module("whisper.normalizers").EnglishTextNormalizer()
    rows, begun = [], time.perf_counter()
    for recording in made:
        sound = zoo.Sound(recording.samples, RATE_HZ)
        (result,) = zoo.transcribe(sound, model=model, language="en", **options).results
        found = jiwer.process_words(normal(recording.text), normal(result.text))
        cues = [segment for segment in result.segments if segment.text.strip()]
        stretched = sum(_silence_s(cue.start_s, cue.end_s, recording.spoken) > LONGEST_SILENCE_S for cue in cues)
        errors = found.deletions + found.insertions + found.substitutions
        rows.append((found.deletions, found.insertions, errors, stretched))
    return Heard(*np.array(rows, np.float64).T, time.perf_counter() - begun)


def _silence_s(start_s: float, end_s: float, spoken: Sequence[tuple[float, float]]) -> float:
    return end_s - start_s - sum(max(0.0, min(end_s, stop) - max(start_s, begin)) for begin, stop in spoken)


def per_hundred(counts: Numbers, words: Numbers) -> str:
    """Of 100 words of the references, with the interval in which 95 % of the draws lie."""
    drawn = np.random.default_rng(0).integers(len(words), size=(DRAWS, len(words)))
    low, high = np.percentile(100 * counts[drawn].sum(1) / words[drawn].sum(1), (2.5, 97.5))
    return f"{100 * counts.sum() / words.sum():>+6.2f} [{low:>+6.2f}, {high:>+6.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="whisper/base")
    options = parser.parse_args()
    utterances = [utterance for find in SETS.values() for utterance in find(options.data)]
    made = recordings(utterances)
    normal = import_module("whisper.normalizers").EnglishTextNormalizer()
    words = np.array([len(normal(recording.text).split()) for recording in made], np.float64)
    model = open_transcriber(options.model)
    heard = {}
    for system, given in SYSTEMS.items():
        heard[system] = listen(made, model, given)
        progress(f"{system}: {json.dumps(heard[system].lost.astype(int).tolist())}")
    length_s = sum(len(recording.samples) for recording in made) / RATE_HZ
    show(machine())
    show(f"{len(made)} recordings, {length_s:.0f} s, {int(words.sum())} words, pauses of 1 to 6 s; {model.name}, float32")
    first = next(iter(heard.values()))
    for system, row in heard.items():
        show(f"  {system:<20} {int(row.lost.sum()):>4} words lost, {int(row.made_up.sum()):>3} made up, {int(row.errors.sum()):>3} errors;"
             f" {int(row.stretched.sum()):>3} cues over a pause; {row.seconds:.0f} s")  # fmt: skip
        show(f"    of 100 words: lost {per_hundred(row.lost, words)}, errors {per_hundred(row.errors, words)}")
        if row is not first:
            show(f"    minus one by one: lost {per_hundred(row.lost - first.lost, words)}, "
                 f"errors {per_hundred(row.errors - first.errors, words)}")  # fmt: skip


if __name__ == "__main__":
    main()
