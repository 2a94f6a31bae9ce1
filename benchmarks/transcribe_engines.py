"""Whether both engines of Whisper write the same: `--engine zoo` and `--engine openai`, the same weights, every evaluation file.

    python benchmarks/transcribe_engines.py [DATA]

DATA is the cache of speech_data.py (5 clips of LibriVox, 196 telephone prompts). One process, one thread, float32; each file by ours and
then by openai-whisper's own code on the very tensors, as `zoo transcribe` and `zoo transcribe --engine openai` run them. Compared are text,
language, and the start and end of each segment; a file that differs in one of them is printed. What it prints is kept in
results/transcribe_engines.txt.

Expected before measuring: the same text and language in all; times equal to a hundredth of a second.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from machine import machine, progress, show
from speech_data import CACHE, SETS

import zoo

ENGINES = ("zoo", "openai")
MODEL = "whisper/base"


def main() -> None:
    torch.set_num_threads(1)
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE
    opened = {engine: zoo.open_transcriber(MODEL, engine=engine) for engine in ENGINES}
    show(machine())
    for name, find in SETS.items():
        utterances = find(cache)
        alike, apart_s = 0, 0.0
        for number, utterance in enumerate(utterances):
            progress(f"{name} {number + 1} of {len(utterances)}")
            ours, theirs = (zoo.transcribe(utterance.path, model=opened[engine]).results[0] for engine in ENGINES)
            same = (ours.text, ours.language) == (theirs.text, theirs.language)
            if not same:
                show(
                    f"  {utterance.path.name}\n    zoo     {ours.language} {ours.text}\n    openai  {theirs.language} {theirs.text}"
                )
                continue
            alike += 1
            apart_s = max(apart_s, _apart_s(ours, theirs))
        show(
            f"{name:<9} the same text and language in {alike} of {len(utterances)} files; moments differ by at most {apart_s:.3f} s"
        )


def _apart_s(ours: Any, theirs: Any) -> float:
    """The largest difference of a moment; infinite where the segments are not as many."""
    if len(ours.segments) != len(theirs.segments):
        return float("inf")
    pairs = zip(ours.segments, theirs.segments, strict=True)
    return max(
        (abs(one - other) for a, b in pairs for one, other in ((a.start_s, b.start_s), (a.end_s, b.end_s))), default=0.0
    )


if __name__ == "__main__":
    main()
