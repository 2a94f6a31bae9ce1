"""What every tokenizer refuses, and the tokenizer that needs no file: one token for each byte of the UTF-8 text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UsageError
from zoo.nn.expressions import may_run
from zoo.registry.documents import parse_json

BYTES = 256
START, END = BYTES, BYTES + 1


class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 is the start and 257 the end. It keeps `zoo.api.Tokenizer`."""

    vocabulary = BYTES + 2
    start_id: int | None = START
    end_ids: tuple[int, ...] = (END,)
    chat = None

    def encode(self, text: str, /) -> list[int]:
        """Raises UsageError for anything but a str of valid Unicode."""
        check_text(text)
        return list(text.encode())

    def decode(self, ids: Sequence[int], /) -> str:
        """U+FFFD stands for what is no UTF-8; start and end are left out. Raises UsageError for ids out of range."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int, /) -> bytes:
        """Raises UsageError for an id out of range."""
        check_token(token, self.vocabulary)
        return bytes((token,)) if token < BYTES else b""


def check_text(text: object) -> None:
    """Raise UsageError for anything that is not a str of valid Unicode."""
    if not isinstance(text, str):
        raise UsageError(f"a text must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a text must be valid Unicode, got a lone surrogate at character {error.start}: decode it as UTF-8"
        ) from error


def check_token(token: int, vocabulary: int) -> None:
    """Raise UsageError for an id outside the vocabulary."""
    if not 0 <= token < vocabulary:
        raise UsageError(f"a token id must be from 0 to {vocabulary - 1}, got {token}")


def check_expressions(path: Path) -> None:
    """Raise UsageError for a `tokenizer.json` with an expression that may take longer than its text (`zoo.nn.expressions`), and for no JSON."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"), unique=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"a tokenizer must be a readable tokenizer.json, got {path} ({error})") from error
    for expression in _expressions(document):
        if not may_run(expression):
            raise UsageError(
                f"{path} cuts texts by the expression {expression!r:.80}, which may have to go back in a text again and again and is none of "
                f"the published ones known here: it is not run, since it may never end; without the file the model takes token ids"
            )


def _expressions(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if "Regex" in value and len(value) == 1:
            yield value["Regex"]
        for name, part in value.items():
            if name != "vocab":  # the only part that is large
                yield from _expressions(part)
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, (dict, list)):
                yield from _expressions(part)
