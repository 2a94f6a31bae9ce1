"""Tokens guessed ahead: what a decoder would choose anyway is read several tokens a pass.

Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318) with guesses that are certain of themselves:
the decoder reads a guess in one pass and chooses its own token at each place, by the same random numbers as without a guess. Guessed tokens
stay as long as they are the chosen ones. The text is therefore the one that would be written without guesses, drawn or greedy; it can differ
where two tokens are as likely as each other and passes of several tokens end in other last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from zoo.decoding.reading import checked_logits, step
from zoo.models.contracts import Decoder
from zoo.nn.cache import Cache

TRIED, REST = 6, 24  # guesses that are judged together; tokens that go without one where those did not pay


class Guesser(Protocol):
    """Says what may follow. It has read the prompt."""

    def add(self, token: int) -> None:
        """One more token of the text."""
        ...

    def next(self) -> list[int]:
        """What may follow; empty: no idea."""
        ...


class Worth:
    """Whether guesses pay: when of the last few not half a token each was right, the next tokens go without."""

    def __init__(self, least: float = 0.5) -> None:
        """least: right tokens of a guess, on average."""
        self.least = least
        self.right: list[int] = []
        self.waits = 0

    def learn(self, right: int) -> None:
        """How many tokens of the last guess were right."""
        self.right = [*self.right[1 - TRIED :], right]
        if len(self.right) == TRIED and sum(self.right) < self.least * TRIED:
            self.right, self.waits = [], REST

    def now(self) -> bool:
        """Whether the next token is worth a guess."""
        self.waits = max(0, self.waits - 1)
        return self.waits == 0


def guessed_tokens(
    decoder: Decoder,
    logits_1V: torch.Tensor,
    cache: Cache,
    *,
    room: int,
    guesser: Guesser,
    choose: Callable[[torch.Tensor], int],
    worth: Worth | None = None,
) -> Iterator[int]:
    """The tokens of one answer, whose prompt the cache holds, until the caller stops or `room` are written.

    logits_1V: float[1, V], those of the first token. choose: logits float[1, V] -> the next token, asked once for each token in their order, after
    the caller has taken the one before.
    """
    worth, module = worth or Worth(), _call(decoder)
    token, written = choose(logits_1V), 1
    yield token
    while written < room:
        guesser.add(token)
        guess = guesser.next()[: room - written] if worth.now() else []
        if not guess:
            token = choose(step(decoder, torch.tensor([token], device=logits_1V.device), cache))
            written += 1
            yield token
            continue
        tokens_1T = torch.tensor([[token, *guess]], device=logits_1V.device)
        logits_TV = checked_logits(module(tokens_1T, cache=cache)[0].float())
        right = 0
        for place in range(len(guess) + 1):
            token = choose(logits_TV[place : place + 1])
            written += 1
            yield token
            if written == room:
                return
            if place == len(guess) or token != guess[place]:
                break
            guesser.add(token)
            right += 1
        worth.learn(right)
        if right < len(guess):
            cache.truncate(cache.length - (len(guess) - right))


def _call(decoder: Decoder) -> Any:
    """The decoder as the module that it is, so that hooks on it run."""
    return decoder
