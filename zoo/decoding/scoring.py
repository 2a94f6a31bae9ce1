"""How likely given answers are after a prompt, and how well a model foretells a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zoo.adapters.adapted import choice_for, room_for
from zoo.decoding.prefix_cache import PrefixCache, read_prompts
from zoo.decoding.prompt import Prompt, checked_prompts
from zoo.decoding.reading import checked_logits, device_of
from zoo.errors import UsageError
from zoo.models.contracts import Decoder

NORMALISATIONS = ("sum", "token", "byte", "calibrated")
ROWS_AT_ONCE = 32
COPIES_BYTES = 1 << 28  # of the prompt's keys and values, one copy for each choice that is read beside others


@dataclass(frozen=True, slots=True)
class Scored:
    """A choice: the log-probability of its tokens after the prompt, and after none where that was asked for; its sizes."""

    logprob: float
    tokens: int
    size_bytes: int
    unconditional: float | None = None

    def score(self, normalise: str) -> float:
        """The number that choices are ranked by.

        sum: log p(choice | prompt). token, byte: over the number of its tokens or of its UTF-8 bytes.
        calibrated: minus log p(choice | empty prompt), so that no choice wins by being common (Holtzman et al. 2021,
            arXiv:2104.08315).
        """
        if normalise == "sum":
            return self.logprob
        if normalise == "token":
            return self.logprob / self.tokens
        if normalise == "byte":
            return self.logprob / max(self.size_bytes, 1)
        if normalise == "calibrated" and self.unconditional is not None:
            return self.logprob - self.unconditional
        raise UsageError(f"normalise is one of {', '.join(NORMALISATIONS)}, got {normalise!r}")


@torch.inference_mode()
def score_choices(
    decoder: Decoder,
    prompt: Sequence[int] | Prompt,
    choices: Sequence[Sequence[int]],
    *,
    sizes_bytes: Sequence[int] | None = None,
    calibrate: bool = False,
    prefixes: PrefixCache | None = None,
) -> list[Scored]:
    """The log-probability of each choice, token ids after those of the prompt; the prompt is read once for all.

    sizes_bytes: length of each choice's text, for ranking by byte. calibrate: also score the choices after an empty prompt.
    Raises UsageError for no choices, one without tokens, and what does not fit the decoder's context.
    """
    if not choices:
        raise UsageError("no choices given: name at least two")
    for number, choice in enumerate(choices):
        if not choice:
            raise UsageError(f"choice {number} has no tokens: an empty answer has no probability")
        outside = [token for token in choice if not 0 <= token < decoder.vocabulary]
        if outside:
            raise UsageError(f"choice {number} has token {outside[0]}, ids go from 0 to {decoder.vocabulary - 1}")
    if calibrate and (decoder.tokenizer is None or decoder.tokenizer.start_id is None):
        raise UsageError(
            "this model has no start token, so nothing can be calibrated by an empty prompt: normalise otherwise"
        )
    (asked,) = checked_prompts(decoder, [prompt], max_tokens=0)
    longest = max(map(len, choices))
    if longest > room_for(decoder.context, len(asked), choice_for(decoder, None, 1)):
        raise UsageError(
            f"the prompt has {len(asked):,} tokens and a choice {longest:,}; the model reads at most {decoder.context:,} together"
        )
    sizes = list(sizes_bytes) if sizes_bytes is not None else [0] * len(choices)
    logprobs = _after(decoder, asked, choices, prefixes)
    unconditional: Sequence[float | None] = [None] * len(choices)
    if calibrate:
        (empty,) = checked_prompts(decoder, [[]], max_tokens=0)
        unconditional = _after(decoder, empty, choices, None)
    return [
        Scored(logprob, len(choice), size, alone)
        for logprob, choice, size, alone in zip(logprobs, choices, sizes, unconditional, strict=True)
    ]


def _after(decoder: Decoder, prompt: Prompt, choices: Sequence[Sequence[int]], prefixes: PrefixCache | None) -> list[float]:
    """The log-probability of each choice after the prompt."""
    device = device_of(decoder)
    logits_1V, cache = read_prompts(decoder, [prompt], room=0, prefixes=prefixes, selection=choice_for(decoder, None, 1))
    first_V = logits_1V[0].log_softmax(-1)
    totals = [float(first_V[choice[0]]) for choice in choices]
    longer = sorted((number for number, choice in enumerate(choices) if len(choice) > 1), key=lambda n: len(choices[n]))
    row_bytes = max(
        1, (cache.size_bytes - cache.media_bytes) * (cache.length + max(map(len, choices))) // max(1, cache.capacity)
    )
    rows_at_once = max(1, min(ROWS_AT_ONCE, COPIES_BYTES // row_bytes))
    for start in range(0, len(longer), rows_at_once):
        numbers = longer[start : start + rows_at_once]
        rows = [choices[number] for number in numbers]
        longest = max(map(len, rows))
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        tokens_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        real_BT = torch.arange(longest, device=device) < lengths_B[:, None]
        read_BT, asked_BT, asked_real_BT = tokens_BT[:, :-1], tokens_BT[:, 1:], real_BT[:, 1:]
        mask_BT = None if bool(asked_real_BT.all()) else asked_real_BT
        rows_cache = cache.copy(capacity=cache.length + longest - 1, rows=len(rows))
        module: torch.nn.Module = decoder  # type: ignore[assignment]  # what keeps the contract is a module
        logits_BTV = checked_logits(module(read_BT, mask_BT=mask_BT, cache=rows_cache))
        logprobs_BT = token_logprobs(logits_BTV, asked_BT)
        logprobs_BT = logprobs_BT.masked_fill(~asked_real_BT, 0.0)  # padding may be ruled out, and -inf times 0 is NaN
        for number, total in zip(numbers, logprobs_BT.sum(1).tolist(), strict=True):
            totals[number] += total
    return totals


def token_logprobs(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The log-probability of each token under the logits that stand before it, float64[B, T]."""
    picked_BT = logits_BTV.gather(-1, tokens_BT[..., None])[..., 0].double()
    return picked_BT - logits_BTV.float().logsumexp(-1).double()


