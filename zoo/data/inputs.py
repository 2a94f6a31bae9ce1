"""What a user points at (paths, globs, folders, images, arrays, addresses) -> a list of items to work on, in order."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zoo.data.arguments import PREFIX, file_texts, forced, holds_text, is_there, media_suffixes, read_argument
from zoo.data.lines import TABLES, short_enough
from zoo.data.walk import Found, is_folder, matching, walk
from zoo.errors import MediaError, UsageError
from zoo.media.audio import Sound
from zoo.media.file import expanded
from zoo.media.image import MAX_PIXELS
from zoo.media.readers import open_media, suffixes_of
from zoo.registry.activation import warn
from zoo.registry.modality import AUDIO, IMAGE, TEXT

LONGEST_PATTERN = 512  # characters between two slashes; a name has 255 at most


@dataclass(frozen=True, slots=True)
class Item:
    """One input: how to name it in a result, where its pixels or samples are, and which of the two they are (or the file of a text).

    A folder that cannot be looked into is an input, too: reading it says why, and it costs itself alone.
    """

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


def mixed_sources(items: Iterable[Any] | Any, texts: Sequence[str], column: str | None = None) -> list[Source]:
    """Images, sounds and texts, in order: as `media_items` for what is an image, an array, a sound or an address; other strings and paths
    by the rule of `zoo.data.arguments`; a Source is itself.

    texts: more texts, whatever they look like. column: of the tables among the items. Raises UsageError when there is nothing, or what is
    there is neither.
    """
    if isinstance(texts, str):
        raise UsageError(f"texts are a list, got the single string {texts!r}")
    single = isinstance(items, (str, Path, Sound)) or hasattr(items, "__array_interface__")
    given = [items] if single else list(items)
    sources: list[Source] = []
    for one in given:
        if isinstance(one, Source):
            sources.append(one)
        elif isinstance(one, (str, Path)) and not is_url(one):
            sources += _named_sources(one, column)
        else:
            sources += [Source(item.modality, item) for item in media_items([one])]
    sources += [_text_source(text) for text in texts]
    if not sources:
        raise UsageError("nothing to embed: name image or audio files, folders, patterns or texts")
    return sources


def _named_sources(given: str | Path, column: str | None) -> list[Source]:
    """What a string or a path stands for where media and texts are taken."""
    if given == "":
        refuse_empty(given, "an image file, a folder, a pattern or a text")
    if _is_pattern(given):
        found = matching(str(expanded(given)))
        if any(not one.problem for one in found) or not any(character.isspace() for character in str(given)):
            return [source for one in _matches(given, found) for source in _sources_of(one, column)]
    named = isinstance(given, str) and not given.startswith(PREFIX) and given.lower().endswith(media_suffixes())
    meant = read_argument(given) if isinstance(given, str) and not named else expanded(given)
    if isinstance(meant, str):  # a medium that is not there is one among the results, as everywhere
        return [_text_source(meant)]
    return _sources_of(Found(meant), column, label=str(given))


def _sources_of(found: Found, column: str | None, label: str | None = None) -> list[Source]:
    """A path as media, or as the texts that it holds."""
    path = expanded(found.path)
    if found.problem or not holds_text(path):
        return [Source(item.modality, item) for item in _expand_found(found, None, label)]
    if path.suffix.lower() in TABLES:
        return [_text_source(text) for text in file_texts(path, column)]
    return [Source(TEXT, Item(label or str(path), path, TEXT))]


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
    if items and all(isinstance(item.source, Path) and not is_there(item.source) for item in items):
        others = f", nor any of the other {len(items) - 1}" if len(items) > 1 else ""
        raise MediaError(f"{printable(items[0].label)}: there is no such file{others}")


def require_folder(folder: Path) -> None:
    """Raise UsageError for what is no folder of images, MediaError for one that cannot be read."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}, expected a folder of images (zoo search DIR QUERY)")
    if not holds(folder, IMAGE) and holds(folder, AUDIO):
        raise UsageError(
            f"{folder}: the folder holds sounds, and images alone are searched (zoo embed gives their vectors)"
        )
    if not holds(folder, IMAGE):
        for found in walk(folder):
            if found.problem:
                raise MediaError(f"{found.path}: {found.problem}")
        raise UsageError(f"{folder}: the folder holds no image ({', '.join(suffixes_of(IMAGE))})")


def search_query(query: Any, query_image: Any) -> tuple[str, Any, str]:
    """What to search with: (modality, text or RGB image, how it is called). Raises UsageError and MediaError."""
    if (query is None) == (query_image is None):
        raise UsageError("give a query: either a text or an image file, or --query-image FILE")
    if query_image is None and isinstance(query, (str, Path)):
        query = _text_or_file(query)
        if isinstance(query, str):
            if not query.strip():
                raise UsageError("the query is empty: say what to look for, as in zoo search photos 'a red car'")
            refuse_lone_surrogates(query)
            return TEXT, query, query
    image = query if query_image is None else query_image
    label = printable(str(image)) if isinstance(image, (str, Path)) else "the image"
    source = expanded(image) if isinstance(image, (str, Path)) else image
    if isinstance(source, Path) and not source.exists():
        raise UsageError(f"{label}: there is no such image file to search with")
    return IMAGE, open_media(source, IMAGE), label


