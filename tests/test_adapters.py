"""Adapters by name on one model: begun, merged, scaled, combined, kept in files, and every mistake by its message."""

import copy
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoder import tiny_decoder
from tiny_tower import tower

import zoo
from zoo.adapters.adapt import Adapters, adapters_of
from zoo.adapters.files import fingerprint
from zoo.errors import StateMismatchError, UnknownNameError, UsageError, WeightsError
from zoo.models.kernels import apply_kernel

TOKENS = torch.tensor([[3, 17, 9, 22], [5, 41, 8, 2]])


def shaken(adapters: Adapters, name: str = "default", seed: int = 1) -> Adapters:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters[name].parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return adapters


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS)


METHODS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {}, "ia3": {}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stands_on_layers_begins_as_the_model(method: str, dtype: torch.dtype) -> None:
    model = tiny_decoder().to(dtype)
    expected = logits(model)
    adapters = zoo.adapt(model, method)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(shaken(adapters).model), expected)
    assert adapters.active == ["default"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.covers("W10")
def test_merging_and_taking_out_again_a_hundred_times(method: str, dtype: torch.dtype) -> None:
    model = tiny_decoder().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = shaken(zoo.adapt(model, method, targets="all-linear" if method != "ia3" else ["key", "value", "down"]))
    expected = logits(model).float()
    for _ in range(100):
        adapters.merge()
        adapters.unmerge()
    adapters.merge()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    assert (logits(model).float() - expected).abs().max() < tolerance * expected.abs().max()
    with pytest.raises(UsageError, match=r"default is merged already: unmerge\(\) first"):
        adapters.merge()
    with pytest.raises(UsageError, match=r"'default' is merged into the weights: unmerge\(\) first"):
        adapters.remove("default")
    adapters.unmerge()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model).float(), expected)
    with pytest.raises(UsageError, match="nothing is merged, so there is nothing to unmerge"):
        adapters.unmerge()


def test_a_tower_with_fused_projections() -> None:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    model = tower()
    with torch.no_grad():
        expected = model(pixels)
        adapters = zoo.adapt(model, "lora", r=2, targets=["attn.query", "attn.value", "attn.out_proj", "conv1", "c_fc"])
        assert torch.allclose(model(pixels), expected, atol=1e-6), "another attention kernel is another last digit, no more"
        changed = shaken(adapters).model(pixels)
        assert (changed - expected).abs().max() > 0.01
        adapters.merge()
        assert (model(pixels) - changed).abs().max() < 1e-5 * changed.abs().max()
        adapters.unmerge()
        adapters.use()
        assert torch.allclose(model(pixels), expected, atol=1e-6)
        adapters.close()
        assert torch.equal(model(pixels), expected)
    with pytest.raises(UsageError, match=r"attn.\w+ and .*attn.\w+ are the same outputs: name one of them"):
        zoo.adapt(model, "lora", r=2, targets=["attn.in_proj", "attn.query"])


def test_a_slice_of_a_fused_layer_is_that_layer_alone() -> None:
    class Fused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = torch.nn.Linear(8, 24)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.qkv(inputs)

    model, inputs = Fused(), torch.randn(2, 5, 8)
    before = model(inputs)
    shaken(zoo.adapt(model, "lora", r=2, targets=["qkv[0/3]", "qkv[2/3]"]))
    query, key, value = (model(inputs) - before).chunk(3, -1)
    assert query.abs().max() > 0.01
    assert torch.equal(key, torch.zeros_like(key))
    assert value.abs().max() > 0.01
    with pytest.raises(UsageError, match=r"qkv\[1/5\] is no slice of it: it has 24 outputs"):
        zoo.adapt(model, "lora", name="b", r=2, targets=["qkv[1/5]"])


def test_names_are_used_scaled_and_removed() -> None:
    model = tiny_decoder()
    base = logits(model)
    adapters = shaken(zoo.adapt(model, "lora", name="french"), "french")
    french = logits(model)
    zoo.adapt(model, "ia3", name="formal")
    shaken(adapters, "formal", 2)
    assert adapters.names == ["french", "formal"]
    assert adapters.active == ["formal"]
    assert set(adapters.trainable()) == {name for name in adapters.trainable() if name.startswith("formal.")}
    formal = logits(model)
    with adapters.using("french"):
        assert torch.allclose(logits(model), french, atol=1e-5), "laid out for running, in another order of sums"
    with adapters.using(None):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), formal)
    adapters.use("french", "formal")
    assert not torch.allclose(logits(model), formal)
    adapters.use("french")
    adapters.scale("french", 0.0)
    assert torch.equal(logits(model), base)
    adapters.scale("french", 0.5)
    halfway = logits(model)
    adapters.scale("french", 1.0)
    assert torch.equal(logits(model), french)
    assert not torch.allclose(halfway, french)
    with pytest.raises(UsageError, match=r"'french' is active: use\(\) another, or none, before it is removed"):
        adapters.remove("french")
    with pytest.raises(UsageError, match="this model has no adapter 'frensh'; did you mean french?"):
        adapters.use("frensh")
    with pytest.raises(UsageError, match="there is an adapter 'french' already: remove it first, or take another name"):
        zoo.adapt(model, "lora", name="french")
    adapters.use()
    adapters.remove("french")
    adapters.remove("formal")
    assert torch.equal(logits(model), base)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules()), "nothing is left on it"
    assert adapters_of(model) is adapters


