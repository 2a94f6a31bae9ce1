"""Rows of one batch with adapters of their own: each gives what it gives alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder
from tiny_fused import prompt as prompt_of
from tiny_fused import tiny_fused

import zoo
from zoo.adapters.adapt import Adapters, adapters_of
from zoo.decoding.beams import beam_search
from zoo.decoding.generation import generate
from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.reading import batch_of
from zoo.decoding.sampling import Sampling
from zoo.decoding.scoring import score_choices
from zoo.errors import UsageError
from zoo.models.kernels import apply_kernel

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 4, "targets": ["query", "value"]}),
    "wide": ("lora", {"r": 8, "targets": "all-linear", "alpha": 4}),
    "words": ("lora", {"r": 2, "targets": ["embedding", "down"]}),
    "dora": ("dora", {"r": 3, "targets": ["query", "key", "output", "up"]}),
    "ia3": ("ia3", {}),
    "prefix": ("prefix", {"count": 5}),
    "short prefix": ("prefix", {"count": 2}),
    "prompt": ("prompt", {"count": 4}),
}
NAMES = [*KINDS, None]
VOCABULARY = 258
TOLERANCE = 1e-5


def shake(adapters: Adapters) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for name in adapters.names:
            for parameter_name, parameter in adapters[name].named_parameters():
                parameter.add_((0.05 if "length" in parameter_name else 0.3) * torch.randn_like(parameter))


def adapted(model: Any, kinds: dict[str, tuple[str, dict[str, Any]]] = KINDS) -> Adapters:
    for name, (method, options) in kinds.items():
        zoo.adapt(model, method, name=name, activate=False, **options)
    adapters = adapters_of(model)
    shake(adapters)
    return adapters


@pytest.fixture(scope="module")
def adapters() -> Adapters:
    return adapted(tiny_decoder(layers=3, end=False))


def rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY - 2, (length,), generator=generator).tolist() for length in lengths]


def logits(adapters: Adapters, prompts: list[list[int]], names: list[str | None]) -> list[torch.Tensor]:
    """Of the real tokens of each row, in one call."""
    tokens_BT, mask_BT = batch_of(prompts)
    with torch.inference_mode(), adapters.using(names):
        logits_BTV = adapters.model(tokens_BT, mask_BT=mask_BT)
    return [row[-len(prompt) :] for row, prompt in zip(logits_BTV, prompts, strict=True)]


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def test_each_kind_changes_the_answer(adapters: Adapters) -> None:
    (prompt,) = rows([6])
    (base,) = logits(adapters, [prompt], [None])
    assert torch.equal(base, adapters.model(torch.tensor([prompt]))[0]), "none is active"
    for name in KINDS:
        (own,) = logits(adapters, [prompt], [name])
        assert (own - base).abs().max() > 0.01, name


@pytest.mark.parametrize("lengths", [[6] * 9, [3, 9, 1, 4, 7, 2, 12, 5, 8]])
def test_rows_give_what_they_give_alone(adapters: Adapters, lengths: list[int]) -> None:
    prompts = rows(lengths)
    together = logits(adapters, prompts, NAMES)
    for prompt, name, found in zip(prompts, NAMES, together, strict=True):
        (alone,) = logits(adapters, [prompt], [name])
        assert near(found, alone), name
    assert torch.equal(together[-1], logits(adapters, [prompts[-1], *prompts[:-1]], [None, *NAMES[:-1]])[0]) or near(
        together[-1], logits(adapters, [prompts[-1]], [None])[0]
    )


@pytest.mark.covers("A19")
@pytest.mark.parametrize("prefixes", [None, "cold", "hot"])
def test_greedy_answers_are_those_of_single_calls(adapters: Adapters, prefixes: str | None) -> None:
    prompts = [[*rows([20], seed=9)[0], *row] for row in rows([3, 9, 1, 4, 7, 2, 12, 5, 8])]
    cache = None if prefixes is None else PrefixCache()
    alone = [
        generate(adapters.model, [prompt], max_tokens=6, adapters=[name])[0].ids
        for prompt, name in zip(prompts, NAMES, strict=True)
    ]
    if prefixes == "hot":
        for prompt, name in zip(prompts, NAMES, strict=True):
            generate(adapters.model, [prompt], max_tokens=2, adapters=[name], prefixes=cache)
    found = generate(adapters.model, prompts, max_tokens=6, adapters=NAMES, prefixes=cache)
    assert [one.ids for one in found] == alone
    if cache is not None:
        again = [
            generate(adapters.model, [prompt], max_tokens=6, adapters=[name], prefixes=cache)[0].ids
            for prompt, name in zip(prompts, NAMES, strict=True)
        ]
        assert again == alone
        assert cache.hits > 0 or prefixes == "cold"
    assert len(set(alone)) > 5, "the adapters differ"


@pytest.mark.parametrize("name", NAMES)
def test_a_search_with_beams_finds_what_reading_without_a_cache_finds(adapters: Adapters, name: str | None) -> None:
    (prompt,) = rows([7], seed=3)
    with adapters.using(name):
        found = beam_search(adapters.model, prompt, beams=3, max_tokens=4)
    for hypothesis in found:
        whole = [*prompt, *hypothesis.ids]
        (all_TV,) = logits(adapters, [whole], [name])
        logprobs = all_TV.double().log_softmax(-1)[len(prompt) - 1 : -1]
        total = float(logprobs.gather(1, torch.tensor(hypothesis.ids)[:, None]).sum())
        assert abs(total - hypothesis.logprob) < 1e-4


def test_choices_are_scored_under_an_adapter(adapters: Adapters) -> None:
    (prompt,) = rows([7], seed=3)
    choices = [[3, 4, 5], [9], [200, 17]]
    for name in NAMES:
        with adapters.using(name):
            found = score_choices(adapters.model, prompt, choices)
        for scored, choice in zip(found, choices, strict=True):
            (all_TV,) = logits(adapters, [[*prompt, *choice]], [name])
            logprobs = all_TV.double().log_softmax(-1)[len(prompt) - 1 : -1]
            assert abs(scored.logprob - float(logprobs.gather(1, torch.tensor(choice)[:, None]).sum())) < 1e-4


def test_several_samples_keep_the_adapter_of_their_prompt(adapters: Adapters) -> None:
    prompts = rows([4, 6, 5])
    names = ["lora", None, "prefix"]
    found = generate(
        adapters.model, prompts, max_tokens=5, sampling=Sampling(temperature=1.0, seed=3), samples=2, adapters=names
    )
    for number, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
        alone = generate(
            adapters.model, [prompt], max_tokens=5, sampling=Sampling(temperature=1.0, seed=3), samples=2, adapters=[name]
        )
        assert [one.ids for one in found[2 * number : 2 * number + 2]] == [one.ids for one in alone]


@pytest.mark.parametrize("kernel", ["float32", "bf16", "int8", "int4"])
def test_they_stand_on_layers_that_run_by_a_kernel(kernel: str) -> None:
    kinds = {name: how for name, how in KINDS.items() if name != "dora"}
    plain = adapted(tiny_decoder(layers=2, width=32, end=False), kinds)
    model = apply_kernel(tiny_decoder(layers=2, width=32, end=False), kernel)
    assert model.one_step is not None
    fast = adapted(model, kinds)
    names = [*kinds, None]
    for name in kinds:
        fast[name].load_state_dict(plain[name].state_dict())
    prompts = rows([3, 9, 1, 4, 7, 2, 12, 5])
    together = logits(fast, prompts, names)
    for prompt, name, found in zip(prompts, names, together, strict=True):
        (alone,) = logits(fast, [prompt], [name])
        # A kernel with few digits takes another path for few rows: so far apart are the rows of the model alone.
        assert (found - alone).abs().max() < {"bf16": 0.03, "int4": 0.05}.get(kernel, 1e-4) * alone.abs().max()
        if kernel == "float32":
            (expected,) = logits(plain, [prompt], [name])
            assert near(found, expected)
    answers = generate(fast.model, prompts, max_tokens=5, adapters=names)
    for prompt, name, answer in zip(prompts, names, answers, strict=True):
        (alone,) = generate(fast.model, [prompt], max_tokens=5, adapters=[name])
        assert answer.ids == alone.ids or kernel in ("bf16", "int4")
        if kernel == "float32":
            (expected,) = generate(plain.model, [prompt], max_tokens=5, adapters=[name])
            assert answer.ids == expected.ids
    with pytest.raises(UsageError, match="runs by a kernel"):
        fast.add("dora", name="dora")
    with pytest.raises(UsageError, match="runs by a kernel already"):
        apply_kernel(model, kernel)
    with pytest.raises(UsageError, match="the model has adapters: apply kernel float32 first, and adapt what runs by it"):
        apply_kernel(plain.model, "float32")


@settings(max_examples=5 * settings.default.max_examples)
@given(st.data())
def test_no_schedule_mixes_them(adapters: Adapters, data: Any) -> None:
    """Any rows with any adapters in any order, some asked twice, through one prefix cache that lives on."""
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=len(names), max_size=len(names)))
    seeds = data.draw(st.lists(st.integers(0, 2), min_size=len(names), max_size=len(names)))
    prompts = [[*LONG, *rows([length], seed)[0]] for length, seed in zip(lengths, seeds, strict=True)]
    found = generate(adapters.model, prompts, max_tokens=2, adapters=names, prefixes=LIVING)
    for prompt, name, one in zip(prompts, names, found, strict=True):
        key = (tuple(prompt), name)
        if key not in KNOWN:
            KNOWN[key] = generate(adapters.model, [prompt], max_tokens=2, adapters=[name])[0].ids
        assert one.ids == KNOWN[key]


LONG = rows([18], seed=11)[0]
LIVING = PrefixCache()
KNOWN: dict[Any, Any] = {}


@pytest.mark.parametrize("gates", [{"image": 0.5}, {"image": None}, {"image": 0.5, "audio": None}])
@pytest.mark.parametrize("cached", [False, True])
def test_rows_with_media(gates: dict[str, float | None], cached: bool, make_prompts: Callable[..., Any]) -> None:
    model = tiny_fused(gates, decoder=tiny_decoder(layers=3, end=False))
    kinds = {
        **{name: how for name, how in KINDS.items() if name not in ("wide", "dora")},
        "seeing": ("lora", {"r": 3, "targets": ["senses.image.encoder.project", "senses.image.bridge.project", "query"]}),
        "looking": (
            "lora",
            {"r": 3, "targets": ["stack.*.value"] if gates["image"] is None else ["senses.image.gated.*.key"]},
        ),
    }
    adapters = adapted(model, kinds)
    names = [*kinds, None]
    prompts = make_prompts(model, len(names))
    prefixes = PrefixCache() if cached else None
    alone = [
        generate(model, [prompt], max_tokens=5, adapters=[name])[0].ids for prompt, name in zip(prompts, names, strict=True)
    ]
    for _ in range(2):
        found = generate(model, prompts, max_tokens=5, adapters=names, prefixes=prefixes)
        assert [one.ids for one in found] == alone
    (base,) = generate(model, [prompts[0]], max_tokens=5, adapters=[None])
    assert any(one != base.ids for one in alone)
    assert adapters.active == []


@pytest.fixture
def make_prompts() -> Callable[..., Any]:
    """The same picture in every prompt, so that only the adapter tells rows apart."""

    def make(model: Any, count: int) -> list[Any]:
        spliced = [name for name, sense in model.senses.items() if sense.spliced]
        return [prompt_of([5, 9, ("image", 1, 3), 17, 3], spliced=spliced) for _ in range(count)]

    return make


def test_a_list_of_another_length_and_misspelt_names(adapters: Adapters) -> None:
    prompts = rows([3, 3, 3])
    with pytest.raises(UsageError, match="a list with a name or None for each of the 3 rows, got 2"):
        generate(adapters.model, prompts, adapters=["lora", None])
    with pytest.raises(UsageError, match="for each of the 3 rows, got 'lora'"):
        generate(adapters.model, prompts, adapters="lora")
    with pytest.raises(UsageError, match="this model has no adapter 'lorra'; did you mean lora?"):
        generate(adapters.model, prompts, adapters=["lorra", None, None])
    with adapters.using(["lora", None]), pytest.raises(UsageError, match="adapters are chosen for 2 rows, the batch has 3"):
        adapters.model(torch.tensor(prompts))
    with pytest.raises(UsageError, match=r"this model has no adapters: zoo.adapt\(model, ...\) gives it one"):
        generate(tiny_decoder(), prompts, adapters=["lora", None, None])
    long = [1] * 93
    with pytest.raises(UsageError, match="prompt 0 has 93 tokens and its adapter reads 5 before them"):
        generate(adapters.model, [long], adapters=["prefix"])


def test_experts_do_not_know_the_rows() -> None:
    model = tiny_decoder(experts=2)
    adapters = adapted(model, {"a": ("lora", {"r": 2, "targets": ["up"]}), "b": ("lora", {"r": 2, "targets": ["up"]})})
    with adapters.using(["a", "b"]), pytest.raises(UsageError, match="does not keep the rows of a batch apart"):
        model(torch.tensor(rows([4, 4])))
    tokens = torch.tensor(rows([4, 4]))
    with torch.inference_mode():
        with adapters.using(["a", "a"]):
            together = model(tokens)
        with adapters.using("a"):
            assert near(together, torch.cat([model(tokens[:1]), model(tokens[1:])]))
    with adapters.using(["a", "b"]), pytest.raises(UsageError, match="does not keep the rows of a batch apart"):
        model(torch.tensor(rows([1, 1])))  # as many tokens as rows


def test_a_cache_keeps_the_adapters_that_it_was_begun_with(adapters: Adapters) -> None:
    prompts = rows([5, 5])
    cache = adapters.model.new_cache(2, 16)
    with torch.inference_mode():
        with adapters.using(["lora", "prefix"]):
            adapters.model(torch.tensor(prompts)[:, :3], cache=cache)
        after = adapters.model(torch.tensor(prompts)[:, 3:], cache=cache)
    for row, name in enumerate(["lora", "prefix"]):
        (expected,) = logits(adapters, [prompts[row]], [name])
        assert near(after[row], expected[3:])


def media_of(model: Any) -> Any:
    prompt = prompt_of([5, 9, ("image", 1, 3), 17, 3])
    return torch.tensor([prompt.ids] * 2), [prompt.media] * 2


def test_gradients_reach_adapters_on_an_encoder_that_is_frozen() -> None:
    model = tiny_fused({"image": 0.5})
    tokens, media = media_of(model)
    adapters = adapted(
        model, {"own": ("lora", {"r": 2, "targets": ["senses.image.encoder.project", "bridge.project", "gated.*.value"]})}
    )
    adapters.use("own")
    model(tokens, media=media).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters.parameters())
    with pytest.raises(UsageError, match="a media cache keeps numbers through which no gradient flows"):
        model(tokens, media=media, media_cache=PrefixCache().media)
    with torch.inference_mode():
        model(tokens, media=media, media_cache=PrefixCache().media)


def test_gradients_of_rows_reach_each_its_own_adapter(adapters: Adapters) -> None:
    prompts = torch.tensor(rows([6, 6, 6]))
    names = ["lora", "ia3", "wide"]
    for name in names:
        adapters[name].requires_grad_(True)
    with torch.inference_mode(), adapters.using(names):
        adapters.model(prompts)
    with adapters.using(names):
        for _ in range(2):  # nothing of the first graph is kept
            adapters.model(prompts).square().sum().backward()
    together = {name: [parameter.grad.clone() / 2 for parameter in adapters[name].parameters()] for name in names}
    for row, name in enumerate(names):
        adapters[name].zero_grad()
        with adapters.using(name):
            adapters.model(prompts[row : row + 1]).square().sum().backward()
        for one, alone in zip(together[name], [parameter.grad for parameter in adapters[name].parameters()], strict=True):
            assert (one - alone).abs().max() <= 1e-4 * alone.abs().max()
        adapters[name].zero_grad()
        adapters[name].requires_grad_(False)


def test_what_is_merged_is_not_added_again() -> None:
    adapters = adapted(tiny_decoder(), {"a": ("lora", {}), "b": ("lora", {})})
    adapters.merge("a")
    with pytest.raises(UsageError, match="'a' is merged into the weights and works in every call"):
        generate(adapters.model, rows([3, 3]), adapters=["a", "b"])
    with pytest.raises(UsageError, match="'a' is merged"), adapters.using("a"):
        pass


def test_a_model_that_runs_by_a_kernel_is_not_trained() -> None:
    model = apply_kernel(tiny_decoder(), "float32")
    adapters = zoo.adapt(model, "lora")
    assert adapters.active == ["default"]
    assert adapters.parameters() == []
    assert adapters.trainable() == {}


def test_a_first_adapter_that_cannot_be_leaves_nothing_behind() -> None:
    model = tiny_decoder()
    with pytest.raises(UsageError, match="no layer is called"):
        zoo.adapt(model, "lora", targets=["nothing"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    apply_kernel(copy.deepcopy(model), "float32")  # as a model without adapters
    adapters = zoo.adapt(model, "lora", name="a")
    with pytest.raises(UsageError, match="an adapter is used once, got a, a"):
        adapters.use("a", "a")
    adapters.close()
    assert all(parameter.requires_grad for parameter in model.parameters())
