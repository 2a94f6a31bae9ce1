"""Word error rate of speech to text: ours, openai-whisper and faster-whisper on the same Whisper base, and pocketsphinx, no neural network.

    python benchmarks/transcribe_weights.py WEIGHTS       # once; its head says what it needs
    python benchmarks/transcribe_wer.py --data DATA --weights WEIGHTS --peers-python PYTHON

DATA is the cache of speech_data.py, which says what the two sets are: 5 clips of LibriVox and 196 telephone prompts. PYTHON has
openai-whisper 20250625, faster-whisper 1.2.1 and pocketsphinx 5.1.1; this Python has zoo with its plugin whisper, jiwer, and
openai-whisper for its EnglishTextNormalizer, by which references and answers go before words are counted. Each system is a process of
its own with one thread and hears the same samples (transcribe_peers.py says with which settings); two run at a time. What it
prints is kept in results/transcribe_wer.txt.

An interval is of 10,000 bootstrap draws of files. All prompts are one speaker's in one studio and the clips another's, so it says how far
these figures would move with other sentences of theirs, and nothing about other voices. A difference is paired: the same draws of the
same files for both. Below the tables stand files on which ours in float32 and openai-whisper write different text.

Expected before measuring: ours in float32 writes openai-whisper's text, character for character, but where a temperature above 0 draws
at random, so a difference of 0 on the clips and within half a point on the prompts; int8 within a point of that on both sides; about 5 %
on the clips and 8 % on the prompts, many of which are torn from their sentences; pocketsphinx above 25 % on both.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
from machine import machine, progress, show
from speech_data import SETS, Utterance

OURS, REFERENCE = "zoo-float32", "openai-whisper"
SYSTEMS = (OURS, REFERENCE, "faster-whisper-int8", "zoo-int8", "pocketsphinx")
DRAWS = 10_000

Row = dict[str, Any]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Heard(NamedTuple):
    """What a system wrote of each file, and how many words of it are wrong."""

    texts: list[str]
    errors: Numbers


def answers(system: str, utterances: Sequence[Utterance], options: argparse.Namespace) -> list[str]:
    """The texts, by a process of its own."""
    python = sys.executable if system.startswith("zoo") else options.peers_python
    command = [python, str(Path(__file__).with_name("transcribe_peers.py")), "--peer", system]
    command += ["--weights", str(options.weights), "--threads", "1"]
    paths = "".join(f"{utterance.path}\n" for utterance in utterances)
    run = subprocess.run(command, input=paths, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line)["text"] for line in run.stdout.splitlines()[1:]]


def wrong(reference: str, answer: str) -> int:
    """Words to change, put in or leave out."""
    found = jiwer.process_words(reference, answer)
    return found.substitutions + found.insertions + found.deletions


def rate(errors: Numbers, words: Numbers) -> list[float]:
    """Errors for each 100 words of the references, and the interval in which 95 % of the draws lie."""
    drawn = np.random.default_rng(0).integers(len(words), size=(DRAWS, len(words)))
    low, high = np.percentile(100 * errors[drawn].sum(1) / words[drawn].sum(1), (2.5, 97.5))
    return [round(float(value), 2) for value in (100 * errors.sum() / words.sum(), low, high)]


def listen(utterances: Sequence[Utterance], options: argparse.Namespace) -> tuple[dict[str, Heard], Numbers]:
    """What each system makes of one set, and the words of each reference."""
    normal = import_module("whisper.normalizers").EnglishTextNormalizer()
    references = [normal(utterance.text) for utterance in utterances]
    words = np.array([len(reference.split()) for reference in references], np.float64)
    heard = {}
    with ThreadPoolExecutor(2) as pool:
        for system, texts in zip(SYSTEMS, pool.map(lambda one: answers(one, utterances, options), SYSTEMS), strict=True):
            pairs = zip(references, texts, strict=True)
            errors = [wrong(reference, normal(text)) for reference, text in pairs]
            heard[system] = Heard(texts, np.array(errors, np.float64))
            progress(f"{system}: {len(texts)} files")
    return heard, words


def table(heard: dict[str, Heard], words: Numbers) -> list[Row]:
    """A row for each system."""
    theirs, rows = heard[REFERENCE], []
    for system, (texts, errors) in heard.items():
        row: Row = {"system": system, "errors": int(errors.sum()), "words": int(words.sum())}
        row |= {"wer": rate(errors, words), "minus_reference": rate(errors - theirs.errors, words)}
        row |= {"same_text": sum(map(str.__eq__, texts, theirs.texts)), "errors_by_file": errors.astype(int).tolist()}
        rows.append(row)
    return rows


def print_rows(name: str, rows: Sequence[Row]) -> None:
    show(f"\n{name}: {len(rows[0]['errors_by_file'])} files, {rows[0]['words']} words after normalisation")
    for row in rows:
        value, low, high = row["wer"]
        line = f"  {row['system']:<24} {row['errors']:>4} errors  WER {value:>5.2f} %  [{low:>5.2f}, {high:>5.2f}]"
        if row["system"] != REFERENCE:
            value, low, high = row["minus_reference"]
            line += f"   minus {REFERENCE} {value:>+6.2f} [{low:>+6.2f}, {high:>+6.2f}]"
            line += ", equal" if value == low == high == 0 else ""
            line += f", the same text in {row['same_text']}"
        show(line)


def print_differences(utterances: Sequence[Utterance], heard: dict[str, Heard]) -> None:
    for utterance, mine, theirs in zip(utterances, heard[OURS].texts, heard[REFERENCE].texts, strict=True):
        if mine != theirs:
            show(f"  {utterance.path.stem}\n    said   {utterance.text}\n    ours   {mine}\n    openai {theirs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers")
    options = parser.parse_args()
    show(machine())
    for name, find in SETS.items():
        utterances = find(options.data)
        heard, words = listen(utterances, options)
        print_rows(name, table(heard, words))
        print_differences(utterances, heard)


if __name__ == "__main__":
    main()
