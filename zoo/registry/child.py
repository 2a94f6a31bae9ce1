"""Calling one of our functions in a process of its own, so that whatever a plugin does there stays there: raising, hanging,
ending the interpreter, changing what belongs to the whole process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.registry.documents import parse_json

WORDS = 200  # characters of a line that a message repeats
_MAIN = "from zoo.registry.child import main; main()"
_SESSION = "ZOO_CHILD_SESSION"  # of the outermost child: one that is called inside it joins it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a child. `value` is what the function returned; `exit_code` is None when its time was over."""

    value: Any
    exit_code: int | None
    stderr: str

    @property
    def finished(self) -> bool:
        """Whether the function returned."""
        return self.exit_code == 0 and self.value is not None

    @property
    def end(self) -> str:
        """How it ended, for a message; only meaningful if it did not finish."""
        if self.exit_code is None:
            return "did not end in time"
        if self.exit_code < 0:
            return f"ended the interpreter by {signal.Signals(-self.exit_code).name}"
        return f"ended the interpreter with exit code {self.exit_code}"

    @property
    def last_words(self) -> str:
        """The last line of its stderr that says something, for a message; often the error itself. Empty if there was none."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1][:WORDS] if lines else ""


def call(target: str, argument: Any, *, timeout_s: float, environment: dict[str, str] | None = None) -> Outcome:
    """`"zoo.module:function"` with one argument, both ways through JSON, in a child that sees the same `sys.path`,
    but for the current folder, which comes last there.

    What the function prints goes to the returned stderr. After `timeout_s` seconds the child and everything it started are
    killed: a child of a child stays in the process group of the outermost one, which ends as a whole.
    """
    nested = os.environ.get(_SESSION) == _session()
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-P", "-c", _MAIN, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=not nested,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_search_path()), **(environment or {})},
    )
    try:
        stdout, stderr = child.communicate(json.dumps(argument), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(child, nested=nested)
        _, stderr = child.communicate()
        return Outcome(None, None, stderr)
    except BaseException:
        _kill(child, nested=nested)
        raise
    try:
        value = parse_json(stdout) if child.returncode == 0 else None
    except ValueError:
        value = None
    return Outcome(value, child.returncode, stderr)


def _search_path() -> list[str]:
    """`sys.path` with the current folder (the empty entry of an interactive session) last: what lies in it by accident, a
    `torch.py` say, must not be imported in place of a library.
    """
    named = [entry for entry in sys.path if entry]
    return named if len(named) == len(sys.path) else [*named, str(Path.cwd())]


def _session() -> str:
    """The session of this process, which has one where there is such a thing."""
    return str(os.getsid(0)) if hasattr(os, "getsid") else ""


def _kill(child: subprocess.Popen[str], *, nested: bool) -> None:
    """A nested child shares our process group, so its descendants are killed one by one."""
    if hasattr(os, "killpg") and not nested:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        return
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end meanwhile
                process.kill()
    child.kill()


def main() -> None:
    """The child's side: the answer goes where stdout went at the start, and prints of a plugin to stderr."""
    if hasattr(os, "getsid") and os.getsid(0) == os.getpid():
        os.environ[_SESSION] = _session()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, function = sys.argv[1].partition(":")
    value = getattr(importlib.import_module(module), function)(json.load(sys.stdin))
    json.dump(value, answer)
    answer.close()
    sys.stderr.flush()
    os._exit(0)  # a thread that a plugin left running must not keep the child alive
