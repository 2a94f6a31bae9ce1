"""Image-text pairs in a folder or in a `.jsonl` file: read one by one, and written one by one in the same form.

A shard is what is finished or not: a folder, a `.jsonl` file, or one tar of many (`zoo.data.tar_pairs`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zoo.data.inputs import printable
from zoo.data.lines import MAX_LINE_BYTES, MAX_TEXT_BYTES, byte_lines, decoded
from zoo.data.walk import listings
from zoo.errors import MediaError
from zoo.media.readers import suffixes_of
from zoo.registry.atomic_write import open_own, replace_durably
from zoo.registry.modality import IMAGE

UNREADABLE_FOLDER = "unreadable-folder"  # a reason: pairs that nobody could count are missing


@dataclass(frozen=True, slots=True)
class Pair:
    """One sample. problem: (reason, detail) when it cannot be scored at all. payload: what its writer copies.

    unique: what no second sample of the shard may share; the key where it is empty.
    """

    key: str
    image: Path | bytes | None
    text: str
    payload: Any
    problem: tuple[str, str] | None = None
    unique: str = ""


Write = Callable[[Pair], Any]


class Shard(Protocol):
    """A source that is filtered as a whole, and where its result goes.

    fingerprint: changes when what is in it does. pairs: every sample in order; raises ZooError where the source is damaged.
    writer: opens `staging`, on the same disk as `out`, for the pairs that stay. publish: gives the finished result its name.
    """

    @property
    def source(self) -> Path: ...

    @property
    def out(self) -> Path | None: ...

    def fingerprint(self) -> str: ...

    def pairs(self) -> Iterator[Pair]: ...

    def writer(self, staging: Path) -> Any: ...

    def publish(self, staging: Path, out: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class FolderShard:
    """Images and the texts beside them: `a.jpg` with `a.txt`; other files of the same stem go where the image goes.

    A link inside the folder is copied as the file it leads to; a sample with one that leads out of it has a problem.
    """

    source: Path
    out: Path | None

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for one in listings(self.source):
            if one.problem:
                digest.update(f"{one.folder!r} {one.problem}\n".encode())
            for name in one.files:
                digest.update(_stamp(one.folder / name).encode())
        return digest.hexdigest()

    def pairs(self) -> Iterator[Pair]:
        for one in listings(self.source):
            if one.problem:
                key = printable(one.folder.relative_to(self.source).as_posix())
                yield Pair(key, None, "", [], (UNREADABLE_FOLDER, one.problem))
            stems: dict[str, list[Path]] = {}
            for name in one.files:
                stems.setdefault(Path(name).stem, []).append(one.folder / name)
            for stem, files in stems.items():
                yield from self._sample((one.folder / stem).relative_to(self.source).as_posix(), files)

    @contextmanager
    def writer(self, staging: Path) -> Iterator[Write]:
        staging.mkdir()

        def write(pair: Pair) -> None:
            for file in pair.payload:
                copy = staging / file.relative_to(self.source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)

        yield write

    def publish(self, staging: Path, out: Path) -> None:
        if out.exists():
            old = staging.with_name("old")
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
            staging.rename(out)
            shutil.rmtree(old)
        else:
            staging.rename(out)

    def _sample(self, key: str, files: list[Path]) -> Iterator[Pair]:
        suffixes = suffixes_of(IMAGE)
        files = [file for file in files if file.suffix.lower() in (".txt", *suffixes) or file.is_file()]
        images = [file for file in files if file.suffix.lower() in suffixes]
        texts = [file for file in files if file.suffix.lower() == ".txt"]
        shown = printable(key)
        if not images and not texts:
            return
        outside = next((file for file in files if self._leads_out(file)), None)
        if outside is not None:
            detail = f"{printable(outside.name)} is a link to a file outside the folder"
            yield Pair(shown, None, "", [], ("outside-link", detail))
            return
        payload = [file for file in files if file not in images[1:]]
        if not images:
            yield Pair(shown, None, "", payload, ("missing-image", f"{texts[0].name} has no image beside it"))
        elif not texts:
            yield Pair(shown, None, "", payload, ("missing-text", f"{images[0].name} has no .txt beside it"))
        else:
            text, problem = read_text(_head(texts[0]))
            yield Pair(shown, images[0], text, payload, problem)
        for other in images[1:]:
            yield Pair(shown, None, "", [], ("duplicate-key", f"{other.name} has the stem of {images[0].name}"))

    def _leads_out(self, file: Path) -> bool:
        """Whether a link would bring something into the result that does not lie in the source."""
        return file.is_symlink() and not file.resolve().is_relative_to(self.source.resolve())


@dataclass(frozen=True, slots=True)
class JsonlShard:
    """Lines `{"image": path, "text": ...}`; the path counts from the file's folder, and other fields stay as they are."""

    source: Path
    out: Path | None

    def fingerprint(self) -> str:
        digest = hashlib.sha256(_stamp(self.source).encode())
        for pair in self.pairs():
            if isinstance(pair.image, Path):
                digest.update(_stamp(pair.image).encode())
        return digest.hexdigest()

    def pairs(self) -> Iterator[Pair]:
        with self.source.open("rb") as stream:
            for number, start, line in byte_lines(stream):
                if line is None:
                    yield _bad_line(number, f"longer than the limit of {MAX_LINE_BYTES:,} bytes")
                elif line.strip():
                    yield self._sample(number, start, line)

    @contextmanager
    def writer(self, staging: Path) -> Iterator[Write]:
        with open_own(staging) as stream:
            yield lambda pair: stream.write(pair.payload)

    def publish(self, staging: Path, out: Path) -> None:
        replace_durably(staging, out)

    def _sample(self, number: int, start: int, line: bytes) -> Pair:
        try:
            row = json.loads(decoded(line, self.source.name, start))
        except MediaError as error:
            return _bad_line(number, str(error))
        except (ValueError, RecursionError) as error:
            return _bad_line(number, f"not JSON ({error})")
        if not isinstance(row, dict):
            return _bad_line(number, 'expected an object such as {"image": "a.jpg", "text": "a cat"}')
        image, text = row.get("image"), row.get("text")
        named = row.get("key")
        key = printable(named) if isinstance(named, str) else f"line {number}"
        if not isinstance(image, str) or not image:
            return Pair(key, None, "", line, ("missing-image", 'no "image" with a path'))
        if not isinstance(text, str):
            return Pair(key, None, "", line, ("missing-text", 'no "text" with a text'))
        path = self.source.parent / image
        try:
            there = path.exists()
        except (OSError, ValueError):  # too long, or with a NUL
            there = False
        if not there:
            return Pair(key, None, "", line, ("missing-image", f"{printable(image)}: there is no such file"))
        unique = "" if isinstance(named, str) else json.dumps([image, text])
        return Pair(key, path, text, line, text_problem(text), unique)


