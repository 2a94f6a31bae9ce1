"""`python -m zoo` and the installed command `zoo`: what must be in place before anything else of the zoo is imported.

Ctrl-C ends the command with exit code 130 from here on, while libraries are imported, too. Standard streams that are closed, or of a
terminal that cannot print every character, are made such that printing to them does no harm.
"""

from __future__ import annotations

import os
import sys

# `python -m` looks into the current folder first, the command `zoo` does not: a random.py or torch.py of the user's that lies
# there is not meant for us.
if __name__ == "__main__" and sys.path and not sys.flags.safe_path:
    try:
        here = os.getcwd()  # noqa: PTH109 - pathlib would be imported from there
    except OSError:  # the folder is gone
        here = ""
    if sys.path[0] in ("", here):
        sys.path.append(sys.path.pop(0))

import contextlib
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def command() -> NoReturn:
    """Run one command, and end the process without tearing torch down, which takes up to a second.

    Everything is closed or flushed by then; nothing of the zoo relies on handlers that run at exit.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell has it ignored
            signal.signal(signal.SIGINT, interrupt)
        _prepare_streams()
        from zoo.cli import main

        try:
            code = main()
        except SystemExit as stop:  # of argparse, which has said why
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        code = _flushed(code)
    except KeyboardInterrupt:
        leave()
    os._exit(code)


def interrupt(_: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, for work to end in order; a second one, and one in the middle of an import, ends the process at once.

    What is imported half leaves errors of any kind behind, and holds nothing that must be finished.
    """
    signal.signal(signal.SIGINT, lambda *_: leave())
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def leave() -> NoReturn:
    os.write(2, b"zoo: interrupted\n")
    os._exit(INTERRUPTED)


def _prepare_streams() -> None:
    """A closed stream has its number taken, or the next file that is opened would get it, and what others print would land in there.

    What is printed to a closed output fails when it is flushed; errors of a closed error output are lost. A character that the encoding
    does not have is printed as JSON escapes it, so that a document stays one.
    """
    import codecs

    codecs.register_error("zoo-escape", _escaped)
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="zoo-escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


def _flushed(code: int) -> int:
    """The exit code once everything is out: 1 where it cannot be."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"zoo: the output cannot be written ({error.strerror})\n".encode())
        return code or 1
    return code


if __name__ == "__main__":
    command()
