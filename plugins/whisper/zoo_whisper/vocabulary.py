"""Text -> Whisper's tokens and back, by openai-whisper's own tokenizer. Whatever a user writes is text, control tokens included."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.api import UsageError
from zoo_whisper.openai_package import tokenizer
from zoo_whisper.tokens import Controls


class Vocabulary:
    """`encode`, `decode` and what else of a text its tokens decide."""

    def __init__(self, known: Controls) -> None:
        self.known = known
        self.theirs = tokenizer(known.multilingual, len(known.languages) or 99, None)

    def encode(self, text: str) -> list[int]:
        """Token ids of any text. Raises UsageError for a str that is no valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("a text must be valid Unicode, got a lone surrogate: decode it as UTF-8") from error
        ids: list[int] = self.theirs.encode(text, disallowed_special=())
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of its tokens; control tokens have none, and bytes that are no UTF-8 become U+FFFD."""
        return str(self.theirs.encoding.decode([token for token in ids if token < self.known.end]))

    def unspoken(self) -> list[int]:
        """Tokens to suppress, so that nothing is written that nobody said."""
        return list(self.theirs.non_speech_tokens)

    def words(self, ids: Sequence[int], language: str | None) -> list[tuple[str, list[int]]]:
        """Text tokens -> words with their tokens, whole characters at least; a word brings the space before it."""
        theirs = tokenizer(self.known.multilingual, len(self.known.languages) or 99, language)
        return list(zip(*theirs.split_to_word_tokens(list(ids)), strict=True))
