"""A window that was heard -> its tokens: greedy, sampled or by beams, under the rules of a transcript.

Everything here answers to openai-whisper's `decoding.py` (`DecodingTask`): the same rules in the same order, the same scores. The
tests compare tokens and log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoo_whisper.choosing import Beams, Greedy
from zoo_whisper.hearing import Heard, Writing
from zoo_whisper.openai_package import openai_whisper
from zoo_whisper.rules import Filters, Rules
from zoo_whisper.tokens import Controls


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What was written about one window. `average_log_probability` is over its tokens and the end; a `compression_ratio`
    above 2.4 repeats itself.
    """

    tokens: list[int]
    text: str
    average_log_probability: float
    no_speech_probability: float
    temperature: float
    compression_ratio: float


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
    begun = _beginning(rules, known, prompt, decoder.context // 2)
    each = (rules.best_of if temperature > 0 else rules.beam_size) or 1
    writing = Writing(decoder, heard, rows=heard.windows * each, capacity=len(begun) + decoder.context // 2)
    features_RTD = writing.read(torch.tensor([begun], device=writing.store.device).repeat(writing.rows, 1))
    at_start_BV = decoder.logits(features_RTD[::each, begun.index(known.start)]).float().softmax(-1)
    no_speech = at_start_BV[:, known.no_speech].tolist()
    chooser: Greedy | Beams = (
        Beams(heard.windows, each, rules.patience or 1.0, known.end)
        if rules.beam_size is not None and temperature == 0
        else Greedy(heard.windows, each, temperature, known.end, generators)
    )
    rows = _written(writing, decoder.logits(features_RTD[:, -1]).float(), Filters(model, rules), chooser)
    return [
        _decoded(model.vocabulary.decode(tokens).strip(), tokens, sum_of_logs, silence, temperature)
        for (tokens, sum_of_logs), silence in zip(chooser.best(rows, rules.length_penalty), no_speech, strict=True)
    ]


def _beginning(rules: Rules, known: Controls, prompt: Sequence[int], longest: int) -> list[int]:
    """The tokens that stand before the first that is decoded."""
    opening = known.opening(rules.language, rules.task)
    if rules.without_moments:
        opening = [*opening, known.no_moments]
    return [known.start_of_previous, *list(prompt)[-(longest - 1) :], *opening] if prompt else opening


def _written(writing: Writing, logits_RV: torch.Tensor, filters: Filters, chooser: Greedy | Beams) -> list[list[int]]:
    """Rows of tokens, one after another until the chooser has enough, or as many as there is room for."""
    decoder = writing.decoder
    longest = decoder.context // 2
    rows: list[list[int]] = [[] for _ in range(writing.rows)]
    for number in range(longest):
        filters.apply(logits_RV, rows)
        rows, order = chooser.step(logits_RV, rows)
        if chooser.finished or writing.length >= decoder.context or number == longest - 1:
            break
        if order is not None:
            writing.select(order)
        going = chooser.going()
        if len(going) < writing.heard.windows:
            writing.keep(going)
            rows = chooser.drop(rows)
        last_R1 = torch.tensor([[row[-1]] for row in rows], device=writing.store.device)
        logits_RV = decoder.logits(writing.read(last_R1)[:, -1]).float()
    return rows


def _decoded(text: str, tokens: list[int], sum_of_logs: float, silence: float, temperature: float) -> Decoded:
    return Decoded(
        tokens=tokens,
        text=text,
        average_log_probability=sum_of_logs / (len(tokens) + 1),
        no_speech_probability=silence,
        temperature=temperature,
        compression_ratio=openai_whisper().utils.compression_ratio(text),
    )
