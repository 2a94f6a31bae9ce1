"""Speech to text side by side, on the same Whisper base: ours, openai-whisper, transformers, faster-whisper and whisper.cpp.

    python benchmarks/transcribe_weights.py --folder WEIGHTS       # once; its head says what it needs
    python benchmarks/transcribe_speed.py --data DATA --weights WEIGHTS --peers-python PYTHON [--runs 3] [--threads 2 1]
        [--tasks clip7 clip27 long hour] [--only PEER ...]

Every figure is a process of its own (transcribe_peers.py says with which settings), peers take turns, and the median of the runs counts.
Seconds are from a path to the text, with the model loaded and another clip of LibriVox transcribed before. A run during which other
processes took more than a tenth of the cores is taken again, at most twice; the last column says what the worst run that counts had.
DATA is the cache of speech_data.py, which also says what the four sounds are; this Python has zoo with its plugin whisper, jiwer and
openai-whisper. PYTHON has the peers: torch 2.11.0, openai-whisper 20250625, transformers 5.23.0, faster-whisper 1.2.1, and pywhispercpp
1.5.1 built for this processor, as its wheel knows AVX2 at most and no tiled products, which costs it a fifth of its speed or more:

    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON" PYTHON -m pip install --no-binary pywhispercpp pywhispercpp==1.5.1

    clip7, clip27   one window of 30 s: an encoder pass and some 30 or 90 steps of the decoder
    long            a file of 298 s, window after window with the text before as a prompt; then by 8 windows at once, where a peer can
    hour            a file of 3,600 s once, for the memory: ours and openai-whisper

load and peak are the process with its model before it heard anything, and its most at any time; run is the most of the measured
transcription above load. The text is compared with openai-whisper's of the same sound and run, and its words with the reference, both
normalised (transcribe_wer.py is about errors; here they say whether speed was bought with them).

Expected before ours was measured, when a first run of the peers was known, on a processor without AVX512 or AMX, where bfloat16 is
emulated: ours in float32 1.3x openai-whisper on both clips; int8 1.8x, and level with faster-whisper's int8 with one beam; by 8 windows
at once 2x openai-whisper on the long file; hour within 150 MiB above load, against about 1 GiB of openai-whisper's, which holds samples,
spectrogram and their padding whole.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
from machine import machine, progress, show
from speech_data import Utterance, librivox, seconds, sounds
from whisper.normalizers import EnglishTextNormalizer

OURS = ("zoo-float32", "zoo-bf16", "zoo-int8", "zoo-int4")
FASTER = ("faster-whisper-float32", "faster-whisper-int8", "faster-whisper-int8-beam5")
REFERENCE = "openai-whisper"
OTHERS = (REFERENCE, "transformers-fp32", "transformers-bf16", *FASTER, "whisper.cpp-f16", "whisper.cpp-q8_0")
TOGETHER = 8
FOREIGN, ATTEMPTS = 0.1, 3

Row = dict[str, Any]


class Entry(NamedTuple):
    """A line of a table: a peer, and how many windows it decodes together."""

    peer: str
    batch: int = 1

    @property
    def name(self) -> str:
        return self.peer if self.batch == 1 else f"{self.peer}, {self.batch} at once"


TASKS = {
    "clip7": tuple(map(Entry, (*OURS, *OTHERS))),
    "clip27": tuple(map(Entry, (*OURS, *OTHERS))),
    "long": (
        *map(Entry, (*OURS, *OTHERS)),
        *(Entry(peer, TOGETHER) for peer in (*OURS, *FASTER)),
    ),
    "hour": (*(Entry(peer) for peer in ("zoo-float32", REFERENCE)), Entry("zoo-float32", TOGETHER)),
}


def once(entry: Entry, sound: Path, threads: int, options: argparse.Namespace) -> Row | None:
    """One process, again while others are at work; None for a peer that does not run here."""
    python = sys.executable if entry.peer.startswith("zoo") else options.peers_python
    command = [
        python,
        str(Path(__file__).with_name("transcribe_peers.py")),
        "--peer",
        entry.peer,
        "--batch",
        str(entry.batch),
    ]
    command += ["--weights", str(options.weights), "--threads", str(threads), "--warm", str(librivox(options.data)[1].path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    best: Row | None = None
    for _ in range(1 if options.noisy else ATTEMPTS):
        begun, busy, own = time.monotonic(), _busy(), _children()
        run = subprocess.run([*command, str(sound)], capture_output=True, text=True, check=False, env=environment)
        if run.returncode:
            progress(f"{entry.name}: {run.stderr.strip().splitlines()[-1:]}")
            return None
        row: Row = json.loads([line for line in run.stdout.splitlines() if line.startswith("{")][-1])
        others = _busy() - busy - (_children() - own)
        row["foreign"] = max(0.0, others / (time.monotonic() - begun) / (os.cpu_count() or 1))
        best = row if best is None or row["foreign"] < best["foreign"] else best
        if best["foreign"] <= FOREIGN:
            break
    return best


def _busy() -> float:
    """Seconds that all cores have worked since the machine began, those that its host took away among them."""
    ticks = [int(one) for one in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _children() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def table(task: str, sound: Utterance, threads: int, options: argparse.Namespace) -> None:
    """Medians of every peer, as speed-up over openai-whisper and over the best that is not ours."""
    entries = [entry for entry in TASKS[task] if not options.only or entry.peer in options.only]
    runs, found = 1 if task == "hour" else options.runs, {entry: list[Row]() for entry in entries}
    for number in range(runs):
        for entry in entries:
            row = once(entry, sound.path, threads, options)
            if row is not None:
                found[entry].append(row)
                progress(f"{task}, {threads} threads, run {number + 1} of {runs}: {entry.name} {row['seconds']} s")
    length = seconds(sound.path)
    show(f"\n{task}: {length:.1f} s of sound, {threads} thread{'s' if threads > 1 else ''}, median of {runs}")
    medians = {entry: statistics.median(row["seconds"] for row in rows) for entry, rows in found.items() if rows}
    theirs = {entry: value for entry, value in medians.items() if entry.peer not in OURS}
    reference, best = theirs.get(Entry(REFERENCE)), min(theirs.values(), default=None)
    expected = found[Entry(REFERENCE)][0]["text"] if reference else None
    normal = EnglishTextNormalizer()
    for entry, median in medians.items():
        rows = found[entry]
        spent = statistics.median(row["cpu_seconds"] for row in rows)
        line = f"  {entry.name:<36} {median:>7.2f} s ({spent:>7.2f} of a core)  {length / median:>5.1f}x real time"
        line += f"  {reference / median:>5.2f}x {REFERENCE}" if reference else ""
        line += f"  {best / median:>5.2f}x the best peer" if best else ""
        load, peak, run = (max(row[f"{name}_mib"] for row in rows) for name in ("loaded", "peak", "run"))
        line += f"   load {load:>5.0f} MiB, run +{run:>4.0f}, peak {peak:>5.0f}"
        text = rows[0]["text"]
        same = "" if expected is None else f"   {'the same text' if text == expected else 'other text'}"
        if task != "hour":
            words = jiwer.process_words(normal(sound.text), normal(text))
            same += (
                f", {words.substitutions + words.insertions + words.deletions} errors in {len(normal(sound.text).split())}"
            )
        steady = "" if len({row["text"] for row in rows}) == 1 else ", NOT THE SAME IN EACH RUN"
        show(f"{line}{same}{steady}   others took {max(row['foreign'] for row in rows):.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="+", help="peers that take part")
    parser.add_argument("--noisy", action="store_true", help="take each run as it comes, whoever else is at work")
    options = parser.parse_args()
    show(machine())
    made = sounds(options.data)
    for threads in options.threads:
        for task in options.tasks:
            if task != "hour" or threads == max(options.threads):
                table(task, made[task], threads, options)


if __name__ == "__main__":
    main()
