"""What a folder without a tokenizer still says of its tokens: where an answer begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from zoo.api import UsageError
from zoo.nn import check_token


class TokenIds:
    """A `zoo.api.Tokenizer` that knows the start and the ends, and no text: answers of token ids end where the model ends them."""

    chat = None

    def __init__(self, folder: Path, *, start_id: int | None, end_ids: tuple[int, ...], vocabulary: int) -> None:
        self.folder = folder
        self.start_id, self.end_ids, self.vocabulary = start_id, end_ids, vocabulary

    def encode(self, text: str, /) -> list[int]:
        """Raises UsageError: nobody knows the ids of a text."""
        self._refuse(text)

    def decode(self, ids: Sequence[int], /) -> str:
        """Raises UsageError, as `encode` does."""
        self._refuse(ids)

    def token_bytes(self, token: int, /) -> bytes:
        """None of any token: an answer is its ids. Raises UsageError for an id outside the vocabulary."""
        check_token(token, self.vocabulary)
        return b""

    def _refuse(self, given: object) -> NoReturn:
        raise UsageError(
            f"{self.folder} has no tokenizer.json, so it turns no text into token ids, nor back: save the tokenizer beside the model, or give "
            f"and take ids (got {given!r:.40})"
        )
