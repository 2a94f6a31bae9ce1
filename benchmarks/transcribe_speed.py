"""Speech to text side by side, on the same Whisper base: ours, openai-whisper, transformers, faster-whisper and whisper.cpp.

    python benchmarks/transcribe_weights.py WEIGHTS       # once; its head says what it needs
    python benchmarks/transcribe_speed.py --data DATA --weights WEIGHTS --peers-python PYTHON [--runs 3]
        [--tasks clip7 clip27 long batched hour]

Each engine is a process of its own (transcribe_peers.py says with which settings), with 2 threads, that stays; they take turns on the
same file. Seconds are from a path to the text, with the model loaded and another clip transcribed before. A turn begins when other
processes rest, or after a minute; one during which they took more than a tenth of a core is taken again, and the less disturbed counts:
`others` says how many cores they had meanwhile, as a median. A ratio is of two turns of the same round; its median over the rounds
stands with the least and the greatest. What it prints is kept in results/transcribe_speed.txt.

DATA is the cache of speech_data.py, which also says what the sounds are; this Python has zoo with its plugins whisper and audio, jiwer and
openai-whisper. PYTHON has the peers: torch 2.11.0, openai-whisper 20250625, transformers 5.23.0, faster-whisper 1.2.1, and pywhispercpp
1.5.1 built for this processor, whose site-packages LD_LIBRARY_PATH must name then; an engine that does not start is left out:

    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON" PYTHON -m pip install --no-binary pywhispercpp pywhispercpp==1.5.1

    clip7, clip27   one window of 30 s: an encoder pass and some 30 or 90 steps of the decoder
    long            a file of 298 s, window after window with the text before as a prompt
    batched         the same, 8 windows at once, by engines that can; openai-whisper beside them one after another
    hour            a file of 3,600 s once, ours alone with one thread: how far memory grows above the process with its model

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
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine, progress, show
from speech_data import Utterance, librivox, seconds, sounds
from transcribe_peers import busy
from transcribe_wer import wrong

ATTEMPTS = 2
QUIET = 0.1  # cores that others may take
PATIENCE = 60  # seconds in which they may come to rest before a turn
OURS = ("zoo-float32", "zoo-int8", "zoo-bf16-q8")
FASTER = ("faster-whisper-float32", "faster-whisper-int8")
ALL = (*OURS, "openai-whisper", "transformers", *FASTER, "faster-whisper-int8-beam5", "whisper.cpp-f16", "whisper.cpp-q8_0")

Row = dict[str, Any]


class Task(NamedTuple):
    """Who transcribes which sound, with how many threads, and how many windows at once."""

    sound: str
    peers: Sequence[str]
    threads: int = 2
    batch: int = 1


TASKS = {
    "clip7": Task("clip7", ALL),
    "clip27": Task("clip27", ALL),
    "long": Task("long", ALL),
    "batched": Task("long", (*OURS, "openai-whisper", *FASTER), batch=8),
    "hour": Task("hour", ("zoo-float32",), threads=1),
}


class Engine:
    """A process that transcribes what it is asked to."""

    def __init__(self, peer: str, task: Task, options: argparse.Namespace) -> None:
        python = sys.executable if peer in OURS else options.peers_python
        command = [python, str(Path(__file__).with_name("transcribe_peers.py")), "--peer", peer, "--batch", str(task.batch)]
        command += ["--weights", str(options.weights), "--threads", str(task.threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(task.threads)}
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
            settle()
            rows.append(self.ask(path))
            if rows[-1]["others"] <= QUIET:
                break
        return min(rows, key=lambda row: float(row["others"]))

    def close(self) -> None:
        self.process.communicate()


def settle() -> None:
    """Wait for a quiet second, so long as there is hope."""
    for _ in range(PATIENCE):
        before = busy()
        time.sleep(1)
        if busy() - before <= QUIET:
            break


def opened(task: Task, options: argparse.Namespace) -> dict[str, Engine]:
    """The engines that run here, warm."""
    engines = {}
    for peer in task.peers:
        try:
            engines[peer] = Engine(peer, task, options)
            engines[peer].ask(librivox(options.data)[1].path)
        except RuntimeError as error:
            progress(f"{peer} is left out: {error}")
    return engines


def rounds(name: str, path: Path, options: argparse.Namespace) -> dict[str, list[Row]]:
    """What each engine needed in each round."""
    task = TASKS[name]
    engines = opened(task, options)
    found: dict[str, list[Row]] = {peer: [] for peer in engines}
    runs, attempts = (1, 1) if name == "hour" else (options.runs, ATTEMPTS)
    for number in range(runs):
        for peer, engine in engines.items():
            found[peer].append(row := engine.turn(path, attempts))
            progress(f"{name} {number + 1} of {runs}: {peer} {row['seconds']:.2f} s, others {row['others']:.2f} cores")
    for engine in engines.values():
        engine.close()
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and greatest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def table(found: dict[str, list[Row]], sound: Utterance) -> list[Row]:
    """A row for each engine; over is how many times the seconds of one of ours it needed."""
    normal = import_module("whisper.normalizers").EnglishTextNormalizer()
    reference = normal(sound.text)
    table = []
    for peer, rows in found.items():
        row: Row = {"engine": peer, "runs": len(rows), "seconds": spread([one["seconds"] for one in rows])}
        row["cpu_seconds"] = spread([one["cpu_seconds"] for one in rows])
        row["others"] = spread([one["others"] for one in rows])
        row["over"] = {
            mine: spread([one["seconds"] / other["seconds"] for one, other in zip(rows, found[mine], strict=True)])
            for mine in OURS
            if mine in found
        }
        row["peak_mib"] = round(max(one["peak_mib"] for one in rows))
        row["grows_mib"] = round(max(one["grows_mib"] for one in rows))
        row["errors"] = max(wrong(reference, normal(one["text"])) for one in rows)
        table.append(row)
    return table


def print_rows(name: str, rows: Sequence[Row], length: float) -> None:
    show(
        f"\n{name}: {length:.1f} s of sound, {TASKS[name].threads} threads, median (least to greatest) of {rows[0]['runs']}"
    )
    for row in rows:
        median, least, most = row["seconds"]
        line = f"  {row['engine']:<26}{median:>7.2f} s ({least:.2f} to {most:.2f}) {length / median:>5.1f}x real time"
        for mine, (median, least, most) in row["over"].items():
            line += f"   {mine} {median:.2f}x ({least:.2f} to {most:.2f})"
        line += f"   peak {row['peak_mib']} MiB, grows {row['grows_mib']}"
        line += "" if name == "hour" else f", {row['errors']} errors"
        show(f"{line}   others {row['others'][0]:.2f} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    show(machine())
    made = sounds(options.data)
    for name in options.tasks:
        sound = made[TASKS[name].sound]
        print_rows(name, table(rounds(name, sound.path, options), sound), seconds(sound.path))


if __name__ == "__main__":
    main()
