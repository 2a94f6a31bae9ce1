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
from zoo.models.contracts import Decoder

ROOM = 256  # slots that a search begins with: it copies them at each step, and the cache grows where they do not suffice


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer and the log-probability of all its tokens, that of the end token included where it ended."""

    ids: tuple[int, ...]
    logprob: float
    ended: bool

    def score(self, length_penalty: float) -> float:
        """The log-probability over its number of tokens (the end counts) to the power of the penalty."""
        length = len(self.ids) + self.ended
        return self.logprob / float(max(length, 1) ** length_penalty)


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompt: Sequence[int] | Prompt,
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float = 0.0,
    prefixes: PrefixCache | None = None,
) -> list[Hypothesis]:
    """The best hypotheses found, at most `beams` of them, best first.

    Each step extends every live hypothesis by every token and keeps the `beams` likeliest; one that took an end token is set
    aside. The search stops when no live one can still beat those set aside, or at `max_tokens`, where what is live counts as
    it is. length_penalty: 0 ranks by the probability of the whole answer, 1 by the mean of its tokens.
    Raises UsageError as `zoo.decoding.generation.stream`, and for fewer than one beam or a negative penalty.
    """
    if beams < 1 or length_penalty < 0:
        raise UsageError(f"beams must be at least 1 and length_penalty at least 0, got {beams} and {length_penalty}")
    (checked,) = checked_prompts(decoder, [prompt], max_tokens=max_tokens)
    choice = choice_for(decoder, None, 1)
    room = min(max_tokens, room_for(decoder.context, len(checked), choice))
    ends = sorted(ends_of(decoder))
    live = [Hypothesis((), 0.0, ended=False)]
    done: list[Hypothesis] = []
    if room == 0:
        return live
    logits_BV, cache = read_prompts(decoder, [checked], room=min(room, ROOM), prefixes=prefixes, selection=choice)
    for length in range(1, room + 1):
        logprobs_BV = logits_BV.log_softmax(-1).double() + torch.tensor(
            [[one.logprob] for one in live], dtype=torch.float64, device=logits_BV.device
        )
        done += [
            Hypothesis(one.ids, float(logprobs_BV[row, end]), ended=True) for row, one in enumerate(live) for end in ends
        ]
        done = sorted(done, key=lambda one: -one.score(length_penalty))[:beams]
        logprobs_BV[:, ends] = float("-inf")
        vocabulary = logprobs_BV.shape[1]
        possible = min(beams, logprobs_BV.numel() - len(live) * len(ends))
        values, places = logprobs_BV.flatten().topk(possible)
        parents, tokens = places // vocabulary, places % vocabulary
        live = [
            Hypothesis((*live[parent].ids, token), value, ended=False)
            for parent, token, value in zip(parents.tolist(), tokens.tolist(), values.tolist(), strict=True)
        ]
        # The most that the best live one can reach is its probability now, over as many tokens as fit.
        best = live[0].logprob / (room + 1) ** length_penalty if live else float("-inf")
        if length == room or not live or (len(done) == beams and done[-1].score(length_penalty) >= best):
            break
        cache.select(parents)
        logits_BV = step(decoder, tokens, cache)
    return sorted([*done, *live], key=lambda one: -one.score(length_penalty))[:beams]


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
    """The best hypothesis as an answer; it is cut at a stop string, which does not steer the search."""
    hypotheses = beam_search(
        decoder, prompt, beams=beams, max_tokens=max_tokens, length_penalty=length_penalty, prefixes=prefixes
    )
    best = hypotheses[0]
    text = TextStream(stop)
    ids, pieces = [], []
    for token in best.ids:
        ids.append(token)
        pieces.append(text.push(decoder.tokenizer.token_bytes(token)) if decoder.tokenizer is not None else "")
        if text.stopped:
            break
    finish = "end" if best.ended else ("length" if len(best.ids) == max_tokens else "context")
    answer = "".join([*pieces, text.close()])
    return Generated(tuple(ids), answer, "stop" if text.stopped else finish)
