"""Our architectures give the numbers of transformers on the same random weights: logits and gradients, padded and cached."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from lm_reference import (
    LENGTHS,
    LLAMA,
    SIZES,
    Batch,
    Case,
    batch,
    bound,
    cases,
    forward_and_backward,
    llama_reference,
    measure,
    our_logits,
    reference_logits,
    same_weights,
    switch_model,
    switch_reference,
)
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from zoo_lm import bert, gpt2, llama, mixtral, switch, t5

from zoo.errors import UsageError
from zoo.nn.mixture import Mixture, Routing, balance_loss
from zoo.nn.positions import alibi_slopes, rotary_frequencies

CASES = cases()
CLOSE = {"decoder": 2e-5, "masked": 2e-5, "encoder-decoder": 1e-4}  # T5 does not scale its scores: rounding weighs more


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_equals_transformers(case: Case) -> None:
    measured = measure(case)
    assert measured.logits < CLOSE[case.kind]
    assert measured.gradients < CLOSE[case.kind]
    assert measured.padding < CLOSE[case.kind]
    assert (measured.cache is None) == (case.kind == "masked")
    assert (measured.cache or 0.0) < CLOSE[case.kind]


WRONG = {
    "theta": (llama_reference, partial(llama.build, **LLAMA, theta=9_000.0)),
    "epsilon": (llama_reference, partial(llama.build, **{**LLAMA, "epsilon": 1e-2})),
    "scaling": (llama_reference, partial(llama.build, **LLAMA, scaling={"kind": "linear", "factor": 1.1})),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_measure_sees_what_is_wrong(name: str) -> None:
    make_reference, build = WRONG[name]
    case = Case(name, "LlamaForCausalLM", make_reference, build, llama)
    assert min(forward_and_backward(case, *same_weights(case), batch())) > 100 * CLOSE["decoder"]


def test_the_measure_sees_a_wrong_map() -> None:
    """Query and key have one shape: only the numbers tell that they were exchanged."""

    class Exchanged:
        to_transformers = staticmethod(llama.to_transformers)

        @staticmethod
        def from_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            ours = llama.from_transformers(state)
            gate, up = "stack.blocks.0.feed_forward.gate.weight", "stack.blocks.0.feed_forward.up.weight"
            return {**ours, gate: ours[up], up: ours[gate]}

    case = replace(CASES[0], maps=Exchanged)
    assert min(forward_and_backward(case, *same_weights(case), batch())) > 100 * CLOSE["decoder"]


def test_bounds_are_printed_with_room() -> None:
    assert [bound(number) for number in (0.0, 3e-7, 6e-7, 2.5e-6, 7e-6)] == [
        "< 1e-9",
        "< 1e-6",
        "< 1e-5",
        "< 1e-5",
        "< 1e-4",
    ]


SCALINGS: list[dict[str, Any]] = [
    {"kind": "linear", "factor": 2.5},
    {
        "kind": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {
        "kind": "llama3",
        "factor": 32.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 64,
    },
    {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    {"kind": "yarn", "factor": 40.0, "original_max_position_embeddings": 256, "beta_fast": 16.0, "beta_slow": 2.0},
    {"kind": "yarn", "factor": 1.0, "original_max_position_embeddings": 4096},
]


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_width", [8, 64, 128])
@pytest.mark.parametrize("scaling", SCALINGS, ids=[f"{row['kind']}-{row['factor']}" for row in SCALINGS])
def test_rotary_scalings(scaling: dict[str, Any], head_width: int, theta: float) -> None:
    original = scaling.get("original_max_position_embeddings", 2048)
    numbers = {key: value for key, value in scaling.items() if key != "kind"}
    config = LlamaConfig(
        head_dim=head_width,
        max_position_embeddings=int(original * scaling["factor"]),
        rope_parameters={"rope_type": scaling["kind"], "rope_theta": theta, **numbers},
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS[scaling["kind"]](config)
    frequencies, factor = rotary_frequencies(head_width, theta=theta, scaling=scaling)
    torch.testing.assert_close(frequencies, expected, rtol=2e-6, atol=0.0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("heads", range(1, 34))
def test_alibi_slopes(heads: int) -> None:
    """At position 1 transformers' bias is the slope itself."""
    expected_H = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), expected_H, rtol=1e-6, atol=0.0)


def switch_case(capacity: int, sparse: int = 2, every: int = 2) -> Case:
    return Case(
        "Switch",
        "SwitchTransformersForConditionalGeneration",
        partial(switch_reference, capacity, sparse),
        partial(switch_model, capacity=capacity, every=every),
        switch,
        kind="encoder-decoder",
    )


