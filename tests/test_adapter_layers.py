"""Layers of torch as people build them: attention in 16 bits, computed and shared weights, rows that are counted, and what cannot be merged."""

from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from test_adapters import shaken
from tiny_tower import tower
from torch import nn

import zoo
from zoo.adapters.adapt import adapters_of
from zoo.adapters.adapter import Adapter
from zoo.errors import PluginError, UsageError


class Biased(nn.Module):
    """A method that learns a bias (BitFit), and may return other shapes."""

    def __init__(self, outputs: int, shape: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(outputs))
        self.shape = shape

    def after(self, input_BX: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        del input_BX
        return output_BN + self.bias.to(output_BN.dtype)

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        if self.shape is not None:
            return self.shape(weight, bias)
        return weight, self.bias if bias is None else bias + self.bias


def biased(model: nn.Module, place: str, outputs: int, shape: Callable[..., Any] | None = None) -> Any:
    adapters = adapters_of(model)
    adapters._place("own", Adapter({place: Biased(outputs, shape)}))
    adapters.use("own")
    return adapters


LAYERS: dict[str, tuple[Callable[[bool], nn.Module], Any]] = {
    "linear": (lambda bias: nn.Linear(4, 6, bias=bias), torch.ones(2, 4)),
    "attention": (lambda bias: nn.MultiheadAttention(6, 2, bias=bias, batch_first=True), torch.ones(2, 3, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_bias_without_a_place_is_not_dropped(kind: str) -> None:
    make, inputs = LAYERS[kind]
    place = "0" if kind == "linear" else "0.out_proj"

    @torch.no_grad()
    def ask(model: Any) -> torch.Tensor:
        return model(inputs) if kind == "linear" else model[0](inputs, inputs, inputs)[0]

    model = nn.Sequential(make(True))
    adapters = biased(model, place, 6)
    expected = ask(model)
    adapters.merge()
    assert torch.allclose(ask(model), expected, atol=1e-6)
    adapters.unmerge()
    model = nn.Sequential(make(False))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    adapters = biased(model, place, 6)
    with pytest.raises(UsageError, match=rf"'own' gives {place} a bias, and the layer has none to hold it"):
        adapters.merge()
    assert adapters.merged == ()
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_a_bias_of_an_embedding_and_a_convolution_is_not_dropped() -> None:
    for layer, outputs in ((nn.Embedding(5, 3), 3), (nn.Conv2d(2, 3, 1, bias=False), 3)):
        with pytest.raises(UsageError, match="a bias, and the layer has none"):
            biased(nn.Sequential(layer), "0", outputs).merge()
    with torch.no_grad():
        adapters = biased(nn.Sequential(nn.Linear(4, 6, bias=False)), "0", 6)
        adapters["own"].part("0").bias.zero_()
        adapters.merge()  # a bias of zeros is none


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda weight, bias: (weight[:, :1], bias), r"weight of 0 as float\[6, 4\], got float\[6, 1\]"),
        (lambda weight, bias: (weight, bias[:1]), r"bias of 0 as float\[6\], got float\[1\]"),
        (lambda weight, _: (weight, None), r"bias of 0 as float\[6\], got None"),
    ],
)
def test_a_method_that_returns_other_shapes_is_not_spread(shape: Callable[..., Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(PluginError, match=message):
        biased(model, "0", 6, shape).merge()


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), 1e38])
def test_what_is_no_number_is_not_merged(spoiled: float) -> None:
    model = nn.Sequential(nn.Linear(4, 6)).half()
    adapters = shaken(zoo.adapt(model, "lora", targets=["0"], r=2))
    before = model[0].weight.clone()
    with torch.no_grad():
        adapters["default"].part("0").up[0, 0] = spoiled  # type: ignore[union-attr, index]
    with pytest.raises(UsageError, match=r"merging 'default' would put NaN or infinity into 0 \(torch.float16\)"):
        adapters.merge()
    assert adapters.merged == ()
    assert torch.equal(model[0].weight, before)


def test_a_change_that_rounding_leaves_nothing_of_is_not_merged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6)).bfloat16()
    adapters = zoo.adapt(model, "lora", targets=["0"], r=2)
    zoo.adapt(model, "dora", targets=["0"], r=2, name="dora", activate=False)
    for name in ("default", "dora"):
        adapters.use(name)
        adapters.merge(name)  # a fresh one changes nothing
        adapters.unmerge()
    adapters.use("default")
    with torch.no_grad():
        adapters["default"].part("0").up.fill_(1e-6)  # type: ignore[union-attr, operator]
    with pytest.raises(UsageError, match="changes each weight by less than torch.bfloat16 tells apart"):
        adapters.merge()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fresh_lora_on_attention_in_16_bits_gives_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 2, batch_first=True).to(dtype).eval()
    inputs = torch.randn(2, 5, 64).to(dtype)
    with torch.no_grad():
        attention.in_proj_weight.mul_(90)  # the products of queries and keys are above 65,504, the scaled ones are not
        expected, expected_weights = attention(inputs, inputs, inputs)
        assert bool(expected.isfinite().all())
        zoo.adapt(attention, "lora", targets=["in_proj", "out_proj"], r=2)
        found, weights = attention(inputs, inputs, inputs)
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert torch.allclose(weights, expected_weights, atol=1e-2)


