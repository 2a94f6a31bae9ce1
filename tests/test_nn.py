"""The parts of sequence models, each against its formula. What they give together is held to transformers in plugins/lm."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zoo.errors import UsageError
from zoo.nn.attention import Attention
from zoo.nn.cache import Cache
from zoo.nn.feed_forward import Dense
from zoo.nn.mixture import Mixture, balance_loss
from zoo.nn.norm import RMSNorm
from zoo.nn.positions import Rotary, alibi_slopes, rotary_frequencies, rotate, sinusoids


def experts(count: int, width: int = 8) -> list[nn.Module]:
    return [Dense(width, 16) for _ in range(count)]


@given(
    count=st.integers(2, 5),
    k=st.integers(1, 2),
    renormalise=st.booleans(),
    rows=st.integers(1, 3),
    tokens=st.integers(1, 6),
)
def test_a_mixture_with_room_for_all_is_a_dense_mixture(count, k, renormalise, rows, tokens) -> None:
    torch.manual_seed(count)
    mixture = Mixture(8, experts(count), experts_per_token=k, renormalise=renormalise, capacity_factor=float(count))
    x = torch.randn(rows, tokens, 8)
    gates = (x @ mixture.router.weight.T).softmax(-1)
    kept = gates >= gates.topk(k, -1).values[..., -1:]
    gates = gates * kept
    if renormalise:
        gates = gates / gates.sum(-1, keepdim=True)
    dense = sum(gates[..., number : number + 1] * expert(x) for number, expert in enumerate(mixture.experts))
    torch.testing.assert_close(mixture(x), dense, rtol=0, atol=1e-6)


def test_an_expert_that_is_full_gives_nothing_and_rows_do_not_compete() -> None:
    torch.manual_seed(0)
    mixture = Mixture(8, experts(2), capacity_factor=1.0)
    with torch.no_grad():
        mixture.router.weight.copy_(torch.stack((torch.ones(8), -torch.ones(8))))
    x = torch.rand(2, 4, 8)  # all ask for expert 0, which has room for 2 of a row's 4 tokens
    routing = []
    output = mixture(x, routing=routing)
    assert routing[0].kept_BTE[..., 0].tolist() == [[True, True, False, False]] * 2
    assert output[:, 2:].abs().sum() == 0
    assert bool((output[:, :2].abs().sum(-1) > 0).all())
    torch.testing.assert_close(mixture(x[1:]), output[1:])
    real = torch.tensor([[False, True, True, True]])
    padded = mixture(x[:1], real_BT=real)  # ceil(3 / 2) = 2 of the real ones
    assert (padded[0].abs().sum(-1) > 0).tolist() == [False, True, True, False]


def test_the_balance_loss_is_one_for_balance_and_two_for_one_expert_of_two() -> None:
    mixture = Mixture(2, experts(2, 2))
    with torch.no_grad():
        mixture.router.weight.copy_(100 * torch.eye(2))
    even, one_sided = [], []
    mixture(torch.tensor([[[1.0, 0], [0, 1.0]]]), routing=even)
    mixture(torch.tensor([[[1.0, 0], [1.0, 0]]]), routing=one_sided)
    assert balance_loss(even).item() == pytest.approx(1)
    assert balance_loss(one_sided).item() == pytest.approx(2)
    assert balance_loss(even).requires_grad


def test_a_mixture_says_what_it_cannot_do() -> None:
    with pytest.raises(UsageError, match="experts_per_token must be from 1 to the 2 experts, got 3"):
        Mixture(8, experts(2), experts_per_token=3)
    with pytest.raises(UsageError, match="capacity_factor must be positive, or None for room for all, got 0"):
        Mixture(8, experts(2), capacity_factor=0)


@given(heads=st.sampled_from(((4, 4), (4, 2), (4, 1), (6, 3))), tokens=st.integers(1, 7), causal=st.booleans())
def test_attention_is_its_formula(heads, tokens, causal) -> None:
    torch.manual_seed(tokens)
    many, groups = heads
    attention = Attention(24, heads=many, kv_heads=groups, bias=True)
    x = torch.randn(2, tokens, 24)
    width = 24 // many
    query = attention.query(x).view(2, tokens, many, width)
    key, value = (
        part(x).view(2, tokens, groups, width).repeat_interleave(many // groups, 2)
        for part in (attention.key, attention.value)
    )
    scores = torch.einsum("bthk,bshk->bhts", query, key) / math.sqrt(width)
    if causal:
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
    expected = attention.output(torch.einsum("bhts,bshk->bthk", scores.softmax(-1), value).flatten(2))
    torch.testing.assert_close(attention(x, causal=causal), expected, rtol=0, atol=1e-5)


def test_attention_says_what_does_not_divide() -> None:
    with pytest.raises(UsageError, match="heads must be a multiple of kv_heads, got heads=4 and kv_heads=3"):
        Attention(8, heads=4, kv_heads=3)
    with pytest.raises(UsageError, match="width must be a multiple of heads, got width=10 and heads=4"):
        Attention(10, heads=4)


@given(first=st.integers(0, 40), second=st.integers(0, 40), shift=st.integers(0, 20))
def test_rotary_scores_depend_on_the_distance_alone(first, second, shift) -> None:
    torch.manual_seed(0)
    rotary = Rotary(16, positions=64)
    query, key = torch.randn(2, 1, 1, 1, 16)

    def score(at: int, other: int) -> float:
        turned = rotate(query, rotary.at(torch.tensor([[at]]))), rotate(key, rotary.at(torch.tensor([[other]])))
        return float((turned[0] * turned[1]).sum())

    assert score(first + shift, second + shift) == pytest.approx(score(first, second), abs=1e-4)


def test_positions_say_what_they_cannot_do() -> None:
    with pytest.raises(UsageError, match="head_width must be even, got 7"):
        Rotary(7, positions=4)
    with pytest.raises(UsageError, match="must be of kind linear, llama3, yarn, got 'dynamic'"):
        rotary_frequencies(8, theta=1e4, scaling={"kind": "dynamic"})
    with pytest.raises(UsageError, match="of kind linear takes factor; missing: factor, unknown: faktor"):
        rotary_frequencies(8, theta=1e4, scaling={"kind": "linear", "faktor": 2})
    with pytest.raises(UsageError, match="an even width of at least 4, got 5"):
        sinusoids(3, 5)


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-number for number in range(1, 9)]
    twelve = alibi_slopes(12)  # 8 of the lower power of two, then every other one of 16
    assert twelve[:8].tolist() == alibi_slopes(8).tolist()
    assert twelve[8:].tolist() == pytest.approx([2 ** (-0.5 * number) for number in (1, 3, 5, 7)])


def test_rms_norm_is_its_formula() -> None:
    norm = RMSNorm(6, epsilon=0.1)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
    x = torch.randn(2, 6)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * torch.arange(6.0))


def new_cache(capacity: int = 4) -> Cache:
    return Cache(layers=1, batch=2, kv_heads=1, head_width=2, capacity=capacity)


def test_a_cache_grows_keeps_rows_and_forgets() -> None:
    cache = new_cache(2)
    assert cache.begin(3, torch.tensor([[False, True, True], [True, True, True]])).tolist() == [[0, 0, 1], [0, 1, 2]]
    keys = torch.arange(12.0).view(2, 1, 3, 2)
    cache.write(0, keys, -keys)
    assert cache.begin(1, None).tolist() == [[2], [3]]
    cache.write(0, torch.full((2, 1, 1, 2), 9.0), torch.zeros(2, 1, 1, 2))
    assert cache.ragged
    assert cache.key_positions().tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]
    copied = cache.copy(capacity=10, rows=2)
    assert (copied.batch, copied.capacity, copied.length) == (4, 10, 4)
    torch.testing.assert_close(copied.store[0, 0, 1, :, :3], keys[0])
    cache.select(torch.tensor([1, 1]))
    torch.testing.assert_close(cache.store[0, 0, 0, :, :3], keys[1])
    cache.truncate(1)
    assert (cache.length, cache.ragged, cache.counts_B.tolist()) == (1, False, [1, 1])
    with pytest.raises(UsageError, match="a cache of 1 filled slots cannot be cut to 2"):
        cache.truncate(2)
    with pytest.raises(UsageError, match="and no negative capacity, got -1"):
        new_cache(-1)
