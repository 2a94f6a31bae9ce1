"""What a user points at (paths, globs, folders, images, arrays, addresses) -> a list of items to work on, in order."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zoo.errors import MediaError, UsageError
from zoo.media.audio import Sound
from zoo.media.file import expanded
from zoo.media.image import MAX_PIXELS
from zoo.media.readers import open_media, suffixes_of
from zoo.registry.modality import AUDIO, IMAGE, TEXT


@dataclass(frozen=True, slots=True)
class Item:
    """One input: how to name it in a result, where its pixels or samples are, and which of the two they are."""

    label: str
    source: str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Sound
    modality: str = IMAGE


class Source(NamedTuple):
    """One input: an image, a sound or a text."""

    modality: str
    item: Item


def media_items(inputs: Iterable[Any] | Any) -> list[Item]:
    """Expand inputs: a folder gives its images or its sounds (recursively, sorted), a pattern its matches, anything else itself.

    What a file is follows from its suffix, and a folder that holds images is one of images.
    Raises UsageError for an empty list, images among sounds, a folder without either or a pattern without matches. A file that does
    not exist is kept: it becomes an error among the results, and the others are answered.
    """
    single = isinstance(inputs, (str, Path, Image.Image, np.ndarray, Sound, Item))
    items = [item for given in ([inputs] if single else inputs) for item in _expand(given)]
    if not items:
        raise UsageError("no image or sound given: name files, folders or patterns such as 'photos/*.jpg'")
    first = {item.modality: printable(item.label) for item in reversed(items)}
    if len(first) > 1:
        raise UsageError(
            f"images and sounds together ({first[IMAGE]}, {first[AUDIO]}): a model looks at one kind at a time, give each a call of its own"
        )
    return items


def mixed_sources(items: Iterable[Any] | Any, texts: Sequence[str]) -> list[Source]:
    """Images, sounds and texts, in order: as `media_items` for what is a path, an image, an array or a sound; any other string is
    a text; a Source is itself.

    texts: more texts, whatever they look like. Raises UsageError when there is nothing, or what is there is neither.
    """
    if isinstance(texts, str):
        raise UsageError(f"texts are a list, got the single string {texts!r}")
    single = isinstance(items, (str, Path, Sound)) or hasattr(items, "__array_interface__")
    given = [items] if single else list(items)
    sources: list[Source] = []
    for one in given:
        if isinstance(one, Source):
            sources.append(one)
        elif isinstance(one, str) and _is_text(one):
            sources.append(_text_source(one))
        else:
            sources += [Source(item.modality, item) for item in media_items([one])]
    sources += [_text_source(text) for text in texts]
    if not sources:
        raise UsageError("nothing to embed: name image or audio files, folders, patterns or texts")
    return sources


def audio_files(inputs: Iterable[str | Path]) -> list[Item]:
    """Audio files: a folder gives those in it (recursively, sorted), a pattern its matches, anything else itself.

    Raises UsageError where that is nothing, or an address.
    """
    return [item for given in inputs for item in expand_files(given, AUDIO)]


def refuse_empty(given: object, expected: str) -> None:
    """Raise UsageError for the empty string, which a path takes for the current folder and a script has for a variable not set."""
    if isinstance(given, str) and not given.strip():
        raise UsageError(f"an empty argument {given!r}: expected {expected} (the current folder is called .)")


def require_one(items: Sequence[Item]) -> None:
    """Raise MediaError when not one of the items is there: said before anything is loaded for them."""
    if items and all(isinstance(item.source, Path) and not _exists(item.source) for item in items):
        others = f", nor any of the other {len(items) - 1}" if len(items) > 1 else ""
        raise MediaError(f"{printable(items[0].label)}: there is no such file{others}")


def require_folder(folder: Path) -> None:
    """Raise UsageError for what is no folder of images."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}, expected a folder of images (zoo search DIR QUERY)")
    if not holds(folder, IMAGE) and holds(folder, AUDIO):
        raise UsageError(
            f"{folder}: the folder holds sounds, and images alone are searched (zoo embed gives their vectors)"
        )
    if not holds(folder, IMAGE):
        raise UsageError(f"{folder}: the folder holds no image ({', '.join(suffixes_of(IMAGE))})")


def search_query(query: Any, query_image: Any) -> tuple[str, Any, str]:
    """What to search with: (modality, text or RGB image, how it is called). Raises UsageError and MediaError."""
    if (query is None) == (query_image is None):
        raise UsageError("give a query: either a text or an image file, or --query-image FILE")
    if query_image is None and isinstance(query, str):
        is_image_name = query.lower().endswith(suffixes_of(IMAGE))
        if not is_image_name:
            if not query.strip():
                raise UsageError("the query is empty: say what to look for, as in zoo search photos 'a red car'")
            return TEXT, printable(query), printable(query)
        query = Path(query)
    image = query if query_image is None else query_image
    label = printable(str(image)) if isinstance(image, (str, Path)) else "the image"
    source = Path(image).expanduser() if isinstance(image, (str, Path)) else image
    if isinstance(source, Path) and not source.exists():
        raise UsageError(f"{label}: there is no such image file to search with")
    return IMAGE, open_media(source, IMAGE), label