def test_threads_choose_for_themselves() -> None:
    model = tiny_decoder()
    adapters = shaken(zoo.adapt(model, "lora", name="a", activate=False), "a")
    base = logits(model)
    with adapters.using("a"):
        own = logits(model)
    found: dict[str, list[bool]] = {"a": [], "none": []}
    begin = threading.Barrier(2)

    def ask(name: str | None, expected: torch.Tensor) -> None:
        begin.wait()
        with adapters.using(name):
            found[name or "none"] = [torch.equal(logits(model), expected) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=pair) for pair in (("a", own), (None, base))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": [True] * 50, "none": [True] * 50}


ALL: dict[str, dict[str, Any]] = {
    **METHODS,
    "prefix": {"count": 3, "hidden": 4},
    "prompt": {"count": 3, "text": "be brief"},
}


@pytest.mark.parametrize("method", ALL)
def test_a_file_comes_back_to_the_bit(method: str, tmp_path: Path) -> None:
    adapters = shaken(zoo.adapt(tiny_decoder(), method, **ALL[method]))
    adapters.save("default", tmp_path / "a.safetensors")
    expected = logits(adapters.model)
    other = adapters_of(tiny_decoder())
    other.load(tmp_path / "a.safetensors", name="read")
    assert torch.equal(logits(other.model), expected)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.safetensors"], "and nothing else is left"
    cast = adapters_of(tiny_decoder().bfloat16())
    cast.load(tmp_path / "a.safetensors", name="read")
    fast = adapters_of(apply_kernel(tiny_decoder(), "float32"))
    if method != "dora":
        fast.load(tmp_path / "a.safetensors", name="read")
        assert (logits(fast.model) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.covers("W7", "A26")
def test_files_that_cannot_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    adapters = shaken(zoo.adapt(tiny_decoder(), "lora"))
    adapters.save("default", path)
    with pytest.raises(
        UsageError,
        match=r"was made for a model with other weights \(\w{12}, this one is \w{12}\): load it into that one, or say other_base=True",
    ):
        adapters_of(tiny_decoder(seed=5)).load(path, name="x")
    other = adapters_of(tiny_decoder(seed=5))
    other.load(path, name="x", other_base=True)
    with pytest.raises(StateMismatchError, match=r"4 of 8 tensors differ|8 of 8 tensors differ"):
        adapters_of(tiny_decoder(width=48)).load(path, name="x", other_base=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="it is no whole safetensors file"):
        adapters.load(path, name="x")
    path.write_bytes(b"hello")
    with pytest.raises(WeightsError, match="it is no whole safetensors file"):
        adapters.load(path, name="x")
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="is a safetensors file, but no adapter that `save` wrote"):
        adapters.load(path, name="x")
    with torch.no_grad():
        next(adapters["default"].parameters()).fill_(math.nan)
    adapters.save("default", path)
    with pytest.raises(WeightsError, match="holds NaN or infinity"):
        adapters.load(path, name="x")
    with pytest.raises((UsageError, WeightsError), match="there is no|no such"):
        adapters.load(tmp_path / "missing.safetensors", name="x")


def test_other_numbers_under_the_same_name_are_another_adapter(tmp_path: Path) -> None:
    from zoo.decoding.generation import generate
    from zoo.decoding.prefix_cache import PrefixCache

    model = tiny_decoder(end=False)
    adapters = shaken(zoo.adapt(model, "lora", name="a", activate=False), "a", 1)
    shaken(zoo.adapt(model, "lora", name="b", activate=False), "b", 2)
    adapters.save("b", tmp_path / "b.safetensors")
    prompt, cache = list(range(30)), PrefixCache()
    first = generate(model, [prompt], max_tokens=8, adapters=["a"], prefixes=cache)[0].ids
    key = adapters["a"].key
    adapters.load(tmp_path / "b.safetensors", name="a", replace=True, activate=False)
    assert adapters["a"].key != key
    assert adapters["a"].key == adapters["b"].key
    expected = generate(model, [prompt], max_tokens=8, adapters=["b"])[0].ids
    hits = cache.hits
    assert generate(model, [prompt], max_tokens=8, adapters=["a"], prefixes=cache)[0].ids == expected != first
    assert cache.hits == hits
    adapters.use("a")
    assert generate(model, [prompt], max_tokens=8, prefixes=cache)[0].ids == expected
    shaken(adapters, "a", 3)  # as training does
    changed = generate(model, [prompt], max_tokens=8)[0].ids
    assert generate(model, [prompt], max_tokens=8, prefixes=cache)[0].ids == changed


