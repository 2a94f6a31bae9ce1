"""Tokens guessed by another decoder, which is smaller or runs by a faster kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo.decoding.reading import device_of, prefill, step
from zoo.decoding.sampling import Sampling, choose
from zoo.errors import UsageError
from zoo.models.contracts import Decoder

DRAFTED = 4  # tokens of a guess: of a good draft about so many in a row are right
WORTH = 1.0  # right tokens of a guess, on average: fewer do not pay for the draft's own passes


def check_draft(decoder: Decoder, draft: Decoder) -> None:
    """Raise UsageError unless both decoders have the same tokens."""
    if draft is decoder:
        raise UsageError("a draft guesses for another decoder: open it anew, by a faster kernel for example")
    sizes = decoder.vocabulary, draft.vocabulary
    if sizes[0] != sizes[1]:
        raise UsageError(f"a draft must have the decoder's tokens, {sizes[0]:,} of them: this one has {sizes[1]:,}")
    ours, theirs = decoder.tokenizer, draft.tokenizer
    if ours is None or theirs is None or ours is theirs:
        return
    for token in range(sizes[0]):
        if ours.token_bytes(token) != theirs.token_bytes(token):
            raise UsageError(
                f"a draft must have the decoder's tokens: token {token} is {ours.token_bytes(token)!r}, of the draft "
                f"{theirs.token_bytes(token)!r}"
            )


class Draft:
    """What the other decoder would go on with: a `zoo.decoding.speculation.Guesser`."""

    def __init__(
        self, decoder: Decoder, ids: Sequence[int], *, room: int, most: int, sampling: Sampling, generator: torch.Generator
    ) -> None:
        """decoder: one that `check_draft` passed. ids: the prompt. room: tokens that may follow it. most: tokens of a guess.

        generator: of the answer. The draft draws by a copy of it: two decoders that nearly agree then mostly draw the same token.
        """
        self.decoder, self.most, self.sampling, self.generator = decoder, most, sampling, generator
        self.ids = list(ids)
        self.held: list[int] = []  # whose keys and values the cache has
        self.cache = decoder.new_cache(1, min(decoder.context, len(self.ids) + room + most))
        self.device = device_of(decoder)

    def add(self, token: int) -> None:
        """One more token of the text."""
        self.ids.append(token)

    def next(self) -> list[int]:
        """The guess; empty where the draft's context is full."""
        most = min(self.most, self.decoder.context - len(self.ids))
        if most < 1 or not self.ids:
            return []
        pairs = zip(self.held, self.ids[:-1], strict=False)  # the last one is read anew: its logits are wanted
        same = next((place for place, (one, own) in enumerate(pairs) if one != own), min(len(self.held), len(self.ids) - 1))
        self.cache.truncate(same)
        logits_1V = prefill(self.decoder, torch.tensor([self.ids[same:]], device=self.device), self.cache)
        ahead = torch.Generator()
        ahead.set_state(self.generator.get_state())
        guess = [self._drawn(logits_1V, [], ahead)]
        while len(guess) < most:
            logits_1V = step(self.decoder, torch.tensor(guess[-1:], device=self.device), self.cache)
            guess.append(self._drawn(logits_1V, guess, ahead))
        self.held = self.ids + guess[:-1]
        return guess

    def _drawn(self, logits_1V: torch.Tensor, guess: Sequence[int], generator: torch.Generator) -> int:
        held = [[*self.ids, *guess]] if self.sampling.repetition_penalty != 1.0 else None
        return int(choose(logits_1V, self.sampling, held=held, generators=[generator])[0])
