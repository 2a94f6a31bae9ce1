"""Prompts -> answers, one token after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from zoo.adapters.adapted import choice_for, room_for
from zoo.adapters.routing import Choice
from zoo.decoding.draft import DRAFTED, WORTH, Draft, check_draft
from zoo.decoding.lookup import Lookup
from zoo.decoding.prefix_cache import PrefixCache, read_prompts
from zoo.decoding.prompt import Prompt, checked_prompts
from zoo.decoding.reading import ends_of, step
from zoo.decoding.sampling import Sampling, choose, generator_for
from zoo.decoding.speculation import Guesser, Worth, guessed_tokens
from zoo.decoding.text_stream import TextStream
from zoo.errors import UsageError
from zoo.models.contracts import Decoder, Tokenizer
from zoo.nn.cache import Cache

MOST_SAMPLES = 1_000  # of one prompt: they are drawn together


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to one answer: its token, the text that became certain, and on the last one why it is the last."""

    row: int
    token: int | None
    text: str
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer.

    ids: its tokens, the end token left out, those of a stop string included. text: without the stop string.
    finish: "end" (the model ended it), "stop" (a stop string), "length" (max_tokens), "context" (no room was left).
    """

    ids: tuple[int, ...]
    text: str
    finish: str


@dataclass(slots=True)
class _Row:
    number: int
    prompt: Prompt
    stream: TextStream
    generator: torch.Generator
    room: int
    ids: list[int] = field(default_factory=list)


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int] | Prompt],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    samples: int = 1,
    prefixes: PrefixCache | None = None,
    adapters: Sequence[str | None] | None = None,
    draft: Decoder | None = None,
) -> list[Generated]:
    """Answers to prompts of token ids, `samples` for each, prompt by prompt; the arguments are those of `stream`."""
    texts: dict[int, list[str]] = {}
    ids: dict[int, list[int]] = {}
    finishes: dict[int, str] = {}
    for piece in stream(
        decoder,
        prompts,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        samples=samples,
        prefixes=prefixes,
        adapters=adapters,
        draft=draft,
    ):
        texts.setdefault(piece.row, []).append(piece.text)
        if piece.token is not None:
            ids.setdefault(piece.row, []).append(piece.token)
        if piece.finish is not None:
            finishes[piece.row] = piece.finish
    rows = range(len(prompts) * samples)
    return [Generated(tuple(ids.get(row, ())), "".join(texts.get(row, ())), finishes[row]) for row in rows]


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int] | Prompt],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    samples: int = 1,
    prefixes: PrefixCache | None = None,
    adapters: Sequence[str | None] | None = None,
    draft: Decoder | None = None,
) -> Iterator[Piece]:
    """The pieces of all answers as they come; those of answer `row` joined are its text.

    prompts: token ids, or a `Prompt` of ids and media, any number and lengths; an answer depends on its own prompt alone. An empty
        prompt is the decoder's start token.
    max_tokens: the most tokens of an answer; fewer when the decoder's context is full before. 0 gives empty answers.
    stop: strings at which an answer ends. samples: answers for each prompt, which differ for a temperature above 0.
    prefixes: keeps what prompts begin with for later calls.
    adapters: for each prompt the name of one of the model's adapters, or None for the model alone; not given: what is chosen where this
        is called (`zoo.adapters_of`).
    draft: a decoder with the same tokens that guesses some of them ahead, for one answer alone: the same text in fewer passes. It guesses
        `sampling.lookup` tokens at once, or 4.
    Raises UsageError for a prompt that leaves no room, an empty one where there is no start token, and numbers out of range.
    """
    sampling = sampling or Sampling()
    checked = checked_prompts(decoder, prompts, max_tokens=max_tokens)
    if not 1 <= samples <= MOST_SAMPLES:
        raise UsageError(f"samples must be at least 1 and at most {MOST_SAMPLES:,}, got {samples}")
    if (sampling.lookup or draft is not None) and len(checked) * samples != 1:
        what = "lookup" if draft is None else "a draft"
        raise UsageError(
            f"{what} guesses ahead for one answer at a time, got {len(checked) * samples}: ask one by one, or leave it out"
        )
    if draft is not None:
        check_draft(decoder, draft)
    choice = choice_for(decoder, adapters, len(checked))  # here, since the steps run later
    rows = [
        _Row(
            number=number * samples + sample,
            prompt=prompt,
            stream=TextStream(stop),
            generator=generator_for(sampling, prompt.words, sample),
            room=min(max_tokens, room_for(decoder.context, len(prompt), choice, number)),
        )
        for number, prompt in enumerate(checked)
        for sample in range(samples)
    ]
    if max_tokens == 0:
        return iter([Piece(row.number, None, "", "length") for row in rows])
    return _steps(decoder, checked, rows, max_tokens, sampling, samples, prefixes, choice, draft)


@torch.inference_mode()
def _steps(
    decoder: Decoder,
    prompts: list[Prompt],
    rows: list[_Row],
    max_tokens: int,
    sampling: Sampling,
    samples: int,
    prefixes: PrefixCache | None,
    choice: Choice | None,
    draft: Decoder | None,
) -> Iterator[Piece]:
    tokenizer = decoder.tokenizer
    ends = frozenset(ends_of(decoder))
    logits_BV, cache = read_prompts(
        decoder, prompts, room=max(row.room for row in rows), prefixes=prefixes, selection=choice
    )
    if samples > 1:
        logits_BV, cache = logits_BV.repeat_interleave(samples, 0), cache.copy(capacity=cache.capacity, rows=samples)
    if sampling.lookup or draft is not None:
        (row,) = rows
        yield from _guessed(decoder, row, logits_BV, cache, max_tokens, sampling, draft)
        return
    while rows:
        held = [[*row.prompt.words, *row.ids] for row in rows] if sampling.repetition_penalty != 1.0 else None
        generators = None if sampling.greedy else [row.generator for row in rows]
        tokens_B = choose(logits_BV, sampling, held=held, generators=generators)
        going = []
        for index, (row, token) in enumerate(zip(rows, tokens_B.tolist(), strict=True)):
            piece = _advance(row, token, ends, tokenizer, max_tokens)
            yield piece
            if piece.finish is None:
                going.append(index)
        if len(going) < len(rows):
            rows = [rows[index] for index in going]
            if not rows:
                return
            kept = torch.tensor(going, device=tokens_B.device)
            tokens_B = tokens_B[kept]
            cache.select(kept)
        logits_BV = step(decoder, tokens_B, cache)


def _guessed(
    decoder: Decoder, row: _Row, logits_1V: torch.Tensor, cache: Cache, max_tokens: int, sampling: Sampling, draft: Decoder | None
) -> Iterator[Piece]:  # fmt: skip
    """The pieces of one answer, guessed ahead."""
    words, ends = row.prompt.words, frozenset(ends_of(decoder))
    guesser: Guesser
    if draft is None:
        guesser, worth = Lookup(words, sampling.lookup), Worth()
    else:
        most = sampling.lookup or DRAFTED
        guesser = Draft(draft, words, room=row.room, most=most, sampling=sampling, generator=row.generator)
        worth = Worth(WORTH)

    def choose_next(logits_1V: torch.Tensor) -> int:
        held = [[*words, *row.ids]] if sampling.repetition_penalty != 1.0 else None
        return int(choose(logits_1V, sampling, held=held, generators=None if sampling.greedy else [row.generator])[0])

    tokens = guessed_tokens(decoder, logits_1V, cache, room=row.room, guesser=guesser, choose=choose_next, worth=worth)
    for token in tokens:
        piece = _advance(row, token, ends, decoder.tokenizer, max_tokens)
        yield piece
        if piece.finish is not None:
            return


def _advance(row: _Row, token: int, ends: frozenset[int], tokenizer: Tokenizer | None, max_tokens: int) -> Piece:
    """Add a token to an answer."""
    if token in ends:
        return Piece(row.number, None, row.stream.close(), "end")
    row.ids.append(token)
    text = row.stream.push(tokenizer.token_bytes(token) if tokenizer is not None else b"")
    if row.stream.stopped:
        return Piece(row.number, token, text, "stop")
    if len(row.ids) == row.room:
        finish = "length" if row.room == max_tokens else "context"
        return Piece(row.number, token, text + row.stream.close(), finish)
    return Piece(row.number, token, text)
