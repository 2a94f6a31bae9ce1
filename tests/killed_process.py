"""A command that is killed in the middle of its work, at a moment that its own work decides and not the machine's."""

import signal
import subprocess
import sys
from pathlib import Path

_MAIN = """
import os, runpy, signal, sys
path, size_bytes = sys.argv[1], int(sys.argv[2])
def look(*_):
    if os.path.exists(path) and os.path.getsize(path) >= size_bytes:
        os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGPROF, look)
signal.setitimer(signal.ITIMER_PROF, 0.002, 0.002)  # of its own processor time
sys.argv = ["zoo", *sys.argv[3:]]
runpy.run_module("zoo", run_name="__main__", alter_sys=True)
"""


def kill_when(path: Path, size_bytes: int, arguments: list[str]) -> None:
    """Run `zoo` with these arguments; it looks at a file every two milliseconds that it works, and kills itself (SIGKILL) once the
    file is there and has grown to a size. Another process that looked might not get its turn before the work is done.
    """
    run = subprocess.run(
        [sys.executable, "-c", _MAIN, str(path), str(size_bytes), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, f"it ended before it was to be killed: {run.stderr.decode()}"
