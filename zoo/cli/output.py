"""How commands print: one JSON document, or a table whose columns line up."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from zoo.errors import UsageError
from zoo.registry.terminal import UNSAFE, clean, message, on_one_line

STDIN = "standard input"

if TYPE_CHECKING:
    from zoo.models.provenance import Provenance


def add_output_options(command: argparse.ArgumentParser) -> None:
    """--json and --debug, which every command has. Where they are left out nothing is set: an action keeps what its command was given."""
    command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def say(*values: object, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """`print` for people: what would command a terminal is shown and not obeyed. On stderr, more lines than one are set in."""
    text = " ".join(map(str, values))
    if file is not sys.stderr:
        print(clean(text), file=file, end=end, flush=flush)
        return
    with suppress(OSError):  # the loss of what is said beside costs no work
        print(message(text), file=file, end=end, flush=flush)


def print_json(document: object) -> None:
    """One JSON document on stdout; text stays as it is, whatever the script, and its controls are escaped as JSON has them."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    print(UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns padded to their widest cell."""
    cells = [[on_one_line(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    for line in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def about_model(provenance: Provenance) -> dict[str, Any]:
    """The fields by which every document names its model."""
    return {
        "model": provenance.model,
        "plugin": {"dist": provenance.distribution, "version": provenance.version},
        "random_weights": provenance.random_weights,
        "random_parts": list(provenance.random_parts),
        **({} if provenance.kernel is None else {"kernel": provenance.kernel}),
    }


def spell_model(provenance: Provenance) -> str:
    """`model (distribution version)`, as the line under an answer begins."""
    return f"{provenance.model} ({provenance.distribution} {provenance.version})"


def warn_of_random_weights(provenance: Provenance) -> None:
    """One line on stderr where an answer means nothing, in the text and beside the document."""
    if provenance.random_weights:
        say(f"zoo: {provenance.random_words}", file=sys.stderr)


def separated(text: str) -> list[str]:
    """What commas separate, blanks around it left out; in double quotes it may hold commas, as in a CSV file.

    Raises UsageError for what is no such list: a line break outside quotes, or a part that is far too long.
    """
    import csv

    try:
        rows = list(csv.reader([text], skipinitialspace=True))
    except csv.Error as error:
        raise UsageError(f"{text[:40]!r}...: no list with commas between ({error})") from error
    return [field.strip() for row in rows for field in row if field.strip()]


def read_stdin() -> str:
    """Standard input as one text, without its last line break, which is the shell's. Raises MediaError for what is no UTF-8."""
    from zoo.data.lines import whole_text

    return whole_text(_stdin(), STDIN)


def read_stdin_lines() -> list[str]:
    """The lines of standard input. Raises MediaError for what is no UTF-8, and for one that is too long."""
    from zoo.data.lines import stream_lines

    return [line for _, line in stream_lines(_stdin(), STDIN)]


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise UsageError("standard input is closed: - reads a text from there")
    return sys.stdin.buffer


def counted(number: int, what: str) -> str:
    """`1 text`, `2 texts`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def human_count(number: int | None) -> str:
    """4652008 -> `4.7M`; unknown -> `-`."""
    if number is None:
        return "-"
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def human_bytes(number: int | None) -> str:
    """18826032 -> `18.8 MB`; unknown -> `-`."""
    if number is None:
        return "-"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"


def without_none(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that hold something."""
    return {key: value for key, value in fields.items() if value not in (None, "", (), [], {})}
