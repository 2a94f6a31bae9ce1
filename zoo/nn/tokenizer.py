"""What every tokenizer refuses, and the tokenizer that needs no file: one token for each byte of the UTF-8 text."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import UsageError

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
