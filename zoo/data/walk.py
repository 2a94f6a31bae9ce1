"""The one walk of a tree of files, for every command that is given a folder or a pattern.

What begins with a dot is no input: indexes, the `._` files of other systems, the rubbish of editors. Everything else is found, or the
folder that it lies in is named with the reason: no permission, a path that is longer than the system takes, gone in the meantime.
Links to folders are not followed, since they may lead anywhere and round in circles, and are said to be there.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """A file; or what could not be looked at, and why. linked: a link to a folder, which is not followed."""

    path: Path
    problem: str = ""
    linked: bool = False


class Listing(NamedTuple):
    """What lies in one folder: names, sorted. problem: why that cannot be said."""

    folder: Path
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    problem: str = ""


def is_folder(path: Path) -> bool:
    """False for what cannot be looked at, too: for a name that is too long, `Path.is_dir` raises."""
    return os.path.isdir(path)  # noqa: PTH112 - as said


def is_file(path: Path) -> bool:
    """As `is_folder`, of a file."""
    return os.path.isfile(path)  # noqa: PTH113 - as above


def listing(folder: Path, *, hidden: bool = False) -> Listing:
    """What lies in a folder; hidden: what begins with a dot, too."""
    try:
        with os.scandir(folder) as entries:
            kinds = {entry.name: _kind(entry) for entry in entries if hidden or not entry.name.startswith(".")}
    except OSError as error:
        return Listing(folder, problem=f"the folder cannot be read ({error.strerror or error})")
    of_kind = {kind: tuple(sorted(name for name in kinds if kinds[name] == kind)) for kind in ("file", "folder", "link")}
    return Listing(folder, of_kind["file"], of_kind["folder"], of_kind["link"])


def listings(folder: Path) -> Iterator[Listing]:
    """Of a folder and all that it holds: each before those inside it."""
    waiting = [folder]
    while waiting:
        one = listing(waiting.pop())
        yield one
        waiting += [one.folder / name for name in reversed(one.folders)]


def walk(folder: Path) -> Iterator[Found]:
    """Everything in a folder, however deep, in the order of the names."""
    waiting: list[tuple[Path, str]] = [(folder, "folder")]
    while waiting:
        path, kind = waiting.pop()
        if kind != "folder":
            yield Found(path, linked=kind == "link")
            continue
        one = listing(path)
        if one.problem:
            yield Found(path, one.problem)
        inside = [
            *((name, "file") for name in one.files),
            *((name, "folder") for name in one.folders),
            *((name, "link") for name in one.links),
        ]
        waiting += [(path / name, kind) for name, kind in sorted(inside, reverse=True)]


def matching(pattern: str) -> list[Found]:
    """What a pattern stands for, sorted: `*`, `?` and `[ab]` in a name, `**` for any number of folders.

    The folder itself stands for all in it where the pattern ends in `**`.
    """
    given = Path(pattern).parts
    parts = tuple(part for number, part in enumerate(given) if not (part == "**" and given[number - 1 : number] == ("**",)))
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:first])
    found = dict.fromkeys(_matching(base, parts[first:]) if is_folder(base) else ())
    return sorted(found, key=lambda one: str(one.path))


def _matching(folder: Path, parts: tuple[str, ...]) -> Iterator[Found]:
    first, rest = parts[0], parts[1:]
    if first == "**" and not rest:
        yield Found(folder)
        return
    if not glob.has_magic(first):
        if rest:
            yield from _inside(folder / first, rest)
        elif os.path.lexists(folder / first):
            yield Found(folder / first)
        return
    if first == "**":
        for one in listings(folder):
            if one.problem:
                yield Found(one.folder, one.problem)
            else:
                yield from _matching(one.folder, rest)
        return
    one = listing(folder, hidden=first.startswith("."))
    if one.problem:
        yield Found(folder, one.problem)
    for name in sorted([*one.files, *one.folders, *one.links]):
        if fnmatchcase(name, first):
            yield from _inside(folder / name, rest) if rest else (Found(folder / name),)


def _inside(path: Path, parts: tuple[str, ...]) -> Iterator[Found]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in (
            errno.ENOENT,
            errno.ENOTDIR,
            errno.ELOOP,
        ):  # no such folder, and a link that leads nowhere or in a circle
            return
        yield Found(path, f"cannot be read ({error.strerror or error})")
        return
    if is_folder:
        yield from _matching(path, parts)


def _kind(entry: os.DirEntry[str]) -> str:
    """What is no folder is a file, to be looked at where it is read: a link that leads nowhere is named then."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "link" if entry.is_symlink() and entry.is_dir() else "file"
    except OSError:  # a link that leads round in a circle
        return "file"