@pytest.mark.parametrize(("sparse", "every"), [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("side", ["none", "right"])
def test_switch_with_full_experts(sparse: int, every: int, side: str) -> None:
    """Padding on the right takes room after everything real."""
    case = switch_case(2, sparse, every)
    reference, ours = same_weights(case)
    routing: list[Routing] = []
    given = batch(side)
    ours(given.source_BS, given.tokens_BT, source_mask_BS=given.source_mask_BS, mask_BT=given.mask_BT, routing=routing)
    assert len(routing) == 2 * 4 // every  # the encoder's and the decoder's
    assert all(bool((layer.chosen_BTE & ~layer.kept_BTE).any()) for layer in routing)
    assert balance_loss(routing).isfinite()
    assert max(forward_and_backward(case, reference, ours, given)) < CLOSE["encoder-decoder"]


@torch.no_grad()
def test_switch_with_full_experts_and_padding_on_the_left() -> None:
    """What `zoo_lm.switch` says of transformers: there padding takes room. Ours gives each row what it gives alone."""
    case = switch_case(2)
    reference, ours = same_weights(case)
    given = batch("left")
    ours_BTV, theirs_BTV = our_logits(case, ours, given), reference_logits(case, reference, given)
    worst = 0.0
    for row, count in enumerate(LENGTHS):
        source_mask_S = given.source_mask_BS[row]
        alone = Batch(given.tokens_BT[row : row + 1, -count:], None, given.source_BS[row : row + 1, source_mask_S], None)
        for model, run, rows_BTV in ((ours, our_logits, ours_BTV), (reference, reference_logits, theirs_BTV)):
            difference = (run(case, model, alone)[0] - rows_BTV[row, -count:]).abs().max().item()
            if model is ours:
                assert difference < CLOSE["encoder-decoder"]
            else:
                worst = max(worst, difference)
    assert worst > 0.01


@torch.no_grad()
def test_switch_alone_never_finds_an_expert_full() -> None:
    """The other thing that it says: with a cache the room is counted for each call."""
    models = [same_weights(switch_case(capacity))[1] for capacity in (2, 64)]
    given = batch()
    encoded = models[1].encoder.features(given.source_BS)
    whole, stepped = [], []
    for model in models:
        whole.append(model.decoder(given.tokens_BT, source_BSD=encoded))
        cache = model.decoder.new_cache(len(LENGTHS), max(LENGTHS))
        steps = given.tokens_BT.split(1, 1)
        stepped.append(torch.cat([model.decoder(tokens_B1, source_BSD=encoded, cache=cache) for tokens_B1 in steps], 1))
    assert (whole[0] - whole[1]).abs().max() > 0.01
    assert torch.equal(stepped[0], stepped[1])


def test_a_room_in_tokens_or_as_a_factor() -> None:
    experts = [torch.nn.Linear(4, 4) for _ in range(2)]
    for capacity, factor in ((0, None), (2, 1.0)):
        with pytest.raises(UsageError, match="capacity must be at least 1 and is given instead of capacity_factor"):
            Mixture(4, experts, capacity=capacity, capacity_factor=factor)
    mixture = Mixture(4, experts, capacity=1)
    routing: list[Routing] = []
    mixture(torch.randn(3, 5, 4), routing=routing)
    assert routing[0].kept_BTE.sum(1).max() == 1
    assert torch.equal(routing[0].kept_BTE.sum(1), routing[0].chosen_BTE.sum(1).clamp(max=1))


T5_SIZES = {**SIZES, "hidden": 8}
REFUSED = [
    (llama.build, {**LLAMA, "layers": 0}, "layers must be at least 1, got 0"),
    (llama.build, {**LLAMA, "heads": 3}, "heads must be a multiple of kv_heads"),
    (llama.build, {**LLAMA, "head_width": None, "heads": 6}, "width must be a multiple of heads"),
    (llama.build, {**LLAMA, "head_width": 5}, "head_width must be even"),
    (llama.build, {**LLAMA, "scaling": {"kind": "dynamic", "factor": 2.0}}, "linear, llama3, yarn"),
    (gpt2.build, {**SIZES, "hidden": 0}, "hidden must be at least 1"),
    (bert.build, {**SIZES, "hidden": 8, "token_types": 0}, "token_types must be at least 1"),
    (bert.encoder, {"layers": 1, "width": 8, "heads": 2, "hidden": 8, "context": 2}, "room for a start, an end"),
    (mixtral.build, {**SIZES, "kv_heads": 2, "hidden": 8, "experts": 2, "experts_per_token": 3}, "from 1 to the 2"),
    (t5.build, {**T5_SIZES, "version": "1.2"}, 'version is "1.0" or "1.1"'),
    (t5.build, {**T5_SIZES, "buckets": 6}, "buckets must be a multiple of 4"),
    (t5.build, {**T5_SIZES, "farthest": 16}, "farthest more than half"),
    (switch.build, {**T5_SIZES, "experts": 2, "every": 0}, "every must be at least 1"),
    (switch.build, {**T5_SIZES, "experts": 2, "layers": 1}, "that is zoo_lm.t5"),
    (switch.build, {**T5_SIZES, "experts": 2, "capacity": 0}, "capacity must be at least 1"),
]


@pytest.mark.parametrize(("build", "arguments", "message"), REFUSED, ids=range(len(REFUSED)))
def test_contradictions(build: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**arguments)


def test_positions_beyond_the_farthest_share_a_bucket() -> None:
    """A relative bias has no end: a text of twice `farthest` still equals transformers'."""
    case = next(case for case in CASES if case.name == "T5 1.0")
    reference, ours = same_weights(case)
    generator = torch.Generator().manual_seed(3)
    source_BS, tokens_BT = (torch.randint(61, (1, count), generator=generator) for count in (60, 50))
    with torch.no_grad():
        difference = (
            our_logits(case, ours, Batch(tokens_BT, None, source_BS, None))
            - reference(input_ids=source_BS, decoder_input_ids=tokens_BT).logits
        )
    assert difference.abs().max() < CLOSE["encoder-decoder"]
