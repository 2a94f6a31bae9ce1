"""Orders, moments and models at which a simpler design gives other numbers, or loses what it was given."""

import copy
import functools
import gc
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapter_mixing import rows
from test_adapters import TOKENS, logits, shaken
from tiny_decoder import tiny_decoder
from tiny_fused import prompt as prompt_of
from tiny_fused import tiny_fused
from tiny_tower import tower

import zoo
from zoo.adapters.adapt import Adapters, adapters_of
from zoo.adapters.adapter import Adapter
from zoo.adapters.target_modules import Place
from zoo.decoding.generation import generate, stream
from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.scoring import perplexity
from zoo.errors import UsageError
from zoo.models.kernels import apply_kernel
from zoo.tasks.adapter_training import TrainingOptions, split, train_adapter
from zoo.training.fit import FitOptions, fit


def two(one: str, other: str, **options: Any) -> Adapters:
    model = tiny_decoder()
    shaken(zoo.adapt(model, one, name="first", **options.get("first", {})), "first", 1)
    return shaken(zoo.adapt(model, other, name="second", **options.get("second", {})), "second", 2)


@pytest.mark.parametrize("methods", [("lora", "dora"), ("dora", "lora"), ("ia3", "lora"), ("lora", "ia3")])
@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_several_are_merged_as_they_run_and_come_back_in_their_order(
    methods: tuple[str, str], order: tuple[str, str]
) -> None:
    adapters = two(
        *methods,
        **{
            name: {"targets": ["down", "value"]}
            for name, method in zip(("first", "second"), methods, strict=True)
            if method != "ia3"
        },
    )
    adapters.use(*order)
    assert adapters.active == list(order)
    expected = logits(adapters.model)
    adapters.merge()
    assert (logits(adapters.model) - expected).abs().max() < 1e-5 * expected.abs().max()
    adapters.unmerge()
    assert adapters.active == list(order)
    assert torch.equal(logits(adapters.model), expected)
    adapters.use("second")
    adapters.merge("second")
    adapters.unmerge()
    assert adapters.active == ["second"], "as it was before"


def test_a_reload_keeps_what_is_active_and_its_order(tmp_path: Path) -> None:
    adapters = two("lora", "lora")
    adapters.use("first", "second")
    adapters.scale("first", 0.5)
    expected = logits(adapters.model)
    adapters.save("first", tmp_path / "first.safetensors")
    adapters.load(tmp_path / "first.safetensors", name="first", replace=True, activate=False)
    assert adapters.active == ["first", "second"]
    assert adapters["first"].scale == 0.5
    assert torch.equal(logits(adapters.model), expected)


def test_what_is_chosen_for_a_block_follows_training() -> None:
    model = tiny_decoder()
    adapters = zoo.adapt(model, "lora")
    with adapters.using(["default"] * 2):
        fitted = fit(
            adapters.parameters(), lambda batch: model(TOKENS)[:, -1].logsumexp(-1).mean(), [0],
            FitOptions(steps=6, learning_rate=0.05, evaluate_every=1), held_out=[0],
        )  # fmt: skip
    assert fitted.best < fitted.held_out[0][1]
    assert len({loss for _, loss in fitted.held_out}) == len(fitted.held_out)


def test_a_base_that_changes_is_seen() -> None:
    model = tiny_decoder()
    adapters = shaken(zoo.adapt(model, "dora"))
    with adapters.using(["default", None]):
        logits(model)
        model.load_state_dict(tiny_decoder(seed=4).state_dict())
        found = logits(model)
    assert torch.allclose(found[0], logits(model)[0], atol=1e-5)


def test_merging_or_removing_what_is_in_use_is_refused() -> None:
    model = tiny_decoder(end=False)
    adapters = shaken(zoo.adapt(model, "lora", name="a", activate=False), "a")
    with adapters.using("a"):
        logits(model)
        adapters.merge("a")
        with pytest.raises(UsageError, match="was merged while it was in use, and would count twice: choose again"):
            logits(model)
    adapters.unmerge()
    adapters.use()
    pieces = stream(model, [[1, 2, 3]], max_tokens=5, adapters=["a"])
    next(pieces)
    adapters.remove("a")
    with pytest.raises(UsageError, match="was removed while it was in use: choose again"):
        list(pieces)


