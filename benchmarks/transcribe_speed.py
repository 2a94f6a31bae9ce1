"""Speech to text side by side, on the same Whisper base: ours, openai-whisper, transformers, faster-whisper and whisper.cpp.

    python benchmarks/transcribe_weights.py WEIGHTS       # once; its head says what it needs
    python benchmarks/transcribe_speed.py --data DATA --weights WEIGHTS --peers-python PYTHON [--tasks ...]

Each engine is a process of its own (transcribe_peers.py says with which settings), with 2 threads, that stays; they take turns on the
same file. Seconds are from a path to the text, with the model loaded and another clip transcribed before. A turn during which other
processes took more than a tenth of a core is taken again, as often as TASKS says, and the least disturbed counts. A ratio is of two
turns of the same round; its median over the rounds stands with the least and the greatest. Writes results/transcribe_speed.json, task by
task; tasks that are not asked for stay as they were.

DATA is the cache of speech_data.py, which also says what the sounds are; this Python has zoo with its plugins whisper and audio, jiwer and
openai-whisper. PYTHON has the peers: torch 2.11.0, openai-whisper 20250625, transformers 5.23.0, faster-whisper 1.2.1, and pywhispercpp
1.5.1 built for this processor:

    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON" PYTHON -m pip install --no-binary pywhispercpp pywhispercpp==1.5.1

    clip7, clip27   one window of 30 s: an encoder pass and some 30 or 90 steps of the decoder
    long            a file of 298 s, window after window with the text before as a prompt
    batched         the same, 8 windows at once, by engines that can
    hour            a file of 3,600 s once, ours alone: how far memory grows above the process with its model

Memory is resident: `peak` the most at any time, loading included, `grows` the most during the task above the process with its model. Errors
are of words against the reference, both normalised (transcribe_wer.py is about errors; here they say whether speed was bought with them).

Expected before measuring, as targets: at least 3x as fast as openai-whisper and transformers, and 2x as faster-whisper in int8 with
the same beam; at most 0.7 GB at the peak; on the hour less than 300 MB above the model. Expected of a processor with AVX2 alone, where
oneDNN's and CTranslate2's products are nearly as fast as ours can be: less, 1.3x openai-whisper in float32, 1.8x in int8, and level with
faster-whisper's int8.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine, progress, show
from speech_data import Utterance, librivox, seconds, sounds
from transcribe_wer import wrong

THREADS = 2
QUIET = 0.1  # cores that others may take
OURS = ("zoo-float32", "zoo-int8")
FASTER = ("faster-whisper-float32", "faster-whisper-int8")
ALL = (*OURS, "openai-whisper", "transformers", *FASTER, "faster-whisper-int8-beam5", "whisper.cpp-f16", "whisper.cpp-q8_0")
RESULT = Path(__file__).with_name("results") / "transcribe_speed.json"

Row = dict[str, Any]


class Task(NamedTuple):
    """Who transcribes which sound how often: attempts is how often a turn is taken while others are at work."""

    sound: str
    peers: Sequence[str]
    runs: int
    attempts: int
    batch: int = 1


TASKS = {
    "clip7": Task("clip7", ALL, runs=5, attempts=6),
    "clip27": Task("clip27", ALL, runs=5, attempts=4),
    "long": Task("long", ALL, runs=3, attempts=2),
    "batched": Task("long", (*OURS, *FASTER), runs=3, attempts=2, batch=8),
    "hour": Task("hour", OURS, runs=1, attempts=1),
}


class Engine:
    """A process that transcribes what it is asked to."""

    def __init__(self, peer: str, batch: int, options: argparse.Namespace) -> None:
        python = sys.executable if peer in OURS else options.peers_python
        command = [python, str(Path(__file__).with_name("transcribe_peers.py")), "--peer", peer, "--batch", str(batch)]
        command += ["--weights", str(options.weights), "--threads", str(THREADS)]
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.loaded_mib: float = self._row()["loaded_mib"]

    def _row(self) -> Row:
        for line in self.process.stdout or ():
            if line.startswith("{"):
                row: Row = json.loads(line)
                return row
        raise RuntimeError(f"it ended with {self.process.wait()}")

    def ask(self, path: Path) -> Row:
        print(path, file=self.process.stdin, flush=True)
        row = self._row()
        return {**row, "grows_mib": row["run_mib"] - self.loaded_mib}

    def turn(self, path: Path, attempts: int) -> Row:
        """The least disturbed of some attempts, of which the first quiet one is the last."""
        rows = []
        for _ in range(attempts):
            rows.append(self.ask(path))
            if rows[-1]["others"] <= QUIET:
                break
        return min(rows, key=lambda row: float(row["others"]))

    def close(self) -> None:
        self.process.communicate()


def opened(task: Task, options: argparse.Namespace) -> dict[str, Engine]:
    """The engines that run here, warm."""
    engines = {}
    for peer in task.peers:
        try:
            engines[peer] = Engine(peer, task.batch, options)
            engines[peer].ask(librivox(options.data)[1].path)
        except RuntimeError as error:
            progress(f"{peer} is left out: {error}")
    return engines


def rounds(name: str, path: Path, options: argparse.Namespace) -> dict[str, list[Row]]:
    """What each engine needed in each round."""
    task = TASKS[name]
    engines = opened(task, options)
    found: dict[str, list[Row]] = {peer: [] for peer in engines}
    for number in range(task.runs):
        for peer, engine in engines.items():
            row = engine.turn(path, task.attempts)
            found[peer].append(row)
            progress(f"{name} {number + 1} of {task.runs}: {peer} {row['seconds']:.2f} s, others {row['others']:.2f} cores")
    for engine in engines.values():
        engine.close()
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and greatest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def table(found: dict[str, list[Row]], sound: Utterance) -> list[Row]:
    """A row for each engine; over_X is how many times the seconds of X it needed."""
    normal = import_module("whisper.normalizers").EnglishTextNormalizer()
    reference = normal(sound.text)
    table = []
    for peer, rows in found.items():
        row: Row = {"engine": peer, "seconds": spread([one["seconds"] for one in rows])}
        row["cpu_seconds"] = spread([one["cpu_seconds"] for one in rows])
        row["others"] = spread([one["others"] for one in rows])
        for mine in OURS:
            row[f"over_{mine}"] = spread(
                [one["seconds"] / other["seconds"] for one, other in zip(rows, found[mine], strict=True)]
            )
        row["peak_mib"] = round(max(one["peak_mib"] for one in rows))
        row["grows_mib"] = round(max(one["grows_mib"] for one in rows))
        row["errors"] = max(wrong(reference, normal(one["text"])) for one in rows)
        table.append(row)
    return table


def print_rows(name: str, rows: Sequence[Row], length: float) -> None:
    task = TASKS[name]
    show(f"\n{name}: {length:.1f} s of sound, {THREADS} threads, median (least to greatest) of {task.runs}")
    for row in rows:
        median, least, most = row["seconds"]
        line = f"  {row['engine']:<26}{median:>7.2f} s ({least:.2f} to {most:.2f}) {length / median:>5.1f}x real time"
        for mine in OURS:
            median, least, most = row[f"over_{mine}"]
            line += f"   {mine} {median:.2f}x ({least:.2f} to {most:.2f})"
        line += f"   peak {row['peak_mib']} MiB, grows {row['grows_mib']}"
        line += "" if name == "hour" else f", {row['errors']} errors"
        show(f"{line}   others {row['others'][0]:.2f} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    show(machine())
    made = sounds(options.data)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name in options.tasks:
        sound = made[TASKS[name].sound]
        rows, length = table(rounds(name, sound.path, options), sound), seconds(sound.path)
        print_rows(name, rows, length)
        result[name] = {"machine": machine(), "threads": THREADS, "length_s": length, "rows": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
