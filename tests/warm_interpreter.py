"""Interpreters that have imported torch already, and fork for each command: what runs in one does so in a process of its own, and
does not wait two to four seconds of processor time for the same libraries each time.

The zoo itself and its plugins are not imported beforehand: each command imports them anew, from the files as they then are. What a
command imports and when is no matter for these: such tests start an interpreter themselves.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "PIL.Image", "safetensors.torch", "numpy", "timm")
_MAIN = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import warm_interpreter; warm_interpreter.serve()"
READ_AT_START = (
    "PYTHON",
    "OMP_",
    "MKL_",
    "KMP_",
    "TORCH",
    "PYTORCH",
    "HF_",
    "LANG",
    "LC_",
)  # variables that an interpreter, torch or a library reads when it starts
SET_BY_TORCH = {"TORCHINDUCTOR_CACHE_DIR"}  # torch writes it into the environment as it imports its compiler
_ENVIRONMENT = dict(os.environ)  # before any test has changed it


class WarmInterpreter:
    """One interpreter that waits for commands. It is started by the first of them."""

    def __init__(self, python: str, libraries: Sequence[str] = LIBRARIES) -> None:
        self.python, self.libraries = python, libraries
        self.server: subprocess.Popen[str] | None = None
        self.environment = _ENVIRONMENT

    def reads_alike(self, environment: Mapping[str, str]) -> bool:
        """Whether an interpreter that starts now would read the same as this one did, and its libraries."""
        names = {name for name in (*environment, *os.environ, *self.environment) if name.startswith(READ_AT_START)}
        return all(environment.get(name) == self.environment.get(name) for name in names - SET_BY_TORCH)

    def run(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        stdin: bytes = b"",
        timeout_s: int = 300,
    ) -> subprocess.CompletedProcess[str]:
        """What `python *words` would do, where words are `-m MODULE ...`; raises TimeoutExpired as subprocess.run does."""
        if self.server is None:
            self.server = subprocess.Popen(
                [self.python, "-c", _MAIN, *self.libraries],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=self.environment,
            )
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "0").write_bytes(stdin)
            request = {"words": [*words], "environment": {**environment}, "cwd": str(cwd or Path.cwd()), "folder": folder}
            self.server.stdin.write(json.dumps({**request, "timeout_s": timeout_s}) + "\n")
            self.server.stdin.flush()
            try:
                answer = self.server.stdout.readline()
            except BaseException:  # what was asked would answer whoever asks next
                self.close()
                raise
            if not answer:
                raise RuntimeError(f"the interpreter that runs {' '.join(words)} ended")
            code = json.loads(answer)
            stdout, stderr = (Path(folder, name).read_text(encoding="utf-8") for name in "12")
        if code is None:
            raise subprocess.TimeoutExpired([*words], timeout_s, stdout, stderr)
        return subprocess.CompletedProcess([self.python, *words], code, stdout, stderr)

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()  # its own end would take seconds
            self.server.communicate()
            self.server = None


def serve() -> None:
    """The interpreter's side: one request a line, its exit code a line (null when its time was over)."""
    import importlib

    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.path.remove(str(Path(__file__).parent))
    del sys.modules["warm_interpreter"]
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    signal.signal(signal.SIGALRM, lambda *_: None)
    while line := requests.readline():
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            requests.close()
            answers.close()
            for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)):
                os.dup2(os.open(f"{request['folder']}/{number}", mode, 0o600), number)
            os.setsid()
            _become(request)
        print(json.dumps(_end_of(process, request["timeout_s"])), file=answers, flush=True)


def _end_of(process: int, timeout_s: int) -> int | None:
    """Its exit code as subprocess gives it; None, and it and what it started are killed, when its time is over."""

    def stop(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(timeout_s)
    try:
        _, status = os.waitpid(process, 0)
    except TimeoutError:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return os.waitstatus_to_exitcode(status)


def _become(request: dict) -> None:
    """In a forked process: run a module as `python -m` does, and end as an interpreter does, but for tearing torch down (0.9 s)."""
    import atexit
    import runpy
    import threading

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    flag, module, *arguments = request["words"]
    assert flag == "-m"
    sys.path[0] = request["cwd"]  # as -m puts it there
    sys.argv = [module, *arguments]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = os.fdopen(
            number, "w" if number else "r", encoding="utf-8", errors="backslashreplace" if number == 2 else "strict"
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    threading._shutdown()  # waits for the threads, as an interpreter does
    atexit._run_exitfuncs()
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)
