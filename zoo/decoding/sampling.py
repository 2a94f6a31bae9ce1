"""Logits -> the next token of each row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zoo.errors import UsageError

MOST_LOOKUP = 64  # tokens guessed at once; reading more takes longer than what is right of them saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy: always the likeliest.

    Applied in this order: repetition_penalty divides positive and multiplies negative logits of the tokens that the row holds
    already, prompt included (Keskar et al. 2019, arXiv:1909.05858); temperature divides all; top_k keeps the k likeliest;
    top_p the likeliest that together reach p, and at least one (Holtzman et al. 2019, arXiv:1904.09751); min_p those at least p
    times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082). One of those that remain is drawn.

    lookup: for one answer at a time, tokens that are guessed at once from what was read (`zoo.decoding.lookup`): the same text in fewer passes, where it
    repeats itself.
    seed: with the prompt and the number of the sample, what is drawn; neither the batch nor the order of prompts matters.
    Raises UsageError for a number out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    lookup: int = 0

    def __post_init__(self) -> None:
        for name, value, fits, wanted in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "from 0 (greedy) up"),
            (
                "top_k",
                self.top_k,
                self.top_k is None or (isinstance(self.top_k, int) and self.top_k >= 1),
                "a whole number of at least 1",
            ),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"), "above 0"),
            (
                "lookup",
                self.lookup,
                isinstance(self.lookup, int) and 0 <= self.lookup <= MOST_LOOKUP,
                f"from 0 to {MOST_LOOKUP}",
            ),
        ):
            if not fits:
                raise UsageError(f"{name} must be {wanted}, got {value!r}")
        if not isinstance(self.seed, int):
            raise UsageError(f"seed must be a whole number, got {self.seed!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def generator_for(sampling: Sampling, prompt: Sequence[int], sample: int) -> torch.Generator:
    """The random numbers of one answer, from the seed, the prompt and the number of the sample alone."""
    content = f"{sampling.seed} {sample} {' '.join(map(str, prompt))}"
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> 1)
    return generator


def choose(
    logits_BV: torch.Tensor,
    sampling: Sampling,
    *,
    held: Sequence[Sequence[int]] | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """float32[B, V] -> the next token of each row, int[B].

    held: the tokens of each row so far, which a repetition penalty needs. generators: one a row, for temperatures above 0.
    """
    if sampling.repetition_penalty != 1.0 and held is not None:
        logits_BV = _penalised(logits_BV, held, sampling.repetition_penalty)
    if sampling.greedy:
        return logits_BV.argmax(-1)
    probabilities_BV = allowed(logits_BV, sampling).softmax(-1).cpu()
    if generators is None:
        raise UsageError("drawing a token needs a random generator for each row")
    drawn = [
        torch.multinomial(row_V, 1, generator=generator)
        for row_V, generator in zip(probabilities_BV, generators, strict=True)
    ]
    return torch.cat(drawn).to(logits_BV.device)


def allowed(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits over the temperature, with -inf for what top_k, top_p and min_p exclude. The likeliest token always stays."""
    # The likeliest is 0 first, so that no temperature makes it infinite; and none is 0 in the numbers of the logits, where it is not.
    tiny = torch.finfo(logits_BV.dtype).tiny
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(sampling.temperature, tiny)
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probabilities_BV = sorted_BV.softmax(-1)
        before_BV = probabilities_BV.cumsum(-1) - probabilities_BV  # what the likelier ones reach without this one
        excluded_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(
            -1, order_BV, before_BV >= max(sampling.top_p, tiny)
        )
        logits_BV = logits_BV.masked_fill(excluded_BV, float("-inf"))
    if sampling.min_p:
        probabilities_BV = logits_BV.softmax(-1)
        least_B1 = probabilities_BV.amax(-1, keepdim=True) * sampling.min_p
        logits_BV = logits_BV.masked_fill(probabilities_BV < least_B1, float("-inf"))
    return logits_BV


def _penalised(logits_BV: torch.Tensor, held: Sequence[Sequence[int]], penalty: float) -> torch.Tensor:
    logits_BV = logits_BV.clone()
    for row_V, ids in zip(logits_BV, held, strict=True):
        known = torch.tensor(sorted(set(ids)), device=row_V.device, dtype=torch.long)
        values = row_V[known]
        row_V[known] = torch.where(values > 0, values / penalty, values * penalty)
    most = torch.finfo(logits_BV.dtype).max  # an infinite one would leave no probabilities
    return logits_BV.clamp_(-most, most)