def test_latents_are_counted_under_what_is_chosen() -> None:
    model = tiny_fused({"image": None}, decoder=tiny_decoder(end=False))
    adapters = zoo.adapt(model, "lora", name="a", targets=["senses.image.encoder.project"], activate=False, r=2)
    shaken(adapters, "a")
    prompt, cache = prompt_of([5, ("image", 1, 3), 9], spliced=["image"]), PrefixCache()
    (expected,) = generate(model, [prompt], max_tokens=6, adapters=[None])
    with adapters.using("a"):
        model.latent_count(prompt.media[0].item, cache.media)
    assert generate(model, [prompt], max_tokens=6, adapters=[None], prefixes=cache)[0].ids == expected.ids
    with adapters.using(["a", None]):
        assert model.latent_count(prompt.media[0].item, cache.media) == 3


def test_an_encoder_that_was_adapted_before_it_was_composed() -> None:
    model = tiny_fused({"image": 0.5}, decoder=tiny_decoder(end=False))
    encoder = model.senses["image"].encoder
    adapters = shaken(zoo.adapt(encoder, "lora", name="a", targets=["project"], r=2, activate=False), "a")
    prompt, cache = prompt_of([*rows([20])[0], ("image", 1, 3), 9]), PrefixCache()
    for _ in range(2):
        for name in ("a", None):
            with adapters.using(name):
                expected = generate(model, [prompt], max_tokens=6)[0].ids
                assert generate(model, [prompt], max_tokens=6, prefixes=cache)[0].ids == expected


def test_an_adapter_on_a_part_of_a_decoder_reaches_its_straight_step() -> None:
    model = apply_kernel(tiny_decoder(end=False), "float32")
    shaken(zoo.adapt(model.stack, "lora"))
    cache = model.new_cache(1, 8)
    with torch.inference_mode():
        model(torch.tensor([[1, 2]]), cache=cache)
        stepped = model.one_step(torch.tensor([3]), cache)
        whole = model(torch.tensor([[1, 2, 3]]))[:, -1]
    assert torch.allclose(stepped, whole, atol=1e-5)
    plain = tiny_decoder()
    zoo.adapt(plain.stack.blocks[0], "lora")
    with pytest.raises(UsageError, match="the model has adapters"):
        apply_kernel(plain, "float32")


def test_virtual_tokens_are_read_again_after_a_refusal_and_a_cut() -> None:
    model = tiny_decoder()
    adapters = shaken(zoo.adapt(model, "prefix", count=3))
    expected = logits(model)
    cache = model.new_cache(2, 12)
    with pytest.raises(UsageError, match="a cache is filled in place"):
        model(TOKENS, cache=cache)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS, cache=cache), expected, atol=1e-5)
        with pytest.raises(UsageError, match="a cache with 3 slots of virtual tokens is cut to none or behind them, got 2"):
            cache.truncate(2)
        cache.truncate(0)
        assert torch.allclose(model(TOKENS, cache=cache), expected, atol=1e-5)
        cache.truncate(3)
        assert torch.allclose(model(TOKENS, cache=cache), expected, atol=1e-5)
    assert perplexity(model, list(range(90))).tokens == 89
    assert adapters.active == ["default"]


def test_weights_that_others_use_are_not_merged() -> None:
    model = tiny_decoder()
    model.head = torch.nn.Linear(24, 258, bias=False)
    model.head.weight = model.embedding.weight
    adapters = shaken(zoo.adapt(model, "lora", targets=["embedding"]))
    with pytest.raises(UsageError, match="the weight of embedding is another layer's, too"):
        adapters.merge()