def encoder(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    ("make", "targets", "shape"),
    [
        (tower, ["attn.in_proj", "attn.out_proj"], (3, 3, 16, 16)),
        (encoder, ["self_attn.in_proj", "linear1"], (3, 5, 16)),
        (encoder, ["linear2"], (3, 5, 16)),
    ],
    ids=["tower", "encoder", "encoder's feed-forward"],
)
def test_without_an_adapter_it_is_the_bare_model_to_the_bit(
    gradients: bool, make: Callable[[], Any], targets: list[str], shape: tuple[int, ...]
) -> None:
    model = make()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    with torch.set_grad_enabled(gradients):
        expected = model(inputs).detach()
        adapters = shaken(zoo.adapt(model, "lora", r=2, targets=targets))
        changed = model(inputs).detach()
        assert (changed - expected).abs().max() > 0.01
        with adapters.using(None):
            assert torch.equal(model(inputs), expected)
        with adapters.using([None] * 3):
            assert torch.equal(model(inputs), expected)
        with adapters.using([None, "default", None]):
            mixed = model(inputs)
        assert torch.allclose(mixed, torch.stack([expected[0], changed[1], expected[2]]), atol=1e-4)
        adapters.use()
        assert torch.equal(model(inputs), expected)
        seen = []
        handle = next(part for part in model.modules() if isinstance(part, nn.MultiheadAttention)).register_forward_hook(
            lambda *_: seen.append(1)
        )
        model(inputs)
        handle.remove()
        assert seen, "hooks of others are asked"


@pytest.mark.parametrize("names", [["default", "default"], [None, None], ["default", None], ["default"], []])
def test_a_list_of_another_length_is_refused(names: list[str | None]) -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    adapters = shaken(zoo.adapt(model, "lora", targets=["0"], r=2))
    message = (
        "got an empty one" if not names else rf"for {len(names)} rows, the batch has 3|called with 3 rows for a batch of"
    )
    with pytest.raises(UsageError, match=message), adapters.using(names):
        model(torch.ones(3, 4))
    with adapters.using(["default", None, "default"]):
        model(torch.ones(3, 4))
    adapters.scale("default", 0.0)
    with pytest.raises(UsageError), adapters.using(names):
        model(torch.ones(3, 4))


def test_rows_are_counted_where_the_batch_is_second() -> None:
    attention = nn.MultiheadAttention(8, 2).eval()
    adapters = zoo.adapt(attention, "lora", targets=["in_proj"], r=2)
    inputs = torch.randn(5, 3, 8)
    with adapters.using(["default"] * 3):
        attention(inputs, inputs, inputs)
    with pytest.raises(UsageError, match="chosen for 2 rows"), adapters.using(["default"] * 2):
        attention(inputs, inputs, inputs)


@pytest.mark.parametrize("norm", ["parametrization", "hook", "spectral"])
def test_a_weight_that_is_computed_takes_adapters_and_is_not_merged(norm: str) -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(8, 6)
    if norm == "parametrization":
        nn.utils.parametrizations.weight_norm(layer)
    elif norm == "spectral":
        nn.utils.parametrizations.spectral_norm(layer)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(layer)
    model, inputs = nn.Sequential(layer).eval(), torch.randn(3, 8)
    expected = model(inputs).detach()
    for method in ("lora", "dora", "ia3"):
        options = {"targets": ["0"], **({"feed_forward": []} if method == "ia3" else {"r": 2})}
        adapters = zoo.adapt(model, method, name=method, **options)
        assert torch.allclose(model(inputs), expected, atol=1e-6)
        with pytest.raises(UsageError, match=f"the weight of 0 is computed from others .* so '{method}' cannot be merged"):
            adapters.merge()
    if norm == "parametrization":
        adapters.close()
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
        shaken(zoo.adapt(model, "lora", targets=["0"], r=2)).merge()


def test_one_layer_under_two_names_is_merged() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.again = self.first

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.again(self.first(inputs))

    model, inputs = Twice(), torch.randn(2, 4)
    adapters = shaken(zoo.adapt(model, "lora", targets=["first"], r=2))
    expected = model(inputs).detach()
    adapters.merge()
    assert torch.allclose(model(inputs), expected, atol=1e-5)


class Fused(nn.Module):
    """One layer for queries, keys and values, or torch's attention."""

    def __init__(self, *, torchs: bool) -> None:
        super().__init__()
        self.inner: nn.Module = nn.MultiheadAttention(6, 2, batch_first=True) if torchs else nn.Linear(6, 18)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if isinstance(self.inner, nn.MultiheadAttention):
            return self.inner(inputs, inputs, inputs)[0]
        return self.inner(inputs)


