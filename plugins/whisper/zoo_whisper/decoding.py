"""A window that was heard -> its tokens: greedy, sampled or by beams, under the rules of a transcript.

Everything here answers to openai-whisper's `decoding.py` (`DecodingTask`): the same rules in the same order, the same scores. The
tests compare tokens and log-probabilities.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from zoo.api import UsageError
from zoo_whisper.hearing import Heard, Writing
from zoo_whisper.tokens import SECONDS_PER_MOMENT, Controls

IMPOSSIBLE = float("-inf")


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
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} is a whole number of at least 1, got {value!r}")
        if self.task not in ("transcribe", "translate"):
            raise UsageError(f"task is transcribe or translate, got {self.task!r}")
        if self.patience is not None and self.beam_size is None:
            raise UsageError(f"patience={self.patience} is about beams: give beam_size, too")
        if self.beam_size is not None and self.patience is not None and round(self.beam_size * self.patience) < 1:
            raise UsageError(
                f"beam_size={self.beam_size} times patience={self.patience} must be at least one finished beam"
            )
        if self.length_penalty is not None and not 0 <= self.length_penalty <= 1:
            raise UsageError(f"length_penalty is from 0 to 1, got {self.length_penalty}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What was written about one window. `average_log_probability` is over its tokens and the end."""

    tokens: list[int]
    text: str
    average_log_probability: float
    no_speech_probability: float
    temperature: float
    compression_ratio: float