class Failing(torch.nn.Module):
    def __init__(self, place: Place, calls: list[str]) -> None:
        super().__init__()
        self.calls, self.name = calls, place.name

    def after(self, input_BX: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        return output_BN

    def merged(self, weight_NK: torch.Tensor, bias_N: Any) -> Any:
        self.calls.append(self.name)
        if len(self.calls) > 1:
            raise RuntimeError("no more")
        return weight_NK + 1, bias_N


def test_a_merge_that_fails_half_way_changes_nothing() -> None:
    model = tiny_decoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = adapters_of(model)
    calls: list[str] = []
    places = list(adapters.adapted.places.values())[1:3]
    adapters._place("x", Adapter({place.name: Failing(place, calls) for place in places}))
    with pytest.raises(RuntimeError, match="no more"):
        adapters.merge("x")
    assert adapters.merged == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_places_that_cannot_be_are_not_offered() -> None:
    experts = adapters_of(tiny_decoder(experts=2)).adapted.places
    assert not any(name.endswith("router") for name in experts)
    assert any(".experts." in name for name in experts)
    other = torch.nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
    assert adapters_of(other).adapted.places == {}
    with pytest.raises(UsageError, match="out_proj reads, others of its layer read, too"):
        zoo.adapt(tower(), "ia3", targets=["c_fc"], feed_forward=["out_proj"])
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, batch_first=True), 1)
    with pytest.raises(UsageError, match="build it with enable_nested_tensor=False"):
        zoo.adapt(encoder, "lora", targets=["linear1"], r=2)


def test_a_name_means_its_layer_alone_and_slices_theirs() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = torch.nn.ModuleDict({"qkv": torch.nn.Linear(6, 6)})
            self.qkv = torch.nn.Linear(6, 6)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.block["qkv"](inputs), self.qkv(inputs)], -1)

    model, inputs = Two(), torch.randn(2, 6)
    before = model(inputs).detach()
    for targets, changed in (("qkv", (False, True)), ("block.qkv", (True, False)), ("*qkv[0/3]", (True, True))):
        adapters = shaken(zoo.adapt(model, "lora", name="x", targets=[targets], r=1), "x")
        apart = [
            bool((one != other).any()) for one, other in zip(model(inputs).chunk(2, -1), before.chunk(2, -1), strict=True)
        ]
        assert tuple(apart) == changed
        adapters.use()
        adapters.remove("x")


def test_scales_are_followed_and_only_what_is_used_is_trained() -> None:
    model = tiny_decoder()
    base = logits(model)
    adapters = shaken(zoo.adapt(model, "lora", name="a", activate=False), "a")
    assert adapters.parameters() == []
    adapters.use("a")
    assert not torch.equal(logits(model), base)
    adapters["a"].scale = 0.0
    assert torch.equal(logits(model), base)
    adapters.use()
    adapters.remove("a")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_thread_changes_nothing_half_way(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-5)  # the other goes on at every operation of torch, not once in 5 ms
    model = tiny_decoder()
    adapters = two_on(model)
    expected = []
    for name in ("first", "second"):
        adapters.use(name)
        expected.append(logits(model))
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            adapters.use("first")
            adapters.use("second")

    thread = threading.Thread(target=flip)
    thread.start()
    found = [logits(model) for _ in range(60)]
    stop.set()
    thread.join()
    assert all(any(torch.allclose(one, other, atol=1e-6) for other in expected) for one in found)


def two_on(model: Any) -> Adapters:
    shaken(zoo.adapt(model, "lora", name="first"), "first", 1)
    return shaken(zoo.adapt(model, "lora", name="second"), "second", 2)


def test_an_output_that_somebody_keeps_is_not_written_into() -> None:
    model, kept = tiny_decoder(), []
    layer = model.stack.blocks[0].attention.query
    layer.register_forward_hook(lambda module, args, output: kept.append(output))
    plain = model(TOKENS)
    adapters = shaken(zoo.adapt(model, "lora", name="a", activate=False), "a")
    with torch.inference_mode(), adapters.using(["a", None]):
        model(TOKENS)
    assert torch.equal(kept[0], kept[1])
    assert plain.shape == (2, 4, 258)