@pytest.mark.parametrize(
    ("torchs", "slice_", "whole"),
    [(True, "inner.query", "inner.in_proj"), (False, "inner[0/3]", "inner"), (False, "inner[1/3]", "inner[0/2]")],
)
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_places_that_overlap_are_not_merged_together(torchs: bool, slice_: str, whole: str, order: tuple[str, str]) -> None:
    model = Fused(torchs=torchs).eval()
    shaken(zoo.adapt(model, "lora", targets=[slice_], r=2, name="a"), "a")
    adapters = shaken(zoo.adapt(model, "lora", targets=[whole], r=2, name="b"), "b")
    adapters.use(*order)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(UsageError, match="which have outputs in common") as refused:
        adapters.merge(*order)
    assert all(text in str(refused.value) for text in ("'a'", "'b'", f" {slice_}", f" {whole}"))
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    with torch.no_grad():
        expected = model(torch.ones(2, 3, 6))
        adapters.merge("a")  # one alone is only added to
        assert torch.allclose(model(torch.ones(2, 3, 6)), expected, atol=1e-5)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"targets": ["0"], "r": 2}),
    "lora again": ("lora", {"targets": ["0"], "r": 3}),
    "dora": ("dora", {"targets": ["0"], "r": 2}),
    "dora slice": ("dora", {"targets": ["0[1/2]"], "r": 2}),
    "ia3": ("ia3", {"targets": ["0"], "feed_forward": []}),
    "ia3 input": ("ia3", {"targets": [], "feed_forward": ["0"]}),
    "whole": ("lora", {"targets": ["2"], "r": 2, "whole": ["0"]}),
    "elsewhere": ("dora", {"targets": ["2"], "r": 2}),
}


@torch.no_grad()
def test_merging_some_of_the_active_ones_changes_no_answer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs = torch.randn(5, 4)
    adapters = adapters_of(model)
    for seed, (name, (method, options)) in enumerate(KINDS.items()):
        zoo.adapt(model, method, name=name, activate=False, **options)
        shaken(adapters, name, seed)
    merged = set()
    for used in (order for count in (2, 3) for order in permutations(KINDS, count)):
        for some in (some for count in range(1, len(used) + 1) for some in combinations(used[::-1], count)):
            adapters.use(*used)
            expected = model(inputs)
            try:
                adapters.merge(*some)
            except UsageError as error:
                text = str(error)
                assert "Merge all active ones together, or use(...) without " in text or "outputs in common" in text
                assert torch.equal(model(inputs), expected)
                continue
            merged.add((used, some))
            assert (model(inputs) - expected).abs().max() < 1e-5 * expected.abs().max(), (used, some)
            adapters.unmerge()
    assert (("lora", "lora again"), ("lora again",)) in merged
    assert (("lora", "elsewhere"), ("lora",)) in merged
    assert (("ia3", "dora", "lora"), ("lora", "dora", "ia3")) in merged
    assert (("lora", "dora"), ("lora",)) not in merged
    assert (("ia3", "lora"), ("lora",)) not in merged
    assert (("dora slice", "lora"), ("lora",)) not in merged


@torch.no_grad()
def test_what_reads_a_weight_is_not_used_over_one_that_holds_another_adapter() -> None:
    """DoRA divides by the length of the rows of the weight, which would be that of the merged one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs = torch.randn(5, 4)
    adapters = adapters_of(model)
    for seed, (name, (method, options)) in enumerate(KINDS.items()):
        zoo.adapt(model, method, name=name, activate=False, **options)
        shaken(adapters, name, seed)
    adapters.use("lora", "lora again", "elsewhere")
    expected = model(inputs)
    adapters.use()
    adapters.merge("lora")
    words = r"'{}' \(.*\) works by the weight or the output of 0.*, into which an adapter \(.*\) is merged"
    for name in ("dora", "dora slice", "ia3"):
        with pytest.raises(UsageError, match=words.format(name)):
            adapters.use(name)
        with pytest.raises(UsageError, match=words.format(name)), adapters.using([name, *4 * [None]]):
            pass
    adapters.use("lora again", "elsewhere")
    assert (model(inputs) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_rows_follow_a_weight_that_is_written_to_inside_attention() -> None:
    torch.manual_seed(0)
    model = Fused(torchs=True).eval()
    adapters = shaken(zoo.adapt(model, "dora", targets=["inner.out_proj", "inner.in_proj"], r=2))
    inputs = torch.randn(2, 3, 6)
    for name in ("out_proj.weight", "in_proj_weight", "out_proj.bias"):
        with adapters.using(["default", None]):
            before = model(inputs)
            model.inner.get_parameter(name).mul_(torch.rand(1) + 2).add_(0.1)
            found = model(inputs)
        expected = model(inputs)  # under the active one, which nothing is laid out for
        assert torch.allclose(found[0], expected[0], atol=1e-5), name
        assert not torch.allclose(found[0], before[0], atol=1e-3), name