def _text_or_file(query: str | Path) -> str | Path:
    """A query as a text, where it is one or the file of one; else as the path of an image."""
    meant = read_argument(query) if isinstance(query, str) else query
    if isinstance(meant, str):
        return short_enough(meant, "the query")
    if is_folder(meant):
        raise UsageError(f"{meant}: a folder, where a text or an image is expected; {forced(str(meant))}")
    if not holds_text(meant):
        return meant
    if meant.suffix.lower() in TABLES:
        raise UsageError(f"{meant}: a table, where one text or an image is expected")
    return file_texts(meant)[0]


def is_url(given: object) -> bool:
    return isinstance(given, str) and given.startswith(("http://", "https://"))


def printable(text: str) -> str:
    """A name that any output can hold: bytes of file names that are not UTF-8 are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def holds(folder: Path, modality: str) -> bool:
    """Whether a folder has a file of the modality, however deep."""
    suffixes = suffixes_of(modality)
    return any(found.path.suffix.lower() in suffixes for found in walk(folder) if not found.problem)


def _modality_of_path(path: Path) -> str:
    if path.suffix.lower() in suffixes_of(AUDIO):
        return AUDIO
    if not is_folder(path) or not holds(path, AUDIO):
        return IMAGE
    if holds(path, IMAGE):
        raise UsageError(
            f"{path}: the folder holds images and sounds, and a model looks at one kind at a time: name one by a pattern, as "
            f"'{path}/**/*.wav'"
        )
    return AUDIO


def _text_source(text: str) -> Source:
    if not isinstance(text, str):
        raise UsageError(f"a text is a string, got {type(text).__name__}")
    short_enough(text, "an input")
    if not text.strip():
        raise UsageError("an empty text among the inputs: it has no meaning that a vector could hold")
    refuse_lone_surrogates(text)
    return Source(TEXT, Item(text, text.encode()))


def refuse_lone_surrogates(text: str) -> None:
    """Raises UsageError for half a character: another text would be computed than the one that was given."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a text holds half a character (U+{ord(text[error.start]):04X} at character {error.start:,}), which UTF-8 cannot write: {printable(text)[:80]}"
        ) from None


def _is_pattern(given: str | Path) -> bool:
    text = str(given)
    if len(max(text.split("/"), key=len)) > LONGEST_PATTERN:
        return False
    if not glob.has_magic(text) or text.startswith(PREFIX) or any(character in text for character in "\n\0"):
        return False
    return not is_there(expanded(given))


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
    if _is_pattern(given):
        found = _matches(given, matching(str(expanded(given))))
        return [item for one in found for item in _expand_found(one, modality)]
    return _expand_found(Found(expanded(given)), modality, text)


def _matches(given: str | Path, found: list[Found]) -> list[Found]:
    if not found:
        raise UsageError(f"{given}: no file matches the pattern")
    return found


def _expand_found(given: Found, modality: str | None, label: str | None = None) -> list[Item]:
    """The items of a path: a folder's files of the modality, and in their place each folder of it that cannot be looked into."""
    path = given.path
    modality = modality or (IMAGE if given.problem else _modality_of_path(path))
    if given.problem or not is_folder(path):
        return [Item(label or str(path), path, modality)]
    there = list(walk(path))
    suffixes = suffixes_of(modality)
    wanted = [found for found in there if found.problem or (found.path.suffix.lower() in suffixes and not found.linked)]
    if not wanted:
        raise UsageError(f"{path}: the folder holds no {modality} ({', '.join(suffixes)})")
    _say_left_out(path, there, modality)
    return [Item(str(found.path), found.path, modality) for found in wanted]


def _say_left_out(folder: Path, there: Sequence[Found], modality: str) -> None:
    """A warning that counts the files of a folder that are of no such modality, and one for links to folders."""
    suffixes = suffixes_of(modality)
    others = Counter(
        found.path.suffix.lower() or found.path.name
        for found in there
        if not found.problem and not found.linked and found.path.suffix.lower() not in suffixes
    )
    if others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5))
        more = ", ..." if len(others) > 5 else ""
        files = "file" if others.total() == 1 else "files"
        warn(f"{folder}: {others.total()} {files} left out, no {modality} by the suffix ({kinds}{more})")
    say_links(folder, there)


def say_links(folder: Path, there: Iterable[Found]) -> None:
    """A warning that counts the links to folders in a folder: they are not followed."""
    links = [found.path for found in there if found.linked]
    if links:
        are = "link to a folder is" if len(links) == 1 else "links to folders are"
        warn(f"{folder}: {len(links)} {are} not followed ({links[0]}): name the folder itself")
