"""Which sounds a file holds, one behind the other: what `cat a.mp3 b.mp3` makes, a radio stream, a recorder that appends.

libsndfile reads to the end of the first. Here a file is cut where another begins, and each part is given to it as a file of its own.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from zoo.errors import MediaError

MAX_PARTS = 10_000
_READ_BYTES = 1 << 20
# What each sound of a format begins with; both are too long to occur in compressed samples by chance.
_OGG_BEGINS = re.compile(rb"OggS\x00[\x02\x03\x06\x07]")  # a page that begins a stream
_FLAC_BEGINS = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


@dataclass(frozen=True, slots=True)
class Part:
    """One sound inside a file: bytes that are given as they stand, and ranges (start, end) of the file, in order.

    warning: what its reader ought to know, such as that something is missing in it.
    """

    pieces: tuple[bytes | tuple[int, int], ...]
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """An open file that is looked through: `size` bytes, what errors call it, and what to call now and then in long work."""

    raw: BinaryIO
    size: int
    label: str
    still: Callable[[], None] = lambda: None

    def at(self, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start`."""
        self.raw.seek(start)
        return self.raw.read(count)


class PartFile:
    """A part as a file that can be read and sought in, which is all that libsndfile asks for."""

    def __init__(self, raw: BinaryIO, part: Part) -> None:
        self._raw, self._pieces, self._position = raw, part.pieces, 0
        lengths = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in part.pieces)
        self._starts = list(itertools.accumulate(lengths, initial=0))

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._starts[-1])[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        wanted = self._starts[-1] - self._position if count < 0 else count
        got = b""
        while wanted > len(got) and self._position < self._starts[-1]:
            number = bisect.bisect_right(self._starts, self._position) - 1
            piece, inside = self._pieces[number], self._position - self._starts[number]
            length = min(wanted - len(got), self._starts[number + 1] - self._position)
            if isinstance(piece, bytes):
                more = piece[inside : inside + length]
            else:
                self._raw.seek(piece[0] + inside)
                more = self._raw.read(length)
            if not more:  # the file was cut while it is read
                break
            got += more
            self._position += len(more)
        return got


def occurrences(source: Source, pattern: re.Pattern[bytes], start: int = 0, *, longest: int = 64) -> Iterator[int]:
    """Where a pattern of at most `longest` bytes matches, in constant memory."""
    kept = b""
    while True:
        source.still()
        chunk = source.at(start + len(kept), _READ_BYTES)
        window = kept + chunk
        edge = (
            len(window) if len(chunk) < _READ_BYTES else len(window) - longest
        )  # what begins later is seen whole next time
        yield from (start + match.start() for match in pattern.finditer(window) if match.start() < edge)
        if edge == len(window):
            return
        start, kept = start + edge, window[edge:]


def ogg_parts(source: Source) -> list[Part]:
    """The links of a chain; streams that begin together are one link."""
    begins: list[int] = []
    together = -1  # where a page stands that belongs to the link before
    for at in occurrences(source, _OGG_BEGINS):
        if at != together:
            begins.append(at)
        if len(begins) > MAX_PARTS:
            break
        table = source.at(at + 26, 256)
        together = at + 27 + sum(table[:1] + table[1 : 1 + table[0]]) if table else -1
    return _between(source, begins)


def flac_parts(source: Source) -> list[Part]:
    return _between(source, list(itertools.islice(occurrences(source, _FLAC_BEGINS), MAX_PARTS + 1)))


def aiff_parts(source: Source) -> list[Part]:
    begins, at = [0], 0
    while (head := source.at(at, 12))[:4] == b"FORM" and head[8:11] == b"AIF":
        if at:
            begins.append(at)
        if len(begins) > MAX_PARTS:
            break
        length = int.from_bytes(head[4:8], "big")
        at += 8 + length + length % 2
    return _between(source, begins)


def refuse_many(label: str, parts: Sequence[object]) -> None:
    if len(parts) > MAX_PARTS:
        raise MediaError(f"{label}: more than {MAX_PARTS:,} sounds in one file; split it")


def _between(source: Source, begins: list[int]) -> list[Part]:
    """Each part to the beginning of the next. What stands before the first belongs to it."""
    refuse_many(source.label, begins)
    return [
        Part(((start, end),)) for start, end in itertools.pairwise([0, *begins[1:], source.size])
    ]  # fmt: skip
