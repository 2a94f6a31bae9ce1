"""Guessed tokens change no text, and save passes where a text repeats itself."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder

import zoo as library
from zoo.decoding.generation import generate, stream
from zoo.decoding.lookup import Guesses
from zoo.decoding.sampling import Sampling
from zoo.errors import UsageError

LOOKUP = Sampling(lookup=6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 500), length=st.integers(1, 30), most=st.integers(1, 12), room=st.integers(1, 40))
def test_the_text_is_the_greedy_one(seed: int, length: int, most: int, room: int) -> None:
    torch.manual_seed(seed)
    decoder = tiny_decoder(width=32, heads=4, kv_heads=2, sharpness=3.0)
    prompt = torch.randint(0, 12, (length,)).tolist()
    plain = generate(decoder, [prompt], max_tokens=room)
    assert generate(decoder, [prompt], max_tokens=room, sampling=Sampling(lookup=most)) == plain


def test_a_text_that_repeats_itself_takes_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder(width=32, heads=4, kv_heads=2, sharpness=3.0, end=False)
    passes: list[int] = []
    forward = type(decoder).forward

    def counted(self, tokens_BT, **more):
        passes.append(tokens_BT.shape[1])
        return forward(self, tokens_BT, **more)

    monkeypatch.setattr(type(decoder), "forward", counted)
    (plain,) = generate(decoder, [[1, 2, 3]], max_tokens=150)  # greedy texts of a small decoder end in a circle
    alone = len(passes)
    passes.clear()
    (looked,) = generate(decoder, [[1, 2, 3]], max_tokens=150, sampling=LOOKUP)
    assert looked == plain
    assert 1.5 * len(passes) < alone, "its first half has no repetition"


def test_guesses_are_what_followed_and_stop_where_they_do_not_pay() -> None:
    guesses = Guesses([5, 6, 7, 8, 9, 5, 6, 7], most=3)
    assert guesses.next() == [8, 9, 5]
    guesses.add(1)
    assert guesses.next() == []
    for _ in range(6):
        guesses.learn(0)
    for token in (5, 6, 7):
        guesses.add(token)
    assert guesses.next() == [], "it waits for a while"


def test_stops_and_rows(main) -> None:
    decoder = tiny_decoder(width=32, heads=4, kv_heads=2, sharpness=3.0)
    pieces = [
        list(stream(decoder, [[1, 2, 3]], max_tokens=30, sampling=sampling, stop=["a"])) for sampling in (None, LOOKUP)
    ]
    assert pieces[0] == pieces[1]
    with pytest.raises(UsageError, match="lookup guesses ahead for one answer at a time, got 2"):
        generate(decoder, [[1], [2]], max_tokens=3, sampling=LOOKUP)
    with pytest.raises(UsageError, match="lookup must be from 0 to 64, got 65"):
        Sampling(lookup=65)
    with pytest.raises(UsageError, match="leave out temperature and repetition_penalty, or lookup"):
        Sampling(lookup=3, temperature=0.5)
    options = ("--model", "lm/llama-tiny", "--weights", "none", "--max-tokens", "20", "--json")
    texts = [json.loads(main("generate", "a b a b", *options, *more).stdout)["results"] for more in ((), ("--lookup", "5"))]
    assert texts[0] == texts[1]


def test_adapters_and_kernels_are_written_by() -> None:
    spec = library.ModelSpec("lm/llama-tiny", weights=None, kernel="float32")
    torch.manual_seed(0)
    language = library.open_language_model(spec)
    plain = library.generate("x y x y x", model=language, max_tokens=20)
    assert library.generate("x y x y x", model=language, max_tokens=20, sampling=LOOKUP).results == plain.results
