"""Guessed tokens change no text, drawn or greedy, and save passes where they are right."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder

import zoo as library
from zoo.decoding.generation import generate, stream
from zoo.decoding.lookup import Lookup
from zoo.decoding.sampling import Sampling
from zoo.decoding.speculation import Worth
from zoo.errors import UsageError

LOOKUP = Sampling(lookup=6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 500),
    length=st.integers(1, 30),
    most=st.integers(1, 12),
    room=st.integers(1, 40),
    how=st.sampled_from([{}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 4}, {"repetition_penalty": 1.2}]),
    drafted=st.booleans(),
)
def test_the_text_is_the_one_without_guesses(seed: int, length: int, most: int, room: int, how, drafted: bool) -> None:
    torch.manual_seed(seed)
    decoder = tiny_decoder(width=32, heads=4, kv_heads=2, sharpness=3.0)
    draft = near(decoder, 0.02) if drafted else None
    prompt = torch.randint(0, 12, (length,)).tolist()
    plain = generate(decoder, [prompt], max_tokens=room, sampling=Sampling(**how, seed=seed))
    guessed = Sampling(**how, seed=seed, lookup=most)
    assert generate(decoder, [prompt], max_tokens=room, sampling=guessed, draft=draft) == plain


def near(decoder, noise: float):
    """Another decoder that mostly says the same."""
    other = copy.deepcopy(decoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * noise * parameter.std())
    return other


def counted_passes(monkeypatch: pytest.MonkeyPatch, decoder) -> list[int]:
    """Fills with the tokens of each pass of that decoder."""
    passes: list[int] = []
    forward = type(decoder).forward

    def counted(self, tokens_BT, **more):
        if self is decoder:
            passes.append(tokens_BT.shape[1])
        return forward(self, tokens_BT, **more)

    monkeypatch.setattr(type(decoder), "forward", counted)
    return passes


def test_a_draft_that_says_the_same_saves_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder(width=32, heads=4, kv_heads=2, sharpness=3.0, end=False)
    draft = copy.deepcopy(decoder)
    passes = counted_passes(monkeypatch, decoder)
    drawn = Sampling(temperature=0.3, seed=4)
    for sampling in (None, drawn):
        (plain,) = generate(decoder, [[1, 2, 3]], max_tokens=60, sampling=sampling)
        passes.clear()
        (drafted,) = generate(decoder, [[1, 2, 3]], max_tokens=60, sampling=sampling, draft=draft)
        assert drafted == plain
        assert len(passes) == 1 + -(-59 // 5), "it draws by the same random numbers: every guess is right"


def test_a_draft_must_have_the_same_tokens() -> None:
    decoder, other = (tiny_decoder(width=32, heads=4, kv_heads=2, **more) for more in ({}, {"vocabulary": 40}))
    with pytest.raises(UsageError, match="a draft must have the decoder's tokens, .* this one has 40"):
        generate(decoder, [[1]], max_tokens=3, draft=other)
    with pytest.raises(UsageError, match="open it anew, by a faster kernel"):
        generate(decoder, [[1]], max_tokens=3, draft=decoder)
    with pytest.raises(UsageError, match="a draft guesses ahead for one answer at a time, got 2"):
        generate(decoder, [[1], [2]], max_tokens=3, draft=copy.deepcopy(decoder))


def test_a_text_that_repeats_itself_takes_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder(width=32, heads=4, kv_heads=2, sharpness=3.0, end=False)
    passes = counted_passes(monkeypatch, decoder)
    (plain,) = generate(decoder, [[1, 2, 3]], max_tokens=150)  # greedy texts of a small decoder end in a circle
    alone = len(passes)
    passes.clear()
    (looked,) = generate(decoder, [[1, 2, 3]], max_tokens=150, sampling=LOOKUP)
    assert looked == plain
    assert 1.5 * len(passes) < alone, "its first half has no repetition"


def test_guesses_are_what_followed_and_stop_where_they_do_not_pay() -> None:
    guesses = Lookup([5, 6, 7, 8, 9, 5, 6, 7], most=3)
    assert guesses.next() == [8, 9, 5]
    guesses.add(1)
    assert guesses.next() == []
    worth = Worth()
    for _ in range(6):
        assert worth.now()
        worth.learn(0)
    assert [worth.now() for _ in range(24)].count(True) == 1, "the last of them is tried again"


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
    options = ("--model", "lm/llama-tiny", "--weights", "none", "--max-tokens", "20", "--json")
    texts = [json.loads(main("generate", "a b a b", *options, *more).stdout)["results"] for more in ((), ("--lookup", "5"))]
    assert texts[0] == texts[1]
    for wrong, message in (
        (("--draft-kernel", "int8"), "--draft-kernel is about the draft: add --draft NAME"),
        (("--draft", "lm/llama-tiny", "--beams", "2"), "--draft guesses one answer ahead: leave out --choices, --beams"),
    ):
        assert message in main("generate", "a b", *options, *wrong).stderr


def test_a_draft_by_a_faster_kernel_writes_the_same_text(main) -> None:
    options = ("--kernel", "fused", "--max-tokens", "12", "--json")
    found = main("generate", "The capital of France is", *options)
    if found.returncode:
        pytest.skip("needs the published file: zoo fetch smollm/135m-instruct")
    plain, draft = json.loads(found.stdout), ("--draft", "smollm/135m-instruct", "--draft-kernel", "int4")
    drafted = json.loads(main("generate", "The capital of France is", *options, *draft).stdout)
    assert drafted["results"] == plain["results"]
    assert drafted["settings"]["draft_kernel"] == "int4"


def test_adapters_and_kernels_are_written_by() -> None:
    spec = library.ModelSpec("lm/llama-tiny", weights=None, kernel="float32")
    torch.manual_seed(0)
    language = library.open_language_model(spec)
    plain = library.generate("x y x y x", model=language, max_tokens=20)
    assert library.generate("x y x y x", model=language, max_tokens=20, sampling=LOOKUP).results == plain.results
