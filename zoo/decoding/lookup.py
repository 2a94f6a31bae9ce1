"""Tokens guessed from what was read: a text that repeats itself is written several tokens a pass.

Prompt look-up decoding (Saxena 2023; Yang et al. 2023, arXiv:2304.04487): what followed the last tokens where they stood before is guessed to
follow again, the decoder reads the guess in one pass, and as many of its tokens stay as it would have chosen itself. The text is the greedy
one; it can differ where two tokens are as likely as each other and passes of several tokens end in other last digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from zoo.decoding.reading import checked_logits, step
from zoo.models.contracts import Decoder
from zoo.nn.cache import Cache

LONGEST, SHORTEST = 3, 2  # tokens whose earlier place is looked for, the longer first
TRIED, REST = (
    6,
    24,
)  # guesses of which at least half a token must have been right on average, else so many tokens go without


class Guesses:
    """What follows the last tokens of a row where they stood before."""

    def __init__(self, ids: Sequence[int], most: int) -> None:
        """most: tokens of a guess."""
        self.most = most
        self.ids: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # some tokens in a row -> where what follows them begins, the last time
        self.right: list[int] = []  # of the last guesses
        self.waits = 0
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token of the row."""
        for length in range(SHORTEST, LONGEST + 1):
            if len(self.ids) >= length:
                self.after[tuple(self.ids[-length:])] = len(self.ids)
        self.ids.append(token)

    def next(self) -> list[int]:
        """The guess; empty where the last tokens are new, or guessing has not paid lately."""
        if self.waits:
            self.waits -= 1
            return []
        for length in range(LONGEST, SHORTEST - 1, -1):
            start = self.after.get(tuple(self.ids[-length:])) if len(self.ids) >= length else None
            if start is not None:
                return self.ids[start : start + self.most]
        return []

    def learn(self, right: int) -> None:
        """How many tokens of the last guess were right."""
        self.right = [*self.right[1 - TRIED :], right]
        if len(self.right) == TRIED and 2 * sum(self.right) < TRIED:
            self.right, self.waits = [], REST


def greedy_tokens(
    decoder: Decoder, prompt: Sequence[int], logits_1V: torch.Tensor, cache: Cache, *, room: int, most: int
) -> Iterator[int]:
    """The tokens of a greedy answer, of one row whose prompt the cache holds, until the caller stops or `room` are written.

    logits_1V: those of the first. most: tokens guessed at once.
    """
    guesses, module = Guesses(prompt, most), _call(decoder)
    written = 0
    while True:
        token = int(logits_1V.argmax(-1))
        written += 1
        yield token
        if written == room:
            return
        guesses.add(token)
        guess = guesses.next()[: room - written]
        if not guess:
            logits_1V = step(decoder, torch.tensor([token], device=logits_1V.device), cache)
            continue
        tokens_1T = torch.tensor([[token, *guess]], device=logits_1V.device)
        logits_TV = checked_logits(module(tokens_1T, cache=cache)[0].float())
        right = _right(guess, logits_TV)
        guesses.learn(right)
        for accepted in guess[:right]:
            written += 1
            yield accepted
            if written == room:
                return
            guesses.add(accepted)
        if right < len(guess):
            cache.truncate(cache.length - (len(guess) - right))
        logits_1V = logits_TV[right : right + 1]


def _right(guess: Sequence[int], logits_TV: torch.Tensor) -> int:
    """How many tokens of a guess, from its first, the decoder would have chosen."""
    chosen = logits_TV[: len(guess)].argmax(-1).tolist()
    return next((place for place, (one, own) in enumerate(zip(guess, chosen, strict=True)) if one != own), len(guess))


def _call(decoder: Decoder) -> Any:
    """The decoder as the module that it is, so that hooks on it run."""
    return decoder