def stamp(status: os.stat_result) -> str:
    """What differs when a file was written, or another took its place, even if its size and time were put back."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def read_text(data: bytes) -> tuple[str, tuple[str, str] | None]:
    """The bytes of a caption -> the text, and the problem with it if there is one."""
    if len(data) > MAX_TEXT_BYTES:
        return "", ("unreadable-text", f"longer than the limit of {MAX_TEXT_BYTES:,} bytes")
    try:
        text = decoded(data, "the text")
    except MediaError as error:
        return "", ("unreadable-text", str(error))
    return text, text_problem(text)


def text_problem(text: str) -> tuple[str, str] | None:
    """What is wrong with a caption, if anything is: it is empty, too long, or holds half a character, which only JSON can write."""
    if not text.strip():
        return ("empty-text", "the text holds nothing")
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        return ("unreadable-text", f"not Unicode (a lone surrogate at character {error.start:,})")
    if size_bytes > MAX_TEXT_BYTES:
        return ("unreadable-text", f"longer than the limit of {MAX_TEXT_BYTES:,} bytes")
    return None


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{path!r} absent\n"
    return f"{path!r} {stamp(status)}\n"


def _head(path: Path) -> bytes:
    """The bytes of a text file, and of one that is too long only enough to see that."""
    try:
        if path.is_file():  # and no pipe, which waits for somebody to write
            with path.open("rb") as stream:
                return stream.read(MAX_TEXT_BYTES + 1)
    except OSError:
        pass
    return b"\xff"  # what cannot be read is reported as what is no text


def _bad_line(number: int, why: str) -> Pair:
    return Pair(f"line {number}", None, "", b"", ("unreadable-line", why))