def test_a_removed_adapter_is_not_kept_alive() -> None:
    model = tiny_decoder(end=False)
    adapters = adapters_of(model)
    cache = PrefixCache()
    alive = []
    for number in range(3):
        adapters.add("lora", name="x", activate=False)
        generate(model, [[*range(20 + number)], [*range(20 + number)]], max_tokens=2, adapters=["x", None], prefixes=cache)
        alive.append(weakref.ref(adapters["x"]))
        adapters.remove("x")
    gc.collect()
    assert not any(one() for one in alive)


def test_layers_that_are_called_by_name() -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.fc(input=inputs)

    model, inputs = Named(), torch.randn(2, 4)
    before = model(inputs)
    for method, options in (("lora", {"r": 2, "targets": ["fc"]}), ("ia3", {"targets": [], "feed_forward": ["fc"]})):
        adapters = shaken(zoo.adapt(model, method, name=method, **options), method)
        assert not torch.equal(model(inputs), before)
        adapters.use()


def test_training_that_cannot_begin_leaves_the_model_as_it_was() -> None:
    built = zoo.open_model("lm/llama-tiny", weights=None)
    adapters = shaken(zoo.adapt(built, "ia3", name="kept"), "kept")
    pairs = [("a", "b")] * 4
    for wrong in ({"training": TrainingOptions(steps=0)}, {"method": "prefix", "count": 254}):
        with pytest.raises(UsageError):
            train_adapter(pairs, model=built, **wrong)
        assert adapters.names == ["kept"]
        assert adapters.active == ["kept"]


def test_errors_put_parameters_back_and_end_training_mode() -> None:
    point, modes = torch.nn.Parameter(torch.ones(2)), []

    def fail(batch: Any) -> torch.Tensor:
        if float(point.detach().sum()) != 2.0:
            raise RuntimeError("out of memory")
        return point.square().sum()

    with pytest.raises(RuntimeError, match="out of memory"):
        fit([point], fail, [0], FitOptions(steps=3), train=modes.append)
    assert modes[-1] is False
    assert torch.equal(point.detach(), torch.ones(2))
    with pytest.raises(UsageError, match="the gradient became"):
        fit([point], lambda batch: (point - point.detach()).sqrt().sum(), [0], FitOptions(steps=1))
    assert torch.equal(point.detach(), torch.ones(2))


def test_a_pass_holds_each_example_once() -> None:
    point, seen = torch.nn.Parameter(torch.zeros(1)), []

    def loss(batch: Any) -> torch.Tensor:
        seen.append(list(batch))
        return point.sum()

    fit([point], loss, list(range(10)), FitOptions(steps=6, batch_size=4))
    assert [len(set(batch)) for batch in seen] == [4] * 6, "none is smaller, none holds an example twice"
    assert all(not set(first) & set(second) for first, second in ((seen[0], seen[1]), (seen[2], seen[3])))
    assert len({example for batch in seen for example in batch}) == 10


def test_pictures_are_held_out_by_class() -> None:
    labels = [0] * 7 + [1] * 7 + [2] * 3
    train, test = split(list(enumerate(labels)), 0.1, 0, labels)
    assert sorted(label for _, label in test) == [0, 0, 1, 1]
    assert len(train) == 13
    assert split([1, 2], 0.0, 0) == (train_of([1, 2]), [])


def train_of(examples: list[int]) -> list[int]:
    return [examples[one] for one in torch.randperm(2, generator=torch.Generator().manual_seed(0)).tolist()]


def test_a_transcriber_reads_no_virtual_tokens() -> None:
    model: Any = zoo.build("whisper/random", weights=None)
    from zoo_whisper.hearing import hear

    features = model.encoder.features(torch.randn(1, 80, 3000))
    hear(model.decoder, features)
    zoo.adapt(model, "prefix", count=3)
    with pytest.raises(UsageError, match="this model reads no tokens before its own"):
        hear(model.decoder, features)


def test_identities_tell_rows_apart() -> None:
    built = zoo.open_model("lm/llama-tiny", weights=None)
    adapters = shaken(zoo.adapt(built, "ia3", name="a", activate=False), "a")
    found = {built.state_identity}
    for names in ("a", ["a", None], [None, "a"]):
        with adapters.using(names):
            found.add(built.state_identity)
    assert len(found) == 4
    assert copy.deepcopy(adapters).names == ["a"]
