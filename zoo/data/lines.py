"""The one reader of texts that people keep in files: whole, line by line, and the columns of tables.

A line ends at a line feed, with or without a carriage return before it, and at nothing else: U+2028, U+0085 and their like stand
inside texts and inside JSON. A text is UTF-8, with or without a byte order mark; what is not is refused with its place, since a
text with replaced characters is another text. A text has a limit, which is looked at before it is held.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from zoo.errors import MediaError, UsageError

MAX_TEXT_BYTES = 1_000_000  # of one text: ten times what any model here reads
MAX_LINE_BYTES = 16_000_000  # of one line of JSON, which may hold several texts
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".jsonl")


class Line(NamedTuple):
    """One line as bytes, its end included; data is None where it is longer than the limit. start: the place of its first byte."""

    number: int
    start: int
    data: bytes | None


def byte_lines(stream: BinaryIO, limit_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """The lines of a stream; one that is too long is never held, and read past only when the next is asked for."""
    number, start = 0, 0
    while piece := stream.readline(limit_bytes + 1):
        number += 1
        length = len(piece)
        too_long = length > limit_bytes
        yield Line(number, start, None if too_long else piece)
        while too_long and not piece.endswith(b"\n") and (piece := stream.readline(limit_bytes + 1)):
            length += len(piece)
        start += length


def stream_lines(stream: BinaryIO, name: str, limit_bytes: int = MAX_TEXT_BYTES) -> Iterator[tuple[int, str]]:
    """(number, text without its end) of each line. name: of the stream, for an error.

    Raises MediaError for what is no UTF-8, with the place of its byte, and for a line that is longer than the limit.
    """
    for number, line in _decoded_lines(stream, name, limit_bytes):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _decoded_lines(stream: BinaryIO, name: str, limit_bytes: int) -> Iterator[tuple[int, str]]:
    for number, start, data in byte_lines(stream, limit_bytes):
        if data is None:
            raise MediaError(f"{name}:{number}: the line is longer than the limit of {limit_bytes:,} bytes")
        yield number, decoded(data, name, start)


def decoded(data: bytes, name: str, start: int = 0) -> str:
    """UTF-8 -> text, without a byte order mark at the beginning of the file. start: where the file has the first of these bytes.

    Raises MediaError, with the place of the byte that is no UTF-8.
    """
    skipped = len(BYTE_ORDER_MARK) if start == 0 and data.startswith(BYTE_ORDER_MARK) else 0
    try:
        return data[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[skipped + error.start]
        other = "; it begins as UTF-16 does" if start == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise MediaError(
            f"{name}: not UTF-8 text (the byte 0x{byte:02x} at byte {start + skipped + error.start:,}{other}): save it as UTF-8, "
            f"as iconv -f latin1 -t utf-8 does for Latin-1"
        ) from None


def text_lines(path: Path, name: str | None = None, limit_bytes: int = MAX_TEXT_BYTES) -> Iterator[tuple[int, str]]:
    """As `stream_lines`, of a file. Raises UsageError where it cannot be opened."""
    with opened(path, name) as stream:
        yield from stream_lines(stream, name or str(path), limit_bytes)


def read_text(path: Path, name: str | None = None) -> str:
    """A whole file as one text, without its last line break, which is the editor's. Raises as `text_lines` does."""
    with opened(path, name) as stream:
        return whole_text(stream, name or str(path))


def whole_text(stream: BinaryIO, name: str) -> str:
    """As `read_text`, of a stream."""
    data = stream.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise MediaError(f"{name}: the text is longer than the limit of {MAX_TEXT_BYTES:,} bytes")
    return decoded(data, name).removesuffix("\n").removesuffix("\r")