@pytest.mark.covers("A19")
def test_what_is_derived_from_a_model_is_kept_under_its_adapters(photos: Path) -> None:
    built = zoo.open_model("lm/llama-tiny", weights=None)
    plain = built.state_identity
    assert plain == built.identity
    adapters = zoo.adapt(built, "ia3", name="a")
    one = built.state_identity
    assert one != plain
    shaken(adapters, "a")
    assert built.state_identity not in (one, plain)
    with adapters.using(None):
        assert built.state_identity == plain
    adapters.use()
    assert built.state_identity == plain
    adapters.merge("a")
    assert built.state_identity != plain


def test_the_base_is_as_it_was_after_training() -> None:
    from zoo.training.fit import FitOptions, fit

    model = tiny_decoder()
    before = fingerprint(model)
    for method, options in ALL.items():
        adapters = zoo.adapt(model, method, name=method, **options)
        fit(
            adapters.parameters(),
            lambda batch: model(torch.stack(list(batch)))[:, -1].square().mean(),
            list(TOKENS),
            FitOptions(steps=3, batch_size=2),
        )
    assert fingerprint(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "lorra"}, "lorra"),
    ({"method": "lora", "targets": ["qery"]}, "no layer is called 'qery'; did you mean query?"),
    ({"method": "lora", "targets": []}, r"targets name at least one layer: this model has embedding \(1\), query \(2\)"),
    (
        {"method": "lora", "r": 0},
        r"r must be a whole number from 1 to 12, the lesser width of stack.blocks.0.attention.value \[12, 24\], got 0|r must be a whole number from 1 to 24",
    ),
    (
        {"method": "lora", "r": 13},
        r"r must be a whole number from 1 to 12, the lesser width of stack.blocks.0.attention.value \[12, 24\], got 13",
    ),
    ({"method": "lora", "rank": 4}, "adapters/lora has no option 'rank'; did you mean ranks"),
    ({"method": "lora", "name": " "}, "an adapter's name is a text"),
    (
        {"method": "ia3", "targets": ["embedding"]},
        "IA3 is for linear layers and convolutions, embedding is an embedding: leave it out",
    ),
    ({"method": "lora", "whole": ["hed"]}, "no module is called 'hed'"),
    ({"method": "lora", "whole": ["query"]}, "query is trained whole, so it needs no other part"),
    ({"method": "prefix", "count": 0}, "count and hidden must be at least 1"),
    ({"method": "prompt", "text": ""}, "the text that the prompt begins as has no token"),
    ({"method": "lm/llama-tiny"}, "lm/llama-tiny is of kind decoder, and models are adapted by adapters: adapters/"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[str(number) for number in range(len(BAD))])
@pytest.mark.covers("W7")
def test_mistakes_are_named_and_change_nothing(arguments: dict[str, Any], message: str) -> None:
    model = tiny_decoder()
    expected = logits(model)
    with pytest.raises((UsageError, UnknownNameError), match=message):
        zoo.adapt(model, **arguments)
    assert torch.equal(logits(model), expected)


def test_models_that_an_adapter_is_not_for() -> None:
    with pytest.raises(
        UsageError,
        match="prefix tuning puts tokens before those that a decoder reads, and VisionTransformer has no decoder",
    ):
        zoo.adapt(tower(), "prefix")
    with pytest.raises(UsageError, match="a built model is adapted"):
        zoo.adapt("lm/llama-tiny", "lora")
    inner = tiny_decoder()
    zoo.adapt(inner, "lora")
    with pytest.raises(UsageError, match=r"a part of this model \(Decoder\) has adapters of its own: adapt that part"):
        zoo.adapt(torch.nn.Sequential(inner), "lora", targets=["query"])
    adapters = zoo.adapt(tiny_decoder(), "prompt")
    with pytest.raises(UsageError, match="puts tokens before others, which no weight holds: it cannot be merged"):
        adapters.merge()
    with pytest.raises(UsageError, match="of which there is no half: it has no scale"):
        adapters.scale("default", 0.5)
    adapters.add("prefix", name="second")
    with pytest.raises(UsageError, match="two adapters put tokens before those of a row: use default or second"):
        adapters.use("default", "second")
    tied = zoo.adapt(zoo.build("lm/llama-tiny", weights=None), "lora", targets=["embedding"])
    with pytest.raises(UsageError, match="the weight of embedding is another layer's, too"):
        tied.merge()


def test_a_copy_of_an_adapted_model_has_adapters_of_its_own() -> None:
    model = tiny_decoder()
    adapters = shaken(zoo.adapt(model, "lora"))
    expected = logits(model)
    twin = copy.deepcopy(model)
    shaken(adapters, seed=5)
    assert torch.equal(logits(twin), expected)
    assert not torch.equal(logits(model), expected)
    assert adapters_of(twin) is not adapters
