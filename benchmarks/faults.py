"""Kills and write errors at random points of every command that writes: nothing lost, nothing half, and the same command recovers.

Each command is run a first time and leaves a result; what stands there is then written again, with something else to say, by a run that is
killed, or whose disk refuses. Every second time it is at a call that changes the folder: an open for writing, a rename, an unlink, a new
folder, an fsync (SIGKILL, ENOSPC, EIO); every other time in the middle of a write, at a byte of a file (the limit of a file's size, RLIMIT_FSIZE,
whose signal kills, or is ignored and becomes an error of that write). Afterwards the result must be the old one or the new one, whole; a second run of the same command must end with 0
and the new one, and leave nothing beside it. A command's calls are counted first; they are drawn without repeating one before all were had.

Run: python benchmarks/faults.py [--points N] [--only COMMAND]
"""

import argparse
import builtins
import contextlib
import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "zoo" / "cli" / "demo" / "photos"
KILLED, REFUSED = "kill", "error"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Command:
    """One that writes. first: its words when it makes the old result; again: those of the run that is hit. result: what both write.

    gradual: it takes files away one by one, and may be stopped between two. once: what is there already is refused the second time.
    """

    name: str
    first: tuple[str, ...]
    again: tuple[str, ...]
    result: str
    prepare: Callable[[Path], None] = lambda _: None
    gradual: bool = False
    once: bool = False


def compose(folder: Path, seed: int) -> None:
    """Save a composition over another: no command does it, Python does."""
    import torch

    import zoo

    torch.manual_seed(seed)
    parts: dict[str, Any] = {
        "decoder": "smollm/tiny",
        "encoders": {"image": "clip/tiny-image"},
        "bridge": "perceiver/resampler-tiny",
    }
    zoo.save(zoo.compose(**parts, weights=None, every=1), folder)


def export(folder: Path, seed: int) -> None:
    """An adapter as a folder of PEFT, over another."""
    import torch

    import zoo

    torch.manual_seed(seed)
    adapters = zoo.adapt(zoo.build("lm/llama-tiny", weights=None), "lora", r=2 + 2 * seed, name="a")
    adapters.export("a", folder)


def adapter(path: Path, seed: int) -> None:
    import torch

    import zoo

    torch.manual_seed(seed)
    zoo.adapt(zoo.build("smollm/tiny", weights=None), "lora", r=2 + 2 * seed, name="a").save("a", path)


def photos(folder: Path) -> None:
    """Six pictures, and the same as pairs."""
    (folder / "photos").mkdir()
    for picture in sorted(PHOTOS.glob("*.jpg"))[:6]:
        shutil.copy(picture, folder / "photos")
        (folder / "photos" / picture.name).with_suffix(".txt").write_text("a cat")


def old_lock(folder: Path) -> None:
    (folder / "zoo.lock").write_text("# of an earlier time\n")


