"""The likeliest answer, searched for with several hypotheses at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zoo.adapters.adapted import choice_for, room_for
from zoo.decoding.generation import Generated
from zoo.decoding.prefix_cache import PrefixCache, read_prompts
from zoo.decoding.prompt import Prompt, checked_prompts
from zoo.decoding.reading import ends_of, step
from zoo.decoding.text_stream import TextStream
from zoo.errors import UsageError
from zoo.models.contracts import Decoder, Tokenizer

ROOM = 256  # slots that a search begins with: it copies them at each step, and the cache grows where they do not suffice

LARGEST_PENALTY = 10  # exponents beyond it rank by length alone, and soon overflow


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer and the log-probability of all its tokens, that of the end token included where it ended.

    ended: by an end token, which is not among `ids`. stopped: by a stop string, whose tokens are.
    """

    ids: tuple[int, ...]
    logprob: float
    ended: bool
    stopped: bool = False

    def score(self, length_penalty: float) -> float:
        """The log-probability over its number of tokens (the end counts) to the power of the penalty."""
        length = len(self.ids) + self.ended
        return self.logprob / float(max(length, 1) ** length_penalty)


@dataclass(frozen=True, slots=True)
class _Live:
    """A hypothesis that goes on, and its text so far, in which a stop string may have begun."""

    hypothesis: Hypothesis
    text: TextStream


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompt: Sequence[int] | Prompt,
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float = 0.0,
    stop: Sequence[str] = (),
    prefixes: PrefixCache | None = None,
) -> list[Hypothesis]:
    """The best hypotheses found, at most `beams` of them, best first.

    Each step extends every live hypothesis by every token. Of the `beams` likeliest extensions those that took an end token or
    completed a stop string are set aside, scored as they stand; an ending that is less likely is dropped, and the likeliest others
    among the first (ends + 1) * beams live on.
    The search stops when no live one can still beat those set aside, or at `max_tokens`, where what is live counts as it is.
    (The same as `early_stopping="never"` of transformers.)

    length_penalty: 0 ranks by the probability of the whole answer, which favours short ones, 1 by the mean of its tokens.
    stop: strings at which an answer ends; the decoder's tokenizer tells its text.
    Raises UsageError as `zoo.decoding.generation.stream`, and for fewer than one beam or a negative penalty.
    """
    if beams < 1 or not 0 <= length_penalty <= LARGEST_PENALTY:
        raise UsageError(
            f"beams must be at least 1 and length_penalty from 0 to {LARGEST_PENALTY}, got {beams} and {length_penalty}"
        )
    (checked,) = checked_prompts(decoder, [prompt], max_tokens=max_tokens)
    choice = choice_for(decoder, None, 1)
    room = min(max_tokens, room_for(decoder.context, len(checked), choice))
    ends = frozenset(ends_of(decoder))
    live = [_Live(Hypothesis((), 0.0, ended=False), TextStream(stop))]
    done: list[Hypothesis] = []
    if room == 0:
        return [live[0].hypothesis]
    logits_BV, cache = read_prompts(decoder, [checked], room=min(room, ROOM), prefixes=prefixes, selection=choice)
    for length in range(1, room + 1):
        parents, tokens, values = _likeliest(logits_BV, live, (max(len(ends), 1) + 1) * beams)
        going: list[tuple[int, _Live]] = []
        for rank, (parent, token, value) in enumerate(zip(parents, tokens, values, strict=True)):
            extended = _extended(live[parent], token, value, ends, decoder.tokenizer)
            over = extended.hypothesis.ended or extended.hypothesis.stopped or length == room
            if over and rank < beams:
                done.append(extended.hypothesis)
            elif not over and len(going) < beams:
                going.append((parent, extended))
        done = sorted(done, key=lambda one: -one.score(length_penalty))[:beams]
        # The most that the best live one can reach is its probability now, over as many tokens as fit.
        best = going[0][1].hypothesis.logprob / room**length_penalty if going else float("-inf")
        if not going or (len(done) == beams and done[-1].score(length_penalty) >= best):
            break
        live = [one for _, one in going]
        device = logits_BV.device
        cache.select(torch.tensor([parent for parent, _ in going], device=device))
        logits_BV = step(decoder, torch.tensor([one.hypothesis.ids[-1] for one in live], device=device), cache)
    return done


def _likeliest(logits_BV: torch.Tensor, live: Sequence[_Live], most: int) -> tuple[list[int], list[int], list[float]]:
    """The likeliest extensions by one token, best first: rows that they extend, tokens and log-probabilities. One that is ruled out is none."""
    so_far_B1 = torch.tensor([[one.hypothesis.logprob] for one in live], dtype=torch.float64, device=logits_BV.device)
    logprobs_BV = logits_BV.log_softmax(-1).double() + so_far_B1
    values, places = logprobs_BV.flatten().topk(min(most, logprobs_BV.numel()))
    possible = values > float("-inf")
    values, places = values[possible], places[possible]
    vocabulary = logprobs_BV.shape[1]
    return (places // vocabulary).tolist(), (places % vocabulary).tolist(), values.tolist()


def _extended(one: _Live, token: int, logprob: float, ends: frozenset[int], tokenizer: Tokenizer | None) -> _Live:
    ids = one.hypothesis.ids
    if token in ends:
        return _Live(Hypothesis(ids, logprob, ended=True), one.text)
    text = one.text.copy()
    text.push(tokenizer.token_bytes(token) if tokenizer is not None else b"")
    return _Live(Hypothesis((*ids, token), logprob, ended=False, stopped=text.stopped), text)


def beam_answer(
    decoder: Decoder,
    prompt: Sequence[int] | Prompt,
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    stop: Sequence[str] = (),
    prefixes: PrefixCache | None = None,
) -> Generated:
    """The best hypothesis as an answer, without the stop string that it ended at; arguments as those of `beam_search`."""
    best, *_ = beam_search(
        decoder,
        prompt,
        beams=beams,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        stop=stop,
        prefixes=prefixes,
    )
    text = TextStream(stop)
    tokenizer = decoder.tokenizer
    pieces = [text.push(tokenizer.token_bytes(token)) for token in best.ids] if tokenizer is not None else []
    finish = "length" if len(best.ids) == max_tokens else "context"
    finish = "stop" if best.stopped else "end" if best.ended else finish
    return Generated(best.ids, "".join([*pieces, text.close()]), finish)
