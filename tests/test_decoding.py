"""What is done with decoders: nothing depends on batch, padding, cache or how a text was cut, and searches find what they say."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder

from zoo.decoding.beams import beam_search
from zoo.decoding.generation import generate, stream
from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.reading import batch_of, prefill, step
from zoo.decoding.sampling import Sampling, allowed, choose
from zoo.decoding.scoring import perplexity, score_choices, token_logprobs
from zoo.decoding.text_stream import TextStream
from zoo.errors import UsageError

TOLERANCE = 2e-5
POSITIONS = ("rotary", "alibi", "learned")
ids = st.integers(0, 255)
prompts = st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=4)


def whole(decoder, row):
    with torch.inference_mode():
        return decoder(torch.tensor([row]))[0]


@given(rows=prompts, positions=st.sampled_from(POSITIONS), chunk=st.integers(1, 5), experts=st.sampled_from((0, 3)))
@torch.inference_mode()
def test_cached_equals_uncached(rows, positions, chunk, experts) -> None:
    decoder = tiny_decoder(positions=positions, experts=experts)
    row = rows[0]
    cache = decoder.new_cache(1, 2)
    parts = [decoder(torch.tensor([row[start : start + chunk]]), cache=cache) for start in range(0, len(row), chunk)]
    torch.testing.assert_close(torch.cat(parts, 1)[0], whole(decoder, row), rtol=0, atol=TOLERANCE)


@given(
    rows=prompts,
    positions=st.sampled_from(POSITIONS),
    left=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    right=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    more=st.lists(ids, min_size=1, max_size=3),
    heads=st.sampled_from(((4, 4), (4, 2), (4, 1))),
)
@torch.inference_mode()
def test_a_batch_gives_what_singles_give_whatever_the_padding(rows, positions, left, right, more, heads) -> None:
    decoder = tiny_decoder(positions=positions, heads=heads[0], kv_heads=heads[1])
    padded = [[0] * before + row + [0] * after for row, before, after in zip(rows, left, right, strict=False)]
    longest = max(map(len, padded))
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, (row, before) in enumerate(zip(rows, left, strict=False)):
        mask[number, before : before + len(row)] = True
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in padded])
    cache = decoder.new_cache(len(rows), longest)
    logits = prefill(decoder, tokens, cache, mask_BT=mask)
    steps = [step(decoder, torch.full((len(rows),), token), cache) for token in more]
    for number, row in enumerate(rows):
        expected = whole(decoder, row + more)
        torch.testing.assert_close(logits[number], expected[len(row) - 1], rtol=0, atol=TOLERANCE)
        for offset, found in enumerate(steps):
            torch.testing.assert_close(found[number], expected[len(row) + offset], rtol=0, atol=TOLERANCE)


@given(rows=prompts, temperature=st.sampled_from((0.0, 1.0)), seed=st.integers(0, 9), tokens=st.integers(1, 8))
def test_answers_do_not_depend_on_who_else_asks(rows, temperature, seed, tokens) -> None:
    decoder = tiny_decoder(sharpness=3.0)
    arguments = {"max_tokens": tokens, "sampling": Sampling(temperature=temperature, top_k=50, seed=seed)}
    together = generate(decoder, rows, **arguments)
    assert together == [answer for row in rows for answer in generate(decoder, [row], **arguments)]


@given(
    row=st.lists(ids, min_size=1, max_size=12), tokens=st.integers(0, 12), stop=st.sampled_from(((), ("a",), ("zz", "b")))
)
def test_streaming_gives_the_text_that_waiting_gives(row, tokens, stop) -> None:
    decoder = tiny_decoder(seed=len(row), sharpness=2.0)
    sampling = Sampling(temperature=1.5, seed=len(row))
    pieces = list(stream(decoder, [row], max_tokens=tokens, sampling=sampling, stop=stop))
    (answer,) = generate(decoder, [row], max_tokens=tokens, sampling=sampling, stop=stop)
    assert "".join(piece.text for piece in pieces) == answer.text
    assert [piece.finish for piece in pieces if piece.finish] == [answer.finish]
    if not stop:
        assert answer.text == decoder.tokenizer.decode(answer.ids)


def test_samples_differ_and_repeat_with_the_seed() -> None:
    decoder = tiny_decoder()
    first, again = (
        generate(decoder, [[1, 2, 3]], max_tokens=6, samples=3, sampling=Sampling(temperature=1.0, seed=4))
        for _ in range(2)
    )
    assert first == again
    assert len({answer.ids for answer in first}) == 3
    other = generate(decoder, [[1, 2, 3]], max_tokens=6, sampling=Sampling(temperature=1.0, seed=5))
    assert other[0] != first[0]


@settings(max_examples=4 * settings.default.max_examples)
@given(
    text=st.text(alphabet="abé🙂", max_size=12),
    stops=st.lists(st.text(alphabet="abé🙂", min_size=1, max_size=3), max_size=3),
    data=st.data(),
)
def test_a_stop_string_is_found_wherever_it_is_split(text, stops, data) -> None:
    def cut(sizes):
        found, raw = TextStream(stops), text.encode()
        pieces = []
        for size in sizes:
            pieces.append(found.push(raw[:size]))
            raw = raw[size:]
        return "".join([*pieces, found.push(raw), found.close()]), found.stopped

    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    assert cut([]) == cut([1] * len(text.encode())) == (expected, bool(ends))
    assert cut(data.draw(st.lists(st.integers(0, 4), max_size=20))) == (expected, bool(ends))


def test_a_character_is_never_split() -> None:
    found = TextStream()
    assert [found.push(bytes([byte])) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert found.push("🙂".encode()[:2]) + found.close() == "\N{REPLACEMENT CHARACTER}"


@given(seed=st.integers(0, 50), length=st.integers(1, 3), penalty=st.sampled_from((0.0, 1.0, 0.5)))
@torch.inference_mode()
def test_beams_equal_brute_force(seed, length, penalty) -> None:
    decoder = tiny_decoder(vocabulary=5, seed=seed, sharpness=4.0)
    prompt, end = [0, 1], decoder.tokenizer.end_ids[0]
    best, best_ids = -math.inf, None
    for size in range(length + 1):
        for answer in itertools.product([token for token in range(5) if token != end], repeat=size):
            closed = (end,) if size < length else ()
            if not closed and size < length:
                continue
            row = [*prompt, *answer, *closed]
            logprobs = whole(decoder, row).double().log_softmax(-1)
            total = sum(float(logprobs[place - 1, row[place]]) for place in range(len(prompt), len(row)))
            score = total / (size + len(closed)) ** penalty
            if score > best:
                best, best_ids = score, (answer, bool(closed))
    found = beam_search(decoder, prompt, beams=5**length, max_tokens=length, length_penalty=penalty)[0]
    assert (found.ids, found.ended) == best_ids
    assert found.score(penalty) == pytest.approx(best, abs=1e-5)


def test_one_beam_is_greedy() -> None:
    decoder = tiny_decoder(sharpness=3.0, end=False)
    (greedy,) = generate(decoder, [[5, 6, 7]], max_tokens=9)
    assert beam_search(decoder, [5, 6, 7], beams=1, max_tokens=9)[0].ids == greedy.ids


@given(
    prompt=st.lists(ids, min_size=1, max_size=9),
    choices=st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=5),
)
@torch.inference_mode()
def test_scores_are_the_sums_of_the_full_forward(prompt, choices) -> None:
    decoder = tiny_decoder()
    found = score_choices(decoder, prompt, choices, sizes_bytes=[3] * len(choices), calibrate=True)
    for choice, scored in zip(choices, found, strict=True):
        for start, value in ((prompt, scored.logprob), ([decoder.tokenizer.start_id], scored.unconditional)):
            row = [*start, *choice]
            logprobs = token_logprobs(whole(decoder, row)[None, :-1], torch.tensor([row[1:]]))
            assert value == pytest.approx(float(logprobs[0, len(start) - 1 :].sum()), abs=1e-4)
        assert scored.score("token") == scored.logprob / len(choice)
        assert scored.score("byte") == scored.logprob / 3
        assert scored.score("calibrated") == scored.logprob - scored.unconditional


@given(
    shared=st.lists(ids, min_size=14, max_size=30),
    tails=st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=4),
    together=st.booleans(),
)
def test_a_prefix_cache_changes_nothing(shared, tails, together) -> None:
    decoder = tiny_decoder(sharpness=3.0)
    prefixes = PrefixCache()
    rows = [shared + tail for tail in tails]
    expected = generate(decoder, rows, max_tokens=5)
    for _ in range(2):
        groups = [rows] if together else [[row] for row in rows]
        found = [answer for group in groups for answer in generate(decoder, group, max_tokens=5, prefixes=prefixes)]
        assert found == expected
        choices = score_choices(decoder, rows[0], [[1], [2, 3]], prefixes=prefixes)
        for scored, plain in zip(choices, score_choices(decoder, rows[0], [[1], [2, 3]]), strict=True):
            assert scored.logprob == pytest.approx(plain.logprob, abs=1e-4)


def test_a_prefix_cache_is_used_and_bounded() -> None:
    decoder = tiny_decoder()
    prefixes = PrefixCache()
    shots = list(range(40))
    for question in range(5):
        generate(decoder, [[*shots, 100 + question]], max_tokens=1, prefixes=prefixes)
    assert prefixes.hits == 4
    one = prefixes.size_bytes
    assert one == 2 * 2 * 2 * 6 * 41 * 4  # layers, keys and values, key/value heads, width of a head, tokens, bytes
    small = PrefixCache(limit_bytes=one)
    for start in range(4):
        generate(decoder, [[start, *shots]], max_tokens=1, prefixes=small)
    assert small.size_bytes == one


@torch.inference_mode()
def test_perplexity_counts_each_token_once() -> None:
    decoder = tiny_decoder(context=16)
    row = [(7 * number) % 250 for number in range(50)]
    short = perplexity(decoder, row[:16])
    logprobs = token_logprobs(whole(decoder, row[:16])[None, :-1], torch.tensor([row[1:16]]))
    assert short.nll_nats == pytest.approx(-float(logprobs.sum()), abs=1e-4)
    for window, stride in ((16, 8), (16, 15), (5, 1), (2, 1)):
        found = perplexity(decoder, row, window=window, stride=stride)
        assert found.tokens == 49
        assert found.bits_per_byte == pytest.approx(found.nll_nats / math.log(2) / 49)
    one_by_one = perplexity(decoder, row, window=2, stride=1)
    pairs = sum(
        -float(token_logprobs(whole(decoder, row[n : n + 2])[None, :1], torch.tensor([[row[n + 1]]])).sum())
        for n in range(49)
    )
    assert one_by_one.nll_nats == pytest.approx(pairs, abs=1e-3)


def test_sampling_keeps_what_it_says() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    kept = {
        "top_k": [False, False, True, True],
        "top_p": [False, False, True, True],  # .644 + .237 reach .8
        "min_p": [False, False, True, True],  # .237 / .644 = .37
    }
    for name, value in (("top_k", 2), ("top_p", 0.8), ("min_p", 0.3)):
        found = allowed(logits, Sampling(temperature=1.0, **{name: value}))
        assert found.isfinite()[0].tolist() == kept[name]
    assert allowed(logits, Sampling(temperature=0.5, top_p=1e-9)).isfinite().sum() == 1
    penalised = choose(torch.tensor([[2.0, 1.9, -1.0]]), Sampling(repetition_penalty=1.5), held=[[0]])
    assert penalised.tolist() == [1]


def test_wrong_numbers_and_prompts_are_named() -> None:
    decoder = tiny_decoder(context=8)
    for arguments, message in (
        ({"temperature": -1}, r"temperature must be from 0 \(greedy\) up, got -1"),
        ({"temperature": float("nan")}, "temperature must be from 0"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"min_p": 2}, "min_p must be from 0 to 1, got 2"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
    ):
        with pytest.raises(UsageError, match=message):
            Sampling(**arguments)
    with pytest.raises(UsageError, match=r"prompt 1 has 8 tokens, and the model reads and writes at most 8 together"):
        generate(decoder, [[1], [1] * 8], max_tokens=1)
    with pytest.raises(UsageError, match="max_tokens must be a whole number of at least 0, got -1"):
        generate(decoder, [[1]], max_tokens=-1)
    with pytest.raises(UsageError, match="stop is a list of strings that are not empty"):
        generate(decoder, [[1]], stop=("",))
    with pytest.raises(UsageError, match="choice 1 has no tokens"):
        score_choices(decoder, [1], [[1], []])
    with pytest.raises(UsageError, match="the prompt has 5 tokens and a choice 4; the model reads at most 8 together"):
        score_choices(decoder, [1] * 5, [[1], [1] * 4])
    with pytest.raises(UsageError, match="window must be from 2 to the model's 8 tokens, got 9"):
        perplexity(decoder, [1, 2, 3], window=9)
    with pytest.raises(UsageError, match="at least two tokens to be foretold, got 1"):
        perplexity(decoder, [1])
    with pytest.raises(UsageError, match="beams must be at least 1"):
        beam_search(decoder, [1], beams=0, max_tokens=1)
    with pytest.raises(UsageError, match=r"token ids must be from 0 to 257, got 999"):
        generate(decoder, [[999]])
    with pytest.raises(UsageError, match="every row needs at least one token"):
        batch_of([[]])


def test_the_edges_are_defined() -> None:
    decoder = tiny_decoder(context=8, end=False)
    (nothing,) = generate(decoder, [[1]], max_tokens=0)
    assert (nothing.ids, nothing.text, nothing.finish) == ((), "", "length")
    (full,) = generate(decoder, [[1] * 5], max_tokens=100)
    assert (len(full.ids), full.finish) == (3, "context")
    assert generate(decoder, [[]], max_tokens=2) == generate(decoder, [[decoder.tokenizer.start_id]], max_tokens=2)
    decoder.tokenizer.start_id = None
    with pytest.raises(UsageError, match="prompt 0 is empty, and this model has no start token"):
        generate(decoder, [[]], max_tokens=2)
    with pytest.raises(
        UsageError, match=r"^prompts are a list with at least one prompt, each a list of token ids or a Prompt, got \[\]$"
    ):
        generate(decoder, [], max_tokens=0)