def json_lines(path: Path, name: str | None = None) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line that is not empty. Raises MediaError with the line for what is no JSON, and as `text_lines`."""
    for number, line in text_lines(path, name, MAX_LINE_BYTES):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise MediaError(f"{name or path}:{number}: no JSON ({error})") from None
            except RecursionError:
                raise MediaError(f"{name or path}:{number}: no JSON that can be read (it is nested too deeply)") from None


def table_rows(path: Path, name: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, fields by name) of a table: `.jsonl` with an object a line, `.csv` and `.tsv` with names in the first line.

    Raises MediaError with the line for a row that is no object, or has more or fewer cells than there are names; and as `text_lines`.
    """
    shown = name or str(path)
    if path.suffix.lower() == ".jsonl":
        for number, row in json_lines(path, name):
            if not isinstance(row, dict):
                raise MediaError(f"{shown}:{number}: expected an object with named fields, got {json.dumps(row)[:40]}")
            yield number, row
        return
    csv.field_size_limit(
        MAX_LINE_BYTES
    )  # whoever reads a text has a limit of its own; this one of the module's is of any cell
    with opened(path, name) as stream:
        lines = (line for _, line in _decoded_lines(stream, shown, MAX_LINE_BYTES))
        reader = csv.reader(lines, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
        try:
            names = next(reader, [])
            if len(set(names)) < len(names):
                raise MediaError(f"{shown}:1: two columns have one name: {', '.join(names)[:80]}")
            for row in reader:
                if not row and len(names) == 1:
                    raise MediaError(
                        f'{shown}:{reader.line_num}: an empty line, where each line is a text: remove it, or write ""'
                    )
                if row and len(row) != len(names):
                    raise MediaError(
                        f"{shown}:{reader.line_num}: {len(row)} cells for {len(names)} columns ({', '.join(names)[:80]}): a text with "
                        f"a comma stands in double quotes"
                    )
                if row:
                    yield reader.line_num, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise MediaError(f"{shown}:{reader.line_num}: cannot be read as a table ({error})") from error


def read_column(path: Path, column: str | None, name: str | None = None) -> list[str]:
    """One column of a table. Raises UsageError, with the names that there are, where none or another one is named."""
    cells: list[str] = []
    for number, row in table_rows(path, name):
        if column is None or column not in row:
            asked = "say which column holds the texts (--column NAME)" if column is None else f"no column {column!r}"
            where = f"line {number} has" if path.suffix.lower() == ".jsonl" else "its columns are"
            raise UsageError(f"{name or path}: {asked}; {where} {', '.join(map(str, row))[:200]}")
        if not isinstance(row[column], str):
            raise MediaError(f"{name or path}:{number}: {column} is a text, got {json.dumps(row[column])[:40]}")
        cells.append(short_enough(row[column], f"{name or path}:{number}: {column}"))
    if not cells:
        raise MediaError(f"{name or path}: the table holds no rows")
    return cells


def short_enough(text: str, what: str) -> str:
    """The text itself. Raises MediaError for one that is longer than the limit."""
    if len(text) > MAX_TEXT_BYTES or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES):
        raise MediaError(f"{what}: the text is longer than the limit of {MAX_TEXT_BYTES:,} bytes")
    return text


def line_texts(path: Path, column: str | None, name: str | None = None) -> list[str]:
    """Texts of a file that holds many: the lines of a text file, one column of a table."""
    if path.suffix.lower() in TABLES:
        return read_column(path, column, name)
    refuse_column(path, column, name)
    return [line for _, line in text_lines(path, name)]


def refuse_column(path: Path, column: str | None, name: str | None = None) -> None:
    """Raise UsageError for a column of what is no table."""
    if column is not None:
        raise UsageError(f"{name or path}: --column is about tables ({', '.join(TABLES)}): leave it out")


@contextmanager
def opened(path: Path, name: str | None = None) -> Iterator[BinaryIO]:
    """A file, read as bytes. Raises UsageError where it cannot be opened or read."""
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"{name or path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a NUL in its name
        raise UsageError(f"{name or path}: no file can have this name ({error})") from error
