"""Word error rate of speech to text: ours, openai-whisper, faster-whisper and whisper.cpp on the same Whisper base, and pocketsphinx.

    python benchmarks/transcribe_weights.py --folder WEIGHTS       # once; its head says what it needs
    python benchmarks/transcribe_wer.py --data DATA --weights WEIGHTS --peers-python PYTHON [--systems ...] [--threads 1]

DATA is a cache for speech_data.py, which fetches the two sets. PYTHON has openai-whisper 20250625, faster-whisper, pywhispercpp and
pocketsphinx; this Python has zoo with its plugin whisper, jiwer, and openai-whisper for its EnglishTextNormalizer, by which references
and answers go before words are counted. Each system is a process of its own (transcribe_peers.py says with which settings).

An interval is of 10,000 bootstrap draws of utterances. All prompts are one speaker's in one studio and the clips another's, so it says how
far these figures would move with other sentences of theirs, and nothing about other voices. A difference is paired: the same draws of the
same utterances for both. Below the tables stand utterances on which ours and openai-whisper write different text.

Expected before measuring: ours in float32 writes openai-whisper's text, character for character, but where a temperature above 0 draws
at random, so a difference of 0 on the clips and within half a point on the prompts; int8 within a point of that on both sides; about 5 %
on the clips and 8 % on the prompts, many of which are torn from their sentences; pocketsphinx above 25 % on both.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
from machine import machine, progress, show
from speech_data import SETS, Utterance
from whisper.normalizers import EnglishTextNormalizer

OURS, REFERENCE = "zoo-float32", "openai-whisper"
SYSTEMS = (
    *(OURS, "zoo-int8", REFERENCE, "faster-whisper-float32", "faster-whisper-int8", "faster-whisper-int8-beam5"),
    *("whisper.cpp-f16", "pocketsphinx"),
)
DRAWS = 10_000
DIFFERENT = 12  # utterances that are shown

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Heard(NamedTuple):
    """What a system wrote of each utterance, and how many words of it are wrong."""

    texts: list[str]
    errors: Numbers


def answers(system: str, utterances: Sequence[Utterance], options: argparse.Namespace) -> list[str] | None:
    """The texts by a process of its own; None where it does not run here."""
    python = sys.executable if system.startswith("zoo") else options.peers_python
    command = [python, str(Path(__file__).with_name("transcribe_peers.py")), "--peer", system]
    command += ["--weights", str(options.weights), "--threads", str(options.threads)]
    run = subprocess.run(
        [*command, *(str(utterance.path) for utterance in utterances)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        progress(f"{system}: {run.stderr.strip().splitlines()[-1:]}")
        return None
    return [json.loads(line)["text"] for line in run.stdout.splitlines() if line.startswith("{")]


def rate(errors: Numbers, words: Numbers, drawn: Any) -> tuple[float, float, float]:
    """Errors for each 100 words of the reference, and the interval in which 95 % of the draws lie."""
    draws = 100 * errors[drawn].sum(1) / words[drawn].sum(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return 100 * float(errors.sum() / words.sum()), float(low), float(high)


def table(name: str, utterances: Sequence[Utterance], options: argparse.Namespace) -> None:
    normal = EnglishTextNormalizer()
    references = [normal(utterance.text) for utterance in utterances]
    words = np.array([len(reference.split()) for reference in references], np.float64)
    drawn = np.random.default_rng(0).integers(len(utterances), size=(DRAWS, len(utterances)))
    heard: dict[str, Heard] = {}
    for system in options.systems:
        texts = answers(system, utterances, options)
        if texts is not None:
            counted = [wrong(reference, normal(text)) for reference, text in zip(references, texts, strict=True)]
            heard[system] = Heard(texts, np.array(counted, np.float64))
            progress(f"{name}: {system}")
    show(f"\n{name}: {len(utterances)} utterances, {words.sum():.0f} words after normalisation")
    theirs = heard.get(REFERENCE)
    for system, (texts, errors) in heard.items():
        value, low, high = rate(errors, words, drawn)
        row = f"  {system:<26} {errors.sum():>4.0f} errors  WER {value:>5.1f} %  [{low:>4.1f}, {high:>4.1f}]"
        if theirs is not None and system != REFERENCE:
            value, low, high = rate(errors - theirs.errors, words, drawn)
            same = sum(text == other for text, other in zip(texts, theirs.texts, strict=True))
            row += f"   minus {REFERENCE} {value:>+5.1f} [{low:>+5.1f}, {high:>+5.1f}], the same text in {same}"
        show(row)
    if theirs is not None and OURS in heard:
        rows = zip(utterances, heard[OURS].texts, theirs.texts, strict=True)
        different = [row for row in rows if row[1] != row[2]]
        for utterance, our_text, their_text in different[:DIFFERENT]:
            show(f"  {utterance.path.stem}\n    said   {utterance.text}\n    ours   {our_text}\n    openai {their_text}")
        if different[DIFFERENT:]:
            show(f"  and {len(different) - DIFFERENT} more")


def wrong(reference: str, answer: str) -> int:
    """Words to change, put in or leave out."""
    found = jiwer.process_words(reference, answer)
    return found.substitutions + found.insertions + found.deletions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    show(machine())
    for name in options.sets:
        table(name, SETS[name](options.data), options)


if __name__ == "__main__":
    main()
