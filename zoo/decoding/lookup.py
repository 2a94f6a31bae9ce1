"""Tokens guessed from what was read: prompt look-up (Saxena 2023; Yang et al. 2023, arXiv:2304.04487).

What followed the last tokens where they stood before is guessed to follow again, which costs nothing and is right where a text repeats itself.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # tokens whose earlier place is looked for, the longer first


class Lookup:
    """What follows the last tokens of a text where they stood before: a `zoo.decoding.speculation.Guesser`."""

    def __init__(self, ids: Sequence[int], most: int) -> None:
        """ids: the prompt. most: tokens of a guess."""
        self.most = most
        self.ids: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # some tokens in a row -> where what follows them begins, the last time
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token of the text."""
        for length in range(SHORTEST, LONGEST + 1):
            if len(self.ids) >= length:
                self.after[tuple(self.ids[-length:])] = len(self.ids)
        self.ids.append(token)

    def next(self) -> list[int]:
        """The guess; empty where the last tokens are new."""
        for length in range(LONGEST, SHORTEST - 1, -1):
            start = self.after.get(tuple(self.ids[-length:])) if len(self.ids) >= length else None
            if start is not None:
                return self.ids[start : start + self.most]
        return []
