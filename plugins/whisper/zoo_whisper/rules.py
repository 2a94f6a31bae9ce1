"""How a window is decoded, and what may not come next in it: the filters of openai-whisper's `decoding.py`, in its order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoo.api import UsageError
from zoo_whisper.tokens import SECONDS_PER_MOMENT, Controls

IMPOSSIBLE = float("-inf")
MOST_AT_ONCE = 256  # beams or samples of one window: the numbers of each are held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a window is decoded.

    language: a code, None for a model of English alone. task: "transcribe" or "translate" (into English).
    beam_size, patience: beams at temperature 0, greedy when None. best_of: samples to choose from at other temperatures.
    length_penalty: exponent of the length that scores are divided by; None: the length itself.
    suppressed: tokens that are never written. without_moments: text alone, no times.
    latest_first_moment_s: where the first word may begin at the latest; None: anywhere.
    """

    language: str | None
    task: str = "transcribe"
    beam_size: int | None = None
    patience: float | None = None
    best_of: int | None = None
    length_penalty: float | None = None
    suppressed: tuple[int, ...] = ()
    without_moments: bool = False
    latest_first_moment_s: float | None = 1.0

    def __post_init__(self) -> None:
        for name, value in (("beam_size", self.beam_size), ("best_of", self.best_of)):
            if value is not None and (not isinstance(value, int) or not 1 <= value <= MOST_AT_ONCE):
                raise UsageError(f"{name} is a whole number of at least 1 and at most {MOST_AT_ONCE}, got {value!r}")
        if self.task not in ("transcribe", "translate"):
            raise UsageError(f"task is transcribe or translate, got {self.task!r}")
        if self.patience is not None and self.beam_size is None:
            raise UsageError(f"patience={self.patience} is about beams: give beam_size, too")
        if self.beam_size is not None and self.patience is not None and not 0.5 < self.beam_size * self.patience < math.inf:
            raise UsageError(
                f"beam_size={self.beam_size} times patience={self.patience} must be at least one finished beam"
            )
        if self.length_penalty is not None and not 0 <= self.length_penalty <= 1:
            raise UsageError(f"length_penalty is from 0 to 1, got {self.length_penalty}")


class Filters:
    """What may not come next: suppressed tokens, a blank beginning, and moments out of order."""

    def __init__(self, model: Any, rules: Rules) -> None:
        self.known: Controls = model.controls
        vocabulary = model.decoder.vocabulary
        known = self.known
        never = {known.transcribe, known.translate, known.start, known.start_of_previous, known.start_of_language_model}
        never |= {known.no_speech, *rules.suppressed}
        self.moments = not rules.without_moments
        if self.moments:
            never.add(known.no_moments)
        device = next(model.decoder.position_embedding.parameters()).device
        self.always_V = torch.zeros(vocabulary, device=device)
        self.always_V[sorted(never)] = IMPOSSIBLE
        self.first_V = self.always_V.clone()
        self.first_V[[*model.vocabulary.encode(" ")[:1], known.end]] = IMPOSSIBLE
        if self.moments:
            self.first_V[: known.first_moment] = IMPOSSIBLE
            if rules.latest_first_moment_s is not None:
                latest = round(rules.latest_first_moment_s / SECONDS_PER_MOMENT)
                self.first_V[known.first_moment + latest + 1 :] = IMPOSSIBLE

    def apply(self, logits_RV: torch.Tensor, rows: Sequence[Sequence[int]]) -> None:
        """Set what may not follow the tokens of each row to minus infinity, in place."""
        known = self.known
        logits_RV += self.always_V if rows[0] else self.first_V
        if not self.moments:
            return
        for row, written in zip(logits_RV, rows, strict=True):
            self._in_order(row, written)
        # Where the moments together are likelier than any text, a moment it is.
        moments_R = logits_RV[:, known.first_moment :].logsumexp(-1)
        text_R = logits_RV[:, : known.first_moment].amax(-1)
        for row, moment_is_due in zip(logits_RV, (moments_R > text_R).tolist(), strict=True):
            if moment_is_due:
                row[: known.first_moment] = IMPOSSIBLE

    def _in_order(self, row_V: torch.Tensor, written: Sequence[int]) -> None:
        """Moments come in pairs, an end and a beginning, never go back, and no segment has length zero."""
        first = self.known.first_moment
        last_is_moment = bool(written) and written[-1] >= first
        before_is_moment = len(written) < 2 or written[-2] >= first
        if last_is_moment:
            if before_is_moment:
                row_V[first:] = IMPOSSIBLE
            else:
                row_V[: self.known.end] = IMPOSSIBLE
        latest = next((token for token in reversed(written) if token >= first), None)
        if latest is not None:
            still_open = last_is_moment and not before_is_moment
            row_V[first : latest if still_open else latest + 1] = IMPOSSIBLE