@dataclass(frozen=True, slots=True)
class Perplexity:
    """nll_nats: the sum over `tokens` tokens, each foretold once from those before it (the first of the text from nothing: it
    is not counted). size_bytes: of the text of those tokens, where the decoder has a tokenizer.
    """

    nll_nats: float
    tokens: int
    size_bytes: int | None = None

    @property
    def perplexity(self) -> float:
        """Exponential of the tokens' mean negative log-likelihood."""
        return math.exp(self.nll_nats / self.tokens)

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable between tokenizers, unlike the perplexity of a token."""
        return None if not self.size_bytes else self.nll_nats / math.log(2) / self.size_bytes


@torch.inference_mode()
def perplexity(
    decoder: Decoder,
    ids: Sequence[int],
    *,
    window: int | None = None,
    stride: int | None = None,
) -> Perplexity:
    """Of a text of any length, in windows that overlap.

    window: tokens read at once, the decoder's context at most and by default. stride: how far each window moves on (half of
    it by default): every token is foretold from at least `window - stride` before it, but for the first window's.
    Raises UsageError for fewer than two tokens and numbers out of range.
    """
    choice = choice_for(decoder, None, 1)
    most = decoder.context - (0 if choice is None else choice.virtual_count(0))
    window = min(most, 2048) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    if not 2 <= window <= most:
        raise UsageError(f"window must be from 2 to the model's {most} tokens, got {window}")
    if not 1 <= stride < window:
        raise UsageError(f"stride must be from 1 to below the window of {window} tokens, got {stride}")
    if isinstance(ids, str) or not all(isinstance(one, int) for one in ids):
        raise UsageError(f"a text is foretold by its token ids, a flat list (tokenizer.encode(text)), got {ids!r:.60}")
    if len(ids) < 2:
        raise UsageError(f"a text needs at least two tokens to be foretold, got {len(ids)}")
    device = device_of(decoder)
    module: torch.nn.Module = decoder  # type: ignore[assignment]  # what keeps the contract is a module
    total, counted, foretold = 0.0, 0, 1
    begin = 0
    while foretold < len(ids):
        end = min(begin + window, len(ids))
        tokens_1T = torch.tensor([list(ids[begin:end])], device=device)
        new = torch.arange(foretold - begin - 1, end - begin - 1, device=device)[None]
        logits_1NV = module(tokens_1T, at_BN=new)
        total -= float(token_logprobs(logits_1NV, tokens_1T[:, foretold - begin :]).sum())
        counted += end - foretold
        foretold = end
        begin += stride
    tokenizer = decoder.tokenizer
    size_bytes = None if tokenizer is None else sum(len(tokenizer.token_bytes(token)) for token in ids[1:])
    return Perplexity(total, counted, size_bytes)
