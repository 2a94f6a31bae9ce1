"""The one rule for an argument that may be a text or the name of a file, for every command.

    text:...                       the text behind the colon, whatever it looks like
    what is there as a path        that file: a medium, a text file, or a table of texts, which asks for --column
    a name that ends as files do   and is not there: an error, since it is a mistyped name
    anything else                  a text

In Python a string is a text where texts are expected, and a `pathlib.Path` is a file; `zoo.embed` takes strings by this rule.
"""

from __future__ import annotations

import os
from pathlib import Path

from zoo.data.lines import TABLES, read_column, read_text, refuse_column
from zoo.data.walk import is_file, is_folder
from zoo.errors import UsageError
from zoo.media.file import expanded
from zoo.media.readers import suffixes_of
from zoo.registry.modality import SUFFIXES

PREFIX = "text:"
# Files that hold texts, and files that people mistake for such: a name that ends so and is not there was mistyped.
TEXTS = (".txt", ".text", ".md", ".rst", ".log", ".json", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".srt", ".vtt")
DOCUMENTS = (
    ".pdf",
    ".docx",
    ".odt",
    ".xlsx",
    ".ods",
    ".parquet",
    ".npz",
    ".npy",
    ".safetensors",
    ".gguf",
    ".zip",
    ".tar",
    ".gz",
)
HEAD_BYTES = 4096


class Text(str):
    """A text, whatever it looks like: one that nobody is to take for the name of a file any more."""

    __slots__ = ()


def read_argument(given: str) -> Text | Path:
    """A text, or the path of a file or folder. Raises UsageError for the name of one that is not there."""
    if given.startswith(PREFIX):
        return Text(given.removeprefix(PREFIX))
    path = expanded(given)
    if given and is_there(path):
        return path
    if any(character in given for character in "\n\0"):
        return Text(given)
    if given.endswith(("/", os.sep)) and not any(character.isspace() for character in given):
        raise UsageError(f"there is no folder {given}; {forced(given)}")
    if path.suffix.lower() in known_suffixes():
        raise UsageError(f"there is no file {given}; {forced(given)}")
    return Text(given)


def is_there(path: Path) -> bool:
    """Whether a path names something: a link that leads nowhere, too, and what nobody lets us look at. A long text is no path."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def forced(given: str) -> str:
    """How to say that an argument is meant as a text."""
    return f"if it is meant as text, put {PREFIX} before it ('{PREFIX}{given[:40]}{'...' if given[40:] else ''}')"


def media_suffixes() -> tuple[str, ...]:
    return tuple(suffix for modality in SUFFIXES for suffix in suffixes_of(modality))


def known_suffixes() -> tuple[str, ...]:
    """How names of files end."""
    return (*media_suffixes(), *TEXTS, *TABLES, *DOCUMENTS)


def holds_text(path: Path) -> bool:
    """Whether a file is one of texts: by its suffix, or where that says nothing by what it begins with."""
    suffix = path.suffix.lower()
    if suffix in (*TEXTS, *TABLES):
        return True
    if suffix in media_suffixes() or not is_file(path):
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    return bool(head) and b"\0" not in head and _begins_as_utf_8(head)


def file_texts(path: Path, column: str | None = None) -> list[Text]:
    """The texts of a file: the whole of a text file, each row of a table's column.

    Raises UsageError for a folder, a medium, a table without a column and a column of what is no table, MediaError for what is no text.
    """
    if is_folder(path):
        raise UsageError(f"{path}: a folder, where a text or a text file is expected; {forced(str(path))}")
    if path.suffix.lower() in media_suffixes():
        raise UsageError(
            f"{path}: an image, a sound or a film by its name, where a text or a text file is expected; {forced(str(path))}"
        )
    if path.suffix.lower() in TABLES:
        return [Text(text) for text in read_column(path, column)]
    refuse_column(path, column)
    return [Text(read_text(path))]


def argument_texts(given: str, column: str | None = None) -> list[Text]:
    """What an argument stands for where texts alone are expected. Raises as `read_argument` and `file_texts` do."""
    meant = read_argument(given)
    return [meant] if isinstance(meant, str) else file_texts(meant, column)


def _begins_as_utf_8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True
