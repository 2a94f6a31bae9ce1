"""Image-text pairs in uncompressed tar shards, as webdataset lays them out: consecutive members of one key are a sample.

Nothing is ever extracted to a disk. Names of members are data. What stays is copied as the bytes between two headers, so that
members keep their headers, whatever wrote them.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from braceexpand import braceexpand

from zoo.data.inputs import printable
from zoo.data.lines import MAX_TEXT_BYTES, decoded
from zoo.data.pairs import Pair, Write, read_text, stamp, text_problem
from zoo.errors import MediaError, UsageError, ZooError
from zoo.media.image import MAX_BYTES
from zoo.registry.atomic_write import open_own, replace_durably
from zoo.registry.modality import IMAGE, SUFFIXES

CHUNK_BYTES = 1 << 20
RECORD_BYTES = 20 * tarfile.BLOCKSIZE
END_BYTES = 2 * tarfile.BLOCKSIZE
MAX_SHARDS = 1_000_000
BRACES = re.compile(r"\{[^{}]*\}")
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")


class _Member(NamedTuple):
    """A member's extension, its data if it is small enough and wanted, a problem with it, and its place in the file."""

    extension: str
    data: bytes | None
    problem: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TarShard:
    """One tar: `name.jpg` (or another image) with `name.txt`, or `name.json` that has a "caption"."""

    source: Path
    out: Path | None

    def fingerprint(self) -> str:
        return f"{self.source.resolve()} {stamp(self.source.stat())}"

    def pairs(self) -> Iterator[Pair]:
        for key, members in groupby(self._members(), key=lambda keyed: keyed[0]):
            yield _sample(printable(key), [member for _, member in members])

    @contextmanager
    def writer(self, staging: Path) -> Iterator[Write]:
        with self.source.open("rb") as original, open_own(staging) as stream:

            def write(pair: Pair) -> None:
                for start, stop in pair.payload:
                    original.seek(start)
                    while (missing := stop - original.tell()) > 0:
                        chunk = original.read(min(CHUNK_BYTES, missing))
                        if not chunk:
                            raise ZooError(f"{self.source}: it became shorter while it was read")
                        stream.write(chunk)

            yield write
            stream.write(bytes(END_BYTES))
            stream.write(bytes(-stream.tell() % RECORD_BYTES))

    def publish(self, staging: Path, out: Path) -> None:
        replace_durably(staging, out)

    def _members(self) -> Iterator[tuple[str, _Member]]:
        """(key, member) of every file in the shard. Raises ZooError where the shard is damaged: a part is never taken for it."""
        end = 0
        try:
            with tarfile.open(self.source, "r:") as archive:
                while (info := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # a shard of any length takes no more memory than one sample
                    start, end = min(end, info.offset), archive.offset
                    if not info.isdir():
                        parent, slash, name = info.name.rpartition("/")
                        stem, _, extension = name.partition(".")
                        data, problem = _content(archive, info, extension.lower())
                        yield f"{parent}{slash}{stem}", _Member(extension.lower(), data, problem, start, end)
                self._require_end(archive.fileobj, archive.offset)
        except FileNotFoundError:
            raise ZooError(f"{self.source}: there is no such file") from None
        except (tarfile.TarError, OSError, EOFError) as error:
            hint = " (compressed? unpack it first: gunzip)" if _is_gzip(self.source) else ""
            raise ZooError(f"{self.source}: not a whole tar{hint} ({error})") from error

    def _require_end(self, stream: Any, offset: int) -> None:
        """Raise ZooError unless a tar's end, two blocks of zeros and nothing but zeros after them, is at this byte."""
        stream.seek(offset)
        first = stream.read(END_BYTES)
        if first[: tarfile.BLOCKSIZE].strip(b"\0"):
            raise ZooError(f"{self.source}: damaged at byte {offset:,}, the members before it are not taken for all")
        if len(first) < END_BYTES:
            raise ZooError(
                f"{self.source}: not a whole tar: it stops at byte {offset + len(first):,} without the blocks that end one, the members "
                f"before it are not taken for all"
            )
        chunk = first
        while chunk:
            if chunk.strip(b"\0"):
                raise ZooError(
                    f"{self.source}: there is more after the end of the tar at byte {offset:,}, the members before it are not taken for "
                    f"all (several tars in one file? join them with tar --concatenate)"
                )
            chunk = stream.read(CHUNK_BYTES)


def expand_pattern(pattern: str) -> list[str]:
    """`x-{00..02}.tar`, `{a,b}.tar`: every name, in order, as a shell has it; a pattern without braces is itself. Raises UsageError."""
    spans = [
        abs(int(span[2]) - int(span[1])) for span in RANGE.finditer(pattern)
    ]  # looked at first: the library holds each whole
    try:
        names = (
            [] if max(spans, default=0) >= MAX_SHARDS else list(islice(braceexpand(pattern, escape=False), MAX_SHARDS + 1))
        )
    except ValueError:  # they do not pair
        return [pattern]
    if not 0 < len(names) <= MAX_SHARDS:
        raise UsageError(f"{pattern}: more than {MAX_SHARDS:,} shards")
    left = BRACES.search(names[0])
    if left is not None:
        raise UsageError(f"{pattern}: braces hold a range such as {{00..99}} or names with commas, got {left[0]}")
    return names


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, extension: str) -> tuple[bytes | None, str]:
    """The data of a member that is an image or a text, within limits; else the problem."""
    is_image = f".{extension}" in SUFFIXES[IMAGE]
    if not is_image and extension not in ("txt", "json"):
        return None, ""
    if not info.isreg():
        return None, "not a regular file in the tar"
    limit = MAX_BYTES if is_image else MAX_TEXT_BYTES
    if info.size > limit:
        return None, f"{info.size:,} bytes, more than the limit of {limit:,}"
    stream = archive.extractfile(info)
    return (stream.read() if stream else None), ""


def _sample(key: str, members: list[_Member]) -> Pair:
    spans = [(member.start, member.stop) for member in members]
    extensions = [member.extension for member in members]
    if len(set(extensions)) != len(extensions):
        repeated = next(extension for extension in extensions if extensions.count(extension) > 1)
        return Pair(key, None, "", spans, ("duplicate-key", f"two members .{repeated}"))
    image = next((member for member in members if f".{member.extension}" in SUFFIXES[IMAGE]), None)
    caption = next((member for member in members if member.extension == "txt"), None)
    caption = caption or next((member for member in members if member.extension == "json"), None)
    if image is None:
        return Pair(key, None, "", spans, ("missing-image", f"only .{', .'.join(extensions)}"))
    if caption is None:
        return Pair(key, None, "", spans, ("missing-text", f"only .{', .'.join(extensions)}"))
    if image.data is None:
        return Pair(key, None, "", spans, ("unreadable-image", image.problem))
    if caption.data is None:
        return Pair(key, None, "", spans, ("unreadable-text", caption.problem))
    text, problem = read_text(caption.data) if caption.extension == "txt" else _caption(caption.data)
    return Pair(key, image.data, text, spans, problem)


def _caption(data: bytes) -> tuple[str, tuple[str, str] | None]:
    try:
        row = json.loads(decoded(data, "its .json"))
    except (MediaError, ValueError, RecursionError) as error:
        return "", ("unreadable-text", f"its .json is not JSON ({error})")
    caption = row.get("caption") if isinstance(row, dict) else None
    if not isinstance(caption, str):
        return "", ("missing-text", 'its .json has no "caption"')
    problem = text_problem(caption)
    return ("" if problem else caption), problem


def _is_gzip(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(2) == b"\x1f\x8b"
    except OSError:
        return False
