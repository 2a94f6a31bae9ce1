"""What a decoder is asked: token ids, and the media that stand among them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import UsageError
from zoo.models.contracts import Decoder
from zoo.models.fusion.item import MOST_ITEMS, Placed


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and media items in the order of their positions among them (`zoo.models.fusion.item.Placed`)."""

    ids: tuple[int, ...]
    media: tuple[Placed, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content(self) -> tuple[Hashable, ...]:
        """One value for each token, equal where the same was read: an id, with the item that its token belongs to."""
        found: list[Hashable] = list(self.ids)
        for placed in self.media:
            for step in range(placed.tokens):
                here = placed.position + step
                found[here] = (found[here], placed.item.key, placed.item.modality, step, placed.tokens)
        return tuple(found)

    @property
    def words(self) -> tuple[int, ...]:
        """The ids that stand for text: those of an item's tokens may mean nothing."""
        covered = {placed.position + step for placed in self.media for step in range(placed.tokens)}
        return tuple(token for position, token in enumerate(self.ids) if position not in covered)

    def after(self, start: int) -> Prompt:
        """What is left to read when the first tokens were read: items that begin among those are theirs; one whose tokens are
        cut comes again, for the rest of them.
        """
        left = [placed.moved(-start) for placed in self.media if placed.position + placed.tokens > start]
        return Prompt(self.ids[start:], tuple(left))


def checked_prompts(decoder: Decoder, prompts: Sequence[Sequence[int] | Prompt], *, max_tokens: int) -> list[Prompt]:
    """Prompts as they are read: an empty one is the start token.

    Raises UsageError for no whole number of tokens, an empty prompt where there is no start token, one that leaves no room for an
    answer, media that do not stand in its tokens, and media for a decoder that reads text alone.
    """
    if not isinstance(max_tokens, int) or max_tokens < 0:
        raise UsageError(f"max_tokens must be a whole number of at least 0, got {max_tokens!r}")
    if not hasattr(decoder, "context"):
        raise UsageError(
            f"a decoder is asked (zoo.api.Decoder), got {type(decoder).__name__}; of a LanguageModel take .decoder"
        )
    start = decoder.tokenizer.start_id if decoder.tokenizer is not None else None
    checked = []
    if isinstance(prompts, (str, Prompt)) or not isinstance(prompts, Sequence) or not prompts:
        raise UsageError(
            f"prompts are a list with at least one prompt, each a list of token ids or a Prompt, got {prompts!r:.60}"
        )
    for number, given in enumerate(prompts):
        if not isinstance(given, Prompt) and (
            isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(one, int) for one in given)
        ):
            raise UsageError(
                f"prompt {number} must be a list of token ids (tokenizer.encode(text)) or a Prompt, got {given!r:.60}"
            )
        prompt = given if isinstance(given, Prompt) else Prompt(tuple(given))
        if not prompt.ids and start is None:
            raise UsageError(
                f"prompt {number} is empty, and this model has no start token to begin from: give it some text"
            )
        if not prompt.ids and start is not None:
            prompt = Prompt((int(start),), prompt.media)
        if len(prompt) + (max_tokens > 0) > decoder.context:
            raise UsageError(
                f"prompt {number} has {len(prompt):,} tokens, and the model reads and writes at most {decoder.context:,} together: "
                f"shorten it to leave room for an answer"
            )
        _check_media(decoder, prompt, number)
        checked.append(prompt)
    return checked


def _check_media(decoder: Any, prompt: Prompt, number: int) -> None:
    if not prompt.media:
        return
    sense_of = getattr(decoder, "sense_of", None)
    if sense_of is None:
        raise UsageError(
            f"prompt {number} holds media, and this model reads text alone: compose it with an encoder (zoo compose --help)"
        )
    if len(prompt.media) > MOST_ITEMS:
        raise UsageError(f"a prompt holds at most {MOST_ITEMS} media items, prompt {number} has {len(prompt.media):,}")
    end = 0
    for placed in prompt.media:
        sense_of(placed.item.modality)
        if placed.tokens < 1:
            raise UsageError(
                f"prompt {number} has an item of {placed.item.modality} that takes no token: nothing of it is real"
            )
        if placed.position < end or placed.position + placed.tokens > len(prompt):
            raise UsageError(
                f"media stand in the order of their tokens and apart: prompt {number} of {len(prompt)} tokens has an item of "
                f"{placed.item.modality} at {placed.position} that takes {placed.tokens}"
            )
        end = placed.position + placed.tokens