def lessons(folder: Path) -> None:
    rows = [{"prompt": f"{number} and {number} is", "completion": f" {2 * number}"} for number in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def noise(folder: Path) -> None:
    """Forty seconds: several windows."""
    import numpy as np
    import soundfile

    samples = 0.1 * np.random.default_rng(0).standard_normal(40 * 16_000)
    soundfile.write(folder / "noise.flac", samples, 16_000)


def old_cache(folder: Path) -> None:
    """Files that no installed card has, derived ones, and what an interrupted download left."""
    for part, names in (
        ("blobs", [f"{number:064x}" for number in range(6)]),
        ("derived", ["a.safetensors", "b.safetensors"]),
    ):
        (folder / "cache" / part).mkdir(parents=True)
        for name in names:
            (folder / "cache" / part / name).write_bytes(name.encode() * 40)


TINY = ("--model", "clip/tiny", "--weights", "none")  # the model decides nothing about how a command writes
TRAIN = ("adapt", "train", "sums.jsonl", "--model", "smollm/tiny", "--weights", "none", "--steps", "2", "--out")
COMMANDS = (
    Command("lock", (), ("lock", "--file", "zoo.lock"), "zoo.lock", old_lock),
    Command("pin", ("default", "classify", "conse/lite0-minilm"), ("default", "generate", "smollm/tiny"), "config.toml"),
    Command("new", (), ("new", "whales", "--into", "whales"), "whales", once=True),
    Command("compose", ("python", "compose", "model", "0"), ("python", "compose", "model", "1"), "model"),
    Command("compose new", (), ("compose", "--decoder", "smollm/tiny", "--encoder", "image=clip/tiny-image", "--bridge", "perceiver/resampler-tiny", "--weights", "none", "--every", "1", "--out", "model"), "model", once=True),
    Command("adapter", ("python", "adapter", "a.safetensors", "0"), ("python", "adapter", "a.safetensors", "1"), "a.safetensors"),
    Command("adapt train", (), (*TRAIN, "a.safetensors"), "a.safetensors", lessons, once=True),
    Command("adapt merge", (*TRAIN, "a.safetensors"), ("adapt", "merge", "a.safetensors", "--model", "smollm/tiny", "--weights", "none", "--out", "m.safetensors"), "m.safetensors", lessons, once=True),
    Command("adapt export", ("python", "export", "peft", "0"), ("python", "export", "peft", "1"), "peft"),
    Command("cache prune", (), ("cache", "--prune"), "cache", old_cache, gradual=True),
    Command("embed", (), ("embed", "photos", *TINY, "--out", "e.npz"), "e.npz", photos),
    Command("search", (), ("search", "photos", "a cat", *TINY), "photos/.zoo-index", photos),
    Command("filter", (), ("filter", "photos", *TINY, "--threshold", "-1", "--out", "kept"), "kept", photos),
    Command("transcribe", (), ("transcribe", "noise.flac", "--model", "whisper/random", "--weights", "none", "--language", "en", "--temperature", "0", "--format", "srt", "--out", "said.srt"), "said.srt", noise, once=True),
)  # fmt: skip


def inject(count: int, kind: str, under: Path) -> Callable[[], int]:
    """Have the `count`-th call that changes something under a folder end in a kill or an error; returns what says how many there were."""
    seen = 0

    def meet(path: Any) -> None:
        nonlocal seen
        try:
            inside = os.path.realpath(os.fsdecode(path)).startswith(str(under))
        except (TypeError, ValueError):
            inside = False
        if not inside:
            return
        seen += 1
        if seen == count and kind == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen == count and kind == REFUSED:
            code = (errno.ENOSPC, errno.EIO)[count % 2]
            raise OSError(code, os.strerror(code), os.fsdecode(path))

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            meet(f"/proc/self/fd/{path}" if isinstance(path, int) else path)
            return function(path, *rest, **named)

        return call

    for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link", "fsync", "fchmod", "chmod"):
        setattr(os, name, watched(getattr(os, name)))
    plain_open, plain_io_open = os.open, io.open

    def open_number(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & WRITES:
            meet(path)
        return plain_open(path, flags, *rest, **named)

    def open_file(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            meet(f"/proc/self/fd/{file}" if isinstance(file, int) else file)
        return plain_io_open(file, mode, *rest, **named)

    os.open, io.open, builtins.open = open_number, open_file, open_file
    return lambda: seen


def act(words: tuple[str, ...]) -> int:
    """Run a command, or one of the functions above, in this process."""
    if words[0] == "python":
        {"compose": compose, "export": export, "adapter": adapter}[words[1]](Path(words[2]), int(words[3]))
        return 0
    from zoo.cli import main

    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)


def limit(size_bytes: int, kind: str) -> None:
    """No file grows beyond so many bytes: a write that would is cut off there, and kills or fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kind == KILLED else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def in_child(
    words: tuple[str, ...], folder: Path, count: int = 0, kind: str = "", size_bytes: int | None = None
) -> tuple[int, int, str]:
    """(exit code, calls that changed something, what it printed to stderr) of a run in a process of its own, forked from this one.

    count, size_bytes: where the fault is, a call or a byte.
    """
    number = folder.parent / "calls"
    number.write_text("0")
    reads, writes = os.pipe()  # which has no limit of a file's size
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.chdir(folder)
            os.dup2(writes, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ |= {
                "ZOO_CONFIG": str(folder / "config.toml"),
                "ZOO_STATE": str(folder.parent / "state"),
                "ZOO_OFFLINE": "1",
                **({"ZOO_CACHE": str(folder / "cache")} if (folder / "cache").is_dir() else {}),
            }
            seen = inject(count, kind, folder.resolve())
            if size_bytes is not None:
                limit(size_bytes, kind)
            try:
                code = act(words)
            except Exception as error:  # noqa: BLE001 - what a user of Python would see
                print(f"{type(error).__module__}.{type(error).__name__}: {error}", file=sys.stderr)
                code = 1 if type(error).__module__.startswith("zoo") or isinstance(error, OSError) else 98
            if size_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            sys.stderr.flush()
            with open(number, "w") as file:  # noqa: PTH123 - outside of the watched folder
                file.write(str(seen()))
        finally:
            os._exit(code)
    os.close(writes)
    with os.fdopen(reads, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(number.read_text() or 0), said


VOLATILE = ("lock",)  # its time says when an index was used last


def content(result: Path) -> dict[str, str]:
    """Path -> hash of every file of a result; times and the like that its own files hold are left out."""
    if result.is_file():
        return {"": hashlib.sha256(result.read_bytes()).hexdigest()}
    files = sorted(path for path in result.rglob("*") if path.is_file() and path.name not in VOLATILE)
    return {
        path.relative_to(result).as_posix(): hashlib.sha256(_comparable(path)).hexdigest()
        for path in files
        if not any(
            part.endswith((".part", ".lock", ".old")) and part.startswith(".") for part in path.relative_to(result).parts
        )
    }


def _comparable(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name != "index.json":
        return data
    document = json.loads(data.partition(b"\n")[2])
    return json.dumps({**document, "files": sorted(document["files"])}, sort_keys=True).encode()


def rubble(folder: Path, clean: set[str]) -> list[str]:
    """What lies in the folder now that did not after an undisturbed run."""
    return sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*")} - clean)


def points(calls: int, largest_bytes: int, wanted: int, seed: int) -> Iterator[tuple[int, int | None]]:
    """(call, None) and (0, byte) in turn."""
    chosen = random.Random(seed)  # noqa: S311 - points to try, the same each time
    rest: list[int] = []
    for number in range(wanted):
        if number % 2:
            yield 0, chosen.randrange(largest_bytes)
            continue
        if not rest:
            rest = list(range(1, calls + 1))
            chosen.shuffle(rest)
        yield rest.pop(), None


def begin(command: Command, folder: Path) -> None:
    """The folder as it is before the run that is hit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command.prepare(folder)
    if command.first:
        code, _, said = in_child(command.first, folder)
        if code:
            raise SystemExit(f"{command.name}: the first run ended with {code}: {said}")


def warm(command: Command, folder: Path) -> None:
    """Have everything imported that a command needs, once, in the process that the others are forked from."""
    folder.mkdir()
    command.prepare(folder)
    os.environ |= {"ZOO_CONFIG": str(folder / "config.toml"), "ZOO_STATE": str(folder / "state"), "ZOO_OFFLINE": "1"}
    here = Path.cwd()
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        act(command.again)
    os.chdir(here)


def try_command(command: Command, kind: str, wanted: int, home: Path) -> tuple[int, dict[str, int], list[str]]:
    """(calls, outcome -> how often, what went wrong) of one command under one kind of fault."""
    folder, start = home / "work", home / "start"
    warm(command, home / "warm")
    begin(command, start)
    shutil.copytree(start, folder, symlinks=True, dirs_exist_ok=True)
    old = content(folder / command.result)
    code, calls, said = in_child(command.again, folder)
    if code:
        raise SystemExit(f"{command.name}: an undisturbed run ended with {code}: {said}")
    new, clean = content(folder / command.result), {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    written = folder / command.result
    largest = max(1, *(file.stat().st_size for file in (written, *written.rglob("*")) if file.is_file()), 1)
    counts, complaints = {"old": 0, "new": 0}, []
    for point, byte in points(calls, largest, wanted, seed=len(command.name)):
        shutil.rmtree(folder)
        shutil.copytree(start, folder, symlinks=True)
        code, _, said = in_child(command.again, folder, point, kind, byte)
        found = content(folder / command.result)
        state = "old" if found == old else "new" if found == new else ""
        place = f"call {point} of {calls}" if byte is None else f"byte {byte:,} of {largest:,}"
        where = f"{command.name}, {kind} at {place}"
        # Without an older result, one that grows file by file has none to lose.
        has, had, will = (set(one.items()) for one in (found, old, new))
        begun = (not old and has <= will) or (command.gradual and had & will <= has <= had | will)
        if not state and not begun:
            complaints.append(f"{where}: neither old nor new: {sorted(set(found.items()) ^ set(new.items()))[:3]}")
        if kind == REFUSED and (code not in (0, 1) or "Traceback" in said):
            complaints.append(f"{where}: exit {code}: {said[-300:]}")
        counts[state or "begun"] = counts.get(state or "begun", 0) + 1
        again, _, said = in_child(command.again, folder)
        finished = content(folder / command.result) == new
        allowed = command.once and again == 2 and finished
        if not (again == 0 and finished) and not allowed:
            complaints.append(f"{where}: the same command again ended with {again}: {said[-300:]}")
        left = rubble(folder, clean)
        if left and again == 0:
            complaints.append(f"{where}: left {left[:3]}")
    return calls, counts, complaints


def run(wanted: int, only: str = "") -> tuple[list[str], list[str]]:
    """The lines of the table, and what went wrong."""
    import torch

    torch.set_num_threads(1)  # a fork must not meet the threads of its parent
    lines, complaints = (
        [
            f"{'command':<14} {'fault':<6} {'calls':>6} {'tried':>6} {'old':>5} {'new':>5} {'begun':>6} {'wrong':>6} {'s':>6}"
        ],
        [],
    )
    for command in COMMANDS:
        if only and command.name not in only.split(","):
            continue
        for kind in (KILLED, REFUSED):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                calls, counts, wrong = try_command(command, kind, wanted, Path(folder))
            complaints += wrong
            numbers = (
                f"{calls:>6} {wanted:>6} {counts['old']:>5} {counts['new']:>5} {counts.get('begun', 0):>6} {len(wrong):>6}"
            )
            lines.append(f"{command.name:<14} {kind:<6} {numbers} {time.perf_counter() - start:>6.0f}")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines, complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100, help="of each command and kind of fault (100)")
    parser.add_argument("--only", default="", help="commands, separated by commas")
    arguments = parser.parse_args()
    lines, complaints = run(arguments.points, arguments.only)
    sys.path.insert(0, str(Path(__file__).parent))
    from machine import machine

    report = "\n".join([machine(), *lines, *complaints, f"{len(complaints)} wrong"])
    print(report)
    if not arguments.only:
        (Path(__file__).parent / "results" / "faults.txt").write_text(report + "\n", encoding="utf-8")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
