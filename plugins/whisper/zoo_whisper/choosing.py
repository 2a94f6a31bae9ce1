"""Which token comes next: the likeliest, a sample, or beams; and which answer of a window is its best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import log_softmax

from zoo_whisper.rules import IMPOSSIBLE


class Greedy:
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
        """A token for each row, by the shares: the first at which their sum is above a number drawn evenly below all of it.

        `torch.multinomial`, with which the reference draws, takes 1.4 ms a row of Whisper's vocabulary: most of a small model's time.
        """
        if self.generators is None:
            return torch.multinomial(shares_RV, 1, replacement=True)[:, 0]
        own = [self.generators[window] for window in self.windows]
        device = shares_RV.device
        drawn_R = torch.cat([torch.rand(self.each, dtype=torch.float64, device=device, generator=one) for one in own])
        sums_RV = shares_RV.double().cumsum(-1)
        wanted_R1 = drawn_R[:, None] * sums_RV[:, -1:]
        return torch.searchsorted(sums_RV, wanted_R1, right=True)[:, 0].clamp(max=shares_RV.shape[-1] - 1)

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


class Beams:
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
