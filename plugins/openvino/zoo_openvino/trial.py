"""A graph is compiled and run in a process of its own before it is in this one: some graphs crash the library on some processors.

OpenVINO 2026.4.1 does so, for one, with a row of two layers of CLIP in float32 on one thread, where it has AMX. What a process of
its own found out is written beside the graph, for this processor and these settings.
"""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

_SCRIPT = Path(__file__).with_name("trial_process.py")
_LONGEST_S = 900
_PASSED = "passed"
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # somebody's doing, or the lack of memory
_STOPPED = "its trial was stopped from outside"


def crash(
    graph: Path, settings: Mapping[str, object], inputs: Sequence[torch.Tensor], batches: Sequence[int]
) -> str | None:
    """How the library crashes on a graph, in words, or None.

    batches: the numbers of rows to run it with, made from those of `inputs`; none: the inputs as they are.
    """
    words = json.dumps(settings, sort_keys=True)
    asked = f"{_processor()} {words} {list(batches)}"
    noted = graph.parent / f"trial-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    with suppress(OSError, UnicodeError):
        known = noted.read_text(encoding="utf-8")
        return None if known == _PASSED else known
    with TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        np.savez(file, *[tensor.detach().numpy() for tensor in inputs])
        found = _run([str(graph), words, str(file), json.dumps(list(batches))])
    if found != _STOPPED:
        with suppress(OSError):  # without the note, the next process tries again
            noted.write_text(found or _PASSED, encoding="utf-8")
    return found


def _run(arguments: list[str]) -> str | None:
    command = [sys.executable, "-P", str(_SCRIPT), *arguments]
    try:
        run = subprocess.run(  # noqa: S603 - our own file
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"OpenVINO did not come to an end on it in {_LONGEST_S} s"
    if run.returncode < 0 and -run.returncode in _FROM_OUTSIDE:
        return _STOPPED
    if run.returncode >= 0:  # an exception, too: it is raised here as well, and told there
        return None
    return f"OpenVINO crashes on it ({signal.Signals(-run.returncode).name})"


@cache
def _processor() -> str:
    """Its name and instruction sets."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()} {platform.processor()}"