def compression_ratio(text: str) -> float:
    """Bytes of a text over what zlib makes of them: above 2.4 it repeats itself."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


def decode(
    model: Any,
    heard: Heard,
    rules: Rules,
    *,
    prompt: Sequence[int] = (),
    temperature: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
) -> list[Decoded]:
    """Decode B windows that share their rules and what came before.

    prompt: tokens of the text before, of which as many of the last are used as half the context holds.
    generators: what each window's samples are drawn with, so that none depends on the others; torch's own when None.
    """
    known: Controls = model.controls
    decoder = model.decoder
    longest = decoder.context // 2
    opening = known.opening(rules.language, rules.task)
    if rules.without_moments:
        opening = [*opening, known.no_moments]
    begun = [known.start_of_previous, *list(prompt)[-(longest - 1) :], *opening] if prompt else opening
    sampling = temperature > 0
    each = (rules.best_of if sampling else rules.beam_size) or 1
    writing = Writing(decoder, heard, rows=heard.windows * each, capacity=len(begun) + longest)
    tokens_RT = torch.tensor([begun], device=writing.store.device).repeat(writing.rows, 1)
    features = writing.read(tokens_RT)
    at_start = decoder.logits(features[::each, begun.index(known.start)]).float().softmax(-1)
    no_speech = at_start[:, known.no_speech].tolist()
    logits_RV = decoder.logits(features[:, -1]).float()
    chooser: _Greedy | _Beams = (
        _Beams(heard.windows, each, rules.patience or 1.0, known.end)
        if rules.beam_size is not None and not sampling
        else _Greedy(heard.windows, each, temperature, known.end, generators)
    )
    filters = _Filters(model, rules)
    rows: list[list[int]] = [[] for _ in range(writing.rows)]
    for number in range(longest):
        filters.apply(logits_RV, rows)
        rows, order = chooser.step(logits_RV, rows)
        if chooser.finished or len(begun) + number + 1 > decoder.context or number == longest - 1:
            break
        if order is not None:
            writing.select(order)
        going = chooser.going()
        if len(going) < writing.heard.windows:
            writing.keep(going)
            rows = chooser.drop(rows)
        last = torch.tensor([[row[-1]] for row in rows], device=writing.store.device)
        logits_RV = decoder.logits(writing.read(last)[:, -1]).float()
    answers = chooser.best(rows, rules.length_penalty)
    results = []
    for (tokens, sum_of_logs), silence in zip(answers, no_speech, strict=True):
        text = model.vocabulary.decode(tokens).strip()
        results.append(
            Decoded(
                tokens=tokens,
                text=text,
                average_log_probability=sum_of_logs / (len(tokens) + 1),
                no_speech_probability=silence,
                temperature=temperature,
                compression_ratio=compression_ratio(text),
            )
        )
    return results


class _Filters:
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


class _Greedy:
    """The likeliest token, or a sample; a row that has ended stays as it is."""

    def __init__(
        self, windows: int, each: int, temperature: float, end: int, generators: Sequence[torch.Generator] | None
    ) -> None:
        self.each, self.temperature, self.end, self.generators = each, temperature, end, generators
        self.sums: list[float] = [0.0] * (windows * each)
        self.windows = list(range(windows))  # those that are still written
        self.over: dict[int, list[tuple[list[int], float]]] = {}
        self.rows: list[list[int]] = []

    def step(self, logits_RV: torch.Tensor, rows: list[list[int]]) -> tuple[list[list[int]], None]:
        if self.temperature == 0:
            chosen_R = logits_RV.argmax(-1)
        else:
            chosen_R = self._drawn((logits_RV / self.temperature).softmax(-1))
        logs = log_softmax(logits_RV, -1).gather(1, chosen_R[:, None])[:, 0].tolist()
        grown = []
        for number, (row, token, log) in enumerate(zip(rows, chosen_R.tolist(), logs, strict=True)):
            ended = bool(row) and row[-1] == self.end
            if not ended:
                self.sums[number] += log
            grown.append([*row, self.end if ended else token])
        self.rows = grown
        return grown, None

    def _drawn(self, shares_RV: torch.Tensor) -> torch.Tensor:
        if self.generators is None:
            return torch.multinomial(shares_RV, 1, replacement=True)[:, 0]
        drawn = [
            torch.multinomial(shares, 1, replacement=True, generator=self.generators[window])
            for window, shares in zip(self.windows, torch.split(shares_RV, self.each), strict=True)
        ]
        return torch.cat(drawn)[:, 0]

    @property
    def finished(self) -> bool:
        return all(row[-1] == self.end for row in self.rows)

    def going(self) -> list[int]:
        """Which of the windows that were still written are not done."""
        return [place for place in range(len(self.windows)) if not self._done(place)]

    def drop(self, rows: list[list[int]]) -> list[list[int]]:
        """Put away the windows that are done; the rows of the others."""
        going = self.going()
        for place, window in enumerate(self.windows):
            if place not in going:
                self.over[window] = self._of(place, rows)
        kept = [place * self.each + number for place in going for number in range(self.each)]
        self.windows = [self.windows[place] for place in going]
        self.sums = [self.sums[number] for number in kept]
        return [rows[number] for number in kept]

    def best(self, rows: list[list[int]], length_penalty: float | None) -> list[tuple[list[int], float]]:
        for place, window in enumerate(self.windows):
            self.over[window] = self._of(place, rows)
        return [_best_of(self.over[window], length_penalty) for window in sorted(self.over)]

    def _done(self, place: int) -> bool:
        return all(row[-1] == self.end for row in self.rows[place * self.each : (place + 1) * self.each])

    def _of(self, place: int, rows: list[list[int]]) -> list[tuple[list[int], float]]:
        own = range(place * self.each, (place + 1) * self.each)
        return [(_without_end(rows[number], self.end), self.sums[number]) for number in own]


class _Beams:
    """The likeliest rows of each window; those that end are put aside, and enough of them end it."""

    def __init__(self, windows: int, each: int, patience: float, end: int) -> None:
        self.each, self.end = each, end
        self.wanted = round(each * patience)
        self.sums: list[float] = [0.0] * (windows * each)
        self.ended: list[dict[tuple[int, ...], float]] = [{} for _ in range(windows)]

    def step(self, logits_RV: torch.Tensor, rows: list[list[int]]) -> tuple[list[list[int]], list[int]]:
        values, tokens = log_softmax(logits_RV, -1).topk(self.each + 1)
        # Sums are kept as float32, as the reference adds them.
        sums_R1 = torch.tensor(self.sums)[:, None]
        totals, chosen = (sums_R1 + values.cpu()).tolist(), tokens.tolist()
        grown: list[list[int]] = []
        order: list[int] = []
        sums: list[float] = []
        for window, ended in enumerate(self.ended):
            candidates: dict[tuple[int, ...], tuple[float, int]] = {}
            for row in range(window * self.each, (window + 1) * self.each):
                for total, token in zip(totals[row], chosen[row], strict=True):
                    candidates[(*rows[row], token)] = (total, row)
            fresh: dict[tuple[int, ...], float] = {}
            kept = 0
            for written, (total, row) in sorted(candidates.items(), key=lambda item: item[1][0], reverse=True):
                if written[-1] == self.end:
                    fresh[written] = total
                    continue
                grown.append(list(written))
                order.append(row)
                sums.append(total)
                kept += 1
                if kept == self.each:
                    break
            for written, total in fresh.items():
                if len(ended) < self.wanted:
                    ended[written] = total
        self.sums = sums
        return grown, order

    @property
    def finished(self) -> bool:
        return all(len(ended) >= self.wanted for ended in self.ended)

    def going(self) -> list[int]:
        """All windows: their beams end together, as in the reference."""
        return list(range(len(self.ended)))

    def drop(self, rows: list[list[int]]) -> list[list[int]]:
        return rows

    def best(self, rows: list[list[int]], length_penalty: float | None) -> list[tuple[list[int], float]]:
        answers = []
        for window, ended in enumerate(self.ended):
            own = range(window * self.each, (window + 1) * self.each)
            for row in sorted(own, key=lambda number: self.sums[number], reverse=True):
                if len(ended) >= self.each:
                    break
                ended[(*rows[row], self.end)] = self.sums[row]
            candidates = [(_without_end(list(written), self.end), total) for written, total in ended.items()]
            answers.append(_best_of(candidates, length_penalty))
        return answers


def _best_of(candidates: Sequence[tuple[list[int], float]], length_penalty: float | None) -> tuple[list[int], float]:
    """The candidate with the best score for its length (Wu et al. 2016, arXiv:1609.08144, equation 14, for a penalty)."""

    def score(candidate: tuple[list[int], float]) -> float:
        length = len(candidate[0])
        divisor = length if length_penalty is None else ((5 + length) / 6) ** length_penalty
        return candidate[1] / divisor if divisor else IMPOSSIBLE

    return max(candidates, key=score)


def _without_end(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row