def is_url(given: object) -> bool:
    return isinstance(given, str) and given.startswith(("http://", "https://"))


def printable(text: str) -> str:
    """A name that any output can hold: bytes of file names that are not UTF-8 are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def holds(folder: Path, modality: str) -> bool:
    """Whether a folder has a file of the modality, however deep."""
    return any(file.suffix.lower() in suffixes_of(modality) and file.is_file() for file in folder.rglob("*"))


def _modality_of_path(path: Path) -> str:
    if path.suffix.lower() in suffixes_of(AUDIO):
        return AUDIO
    if not path.is_dir() or not holds(path, AUDIO):
        return IMAGE
    if holds(path, IMAGE):
        raise UsageError(
            f"{path}: the folder holds images and sounds, and a model looks at one kind at a time: name one by a pattern, as "
            f"'{path}/**/*.wav'"
        )
    return AUDIO


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or holding a NUL
        return False


def _text_source(text: str) -> Source:
    if not isinstance(text, str):
        raise UsageError(f"a text is a string, got {type(text).__name__}")
    if not text.strip():
        raise UsageError("an empty text among the inputs: it has no meaning that a vector could hold")
    return Source(TEXT, Item(text, printable(text).encode()))


def _is_text(given: str) -> bool:
    """What is no address, no path that exists, no pattern, and has no suffix of a medium (a mistyped path must not become a text)."""
    path = expanded(given)
    if is_url(given) or given.lower().endswith((*suffixes_of(IMAGE), *suffixes_of(AUDIO))) or given.endswith(("/", os.sep)):
        return False
    try:
        if path.exists():
            return False
    except (OSError, ValueError):  # too long for a path, or holding a NUL
        return True
    if not glob.has_magic(given):
        return True
    return any(character.isspace() for character in given) and not glob.glob(str(path), recursive=True)  # noqa: PTH207 - as in inputs


def _expand(given: Any) -> list[Item]:
    if isinstance(given, Item):
        return [given]
    if isinstance(given, Image.Image):
        with suppress(Exception):  # what is wrong with it is said when it is used
            if given.width * given.height <= MAX_PIXELS:
                given.load()  # here, once: threads may meet the same object, and reading its file is not theirs to share
        return [Item(getattr(given, "filename", "") or "PIL image", given)]
    if isinstance(given, np.ndarray):
        return [Item(f"array {list(given.shape)}", given)]
    if isinstance(given, Sound):
        return [Item(f"sound of {given.duration_s:.1f} s", given, AUDIO)]
    if not isinstance(given, (str, Path)):
        raise UsageError(
            f"an image is a path, a PIL image or an array, and a sound a path or a zoo.Sound, got {type(given).__name__}"
        )
    return expand_files(given, None)


def expand_files(given: str | Path, modality: str | None) -> list[Item]:
    """What a path, a pattern or an address of images or sounds stands for; modality None: what its name says."""
    text = str(given)
    refuse_empty(given, f"an {modality or IMAGE} file, a folder or a pattern")
    if is_url(text):
        if modality == AUDIO:
            raise UsageError(f"{text}: addresses of sounds are not followed: download the file first")
        return [Item(text, text)]
    path = expanded(given)
    if glob.has_magic(text) and not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        if not matches:
            raise UsageError(f"{text}: no file matches the pattern")
        return [item for match in matches for item in expand_files(match, modality)]
    modality = modality or _modality_of_path(path)
    if path.is_dir():
        there = sorted(file for file in path.rglob("*") if file.is_file())
        files = [file for file in there if file.suffix.lower() in suffixes_of(modality)]
        if not files:
            raise UsageError(f"{path}: the folder holds no {modality} ({', '.join(suffixes_of(modality))})")
        _say_left_out(path, there, modality)
        return [Item(str(file), file, modality) for file in files]
    return [Item(text, path, modality)]


def _say_left_out(folder: Path, there: Sequence[Path], modality: str) -> None:
    """One warning that counts the files of a folder that are of no such modality; what begins with a dot is nobody's input."""
    others = Counter(
        file.suffix.lower() or file.name
        for file in there
        if file.suffix.lower() not in suffixes_of(modality)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5))
        more = ", ..." if len(others) > 5 else ""
        logging.getLogger("zoo").warning(
            "%s: %d %s left out, no %s by the suffix (%s%s)",
            printable(str(folder)), others.total(), "file" if others.total() == 1 else "files", modality, printable(kinds), more,
        )  # fmt: skip
