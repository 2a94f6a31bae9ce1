"""An index of images brought to what its folder holds now.

Each update looks at every file: size, times and inode say that a file is as it was, its sha256 says what it holds. A file that is younger
than a clock can tell is not believed by its times.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.data.inputs import printable, say_links
from zoo.data.walk import walk
from zoo.errors import MediaError, PluginError
from zoo.media.image import read_file
from zoo.media.readers import open_media, read_as, suffixes_of
from zoo.models.build import Built
from zoo.registry.modality import IMAGE
from zoo.registry.plugin import describe
from zoo.tasks.encoding import vectors_or_reasons
from zoo.tasks.photo_index import Index, Seen, save_index
from zoo.tasks.running import CPU_BATCH, DEVICE_BATCH, in_threads, progress_bar

RACY_NS = 2_000_000_000  # two writes within one tick of a file system's clock (2 s on FAT) leave the same times
SAVE_EVERY_S = 30.0


def update_index(
    index: Index, folder: Path, home: Path, built: Built, *, batch_size: int | None, device: str, progress: bool
) -> tuple[int, list[tuple[str, str]]]:
    """Bring an index to what the folder holds now, saving it on the way.

    Returns how many images were computed, and (path, why) of each folder of it that could not be looked into.
    """
    now_ns = time.time_ns()
    there, problems = _scan(folder)
    before = (len(index.rows), dict(index.files))
    todo = [name for name, seen in there.items() if read_as(name, IMAGE) or not _unchanged(index.files.get(name), seen)]
    changed = set(todo)
    index.files = {name: index.files[name] for name in there if name not in changed}
    known = set(index.rows) | set(index.unreadable)
    size = batch_size or (CPU_BATCH if device == "cpu" else DEVICE_BATCH)

    @torch.inference_mode()
    def answer(names: Sequence[str]) -> list[tuple[str | None, Any]]:
        answers = _read_and_compute(built, folder, names, known, device)
        widths = {len(vector) for _, vector in answers if isinstance(vector, np.ndarray)}
        if widths - {index.vectors.d}:
            raise PluginError(
                f"{describe(built.found.card.provider)}: {built.name} gave images of width {widths.pop()} and a query of "
                f"{index.vectors.d}: they cannot be compared"
            )
        return answers

    computed = 0
    saved = time.monotonic()
    batches = [todo[start : start + size] for start in range(0, len(todo), size)]
    try:
        with progress_bar(len(todo), "image", progress=progress) as bar:
            for names, answers in zip(batches, in_threads(answer, batches, count=len(batches)), strict=True):
                bar.update(len(names))
                for name, result in zip(names, answers, strict=True):
                    computed += _take(index, name, there[name], result, known, now_ns)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    save_index(index, home)
                    saved = time.monotonic()
        _forget(index)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("what was indexed is kept; the next search goes on from there") from stop
    finally:  # an interrupted first search of a large folder goes on where it was
        if before != (len(index.rows), index.files) or computed:
            save_index(index, home)
    return computed, problems


def paths_of(index: Index) -> dict[str, list[str]]:
    """Content -> the files that hold it, sorted."""
    paths: dict[str, list[str]] = {}
    for name in sorted(index.files):
        paths.setdefault(index.files[name].sha256 or "", []).append(name)
    return paths


def unreadable_files(index: Index, folder: Path) -> list[tuple[str, str]]:
    """(file, why) of each image of the folder that could not be read."""
    complaints = []
    for name, seen in sorted(index.files.items()):
        why = index.unreadable.get(_content(name, seen.sha256))
        if why is not None:
            complaints.append((printable(str(folder / name)), why))
    return complaints


def _scan(folder: Path) -> tuple[dict[str, Seen], list[tuple[str, str]]]:
    """What its metadata says of every image, by its path inside the folder; and (path, why) of what cannot be looked at."""
    suffixes = suffixes_of(IMAGE)
    there: dict[str, Seen] = {}
    problems: list[tuple[str, str]] = []
    found = list(walk(folder))
    say_links(folder, found)
    for one in found:
        problem = one.problem
        if not problem and not one.linked and one.path.suffix.lower() in suffixes:
            try:
                status = one.path.stat()
            except OSError as error:  # it went away meanwhile, or is a link to what is not there
                problem = f"cannot be read ({error.strerror or error})"
            else:
                seen = Seen(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, None)
                there[one.path.relative_to(folder).as_posix()] = seen
        if problem:
            problems.append((printable(str(one.path)), problem))
    return there, problems


def _unchanged(old: Seen | None, new: Seen) -> bool:
    return old is not None and old.sha256 is not None and list(asdict(old).values())[:4] == list(asdict(new).values())[:4]


def _read_and_compute(
    built: Built, folder: Path, names: Sequence[str], known: set[str], device: str
) -> list[tuple[str | None, Any]]:
    """(sha256, result) for each file: a vector, None when its content is known, or the text of an error."""
    results: dict[str, tuple[str | None, Any]] = {}
    images: dict[str, Any] = {}
    for name in names:
        sha256 = None
        try:
            content = read_file(folder / name)
            sha256 = hashlib.sha256(content + read_as(folder / name, IMAGE).encode()).hexdigest()
            results[name] = (sha256, None)
            if sha256 not in known:
                images[name] = open_media(content, IMAGE, path=folder / name, label=str(folder / name))
        except MediaError as error:
            results[name] = (sha256, str(error).removeprefix(f"{folder / name}: "))
    if images:
        for name, row in zip(images, vectors_or_reasons(built, IMAGE, list(images.values()), device=device), strict=True):
            results[name] = (results[name][0], row if isinstance(row, str) else row.numpy())
    return [results[name] for name in names]


def _take(index: Index, name: str, seen: Seen, answer: tuple[str | None, Any], known: set[str], now_ns: int) -> int:
    """Note one file; returns how many vectors that added."""
    sha256, result = answer
    racy = max(seen.mtime_ns, seen.ctime_ns) > now_ns - RACY_NS
    index.files[name] = Seen(seen.size_bytes, -1 if racy else seen.mtime_ns, seen.ctime_ns, seen.inode, sha256)
    if isinstance(result, str):
        index.unreadable[_content(name, sha256)] = result
        return 0
    if result is None or sha256 is None or sha256 in known:
        return 0
    known.add(sha256)
    index.vectors.add(result[None])
    index.rows.append(sha256)
    return 1


def _content(name: str, sha256: str | None) -> str:
    """The key of what a file holds; of the file itself where its bytes could not be had."""
    return sha256 or f"file {name}"


def _forget(index: Index) -> None:
    """Drop what no file holds any more."""
    held = {_content(name, seen.sha256) for name, seen in index.files.items()}
    gone = [number for number, sha256 in enumerate(index.rows) if sha256 not in held]
    if gone:
        index.vectors.remove_ids(np.asarray(gone, np.int64))
        index.rows = [sha256 for sha256 in index.rows if sha256 in held]
    index.unreadable = {key: why for key, why in index.unreadable.items() if key in held}
