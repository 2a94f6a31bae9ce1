"""Tokens -> text while they come: never half a character, and never a piece of what turns out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from zoo.errors import UsageError


class TextStream:
    """The text of one answer. `push` takes the bytes of each token, `close` what was held back; their joined results are the text.

    stop: strings that end the answer, themselves left out, wherever tokens split them. The one that is complete first counts;
        of those that are complete at the same character, the longest.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise UsageError(f"stop is a list of strings that are not empty, got {stop!r}")
        self.stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """The text that is certain now that these bytes are there; "" after a stop string."""
        if self.stopped:
            return ""
        return self._release(self._decoder.decode(data), final=False)

    def copy(self) -> TextStream:
        """The same text so far, to go on in another way."""
        twin = TextStream(self._stop)
        twin.stopped, twin._held = self.stopped, self._held
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def close(self) -> str:
        """What is left at the end; an unfinished character becomes U+FFFD."""
        if self.stopped:
            return ""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        self._held += text
        found = [(place + len(stop), place) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)[1]], ""
            return certain
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` may begin with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
