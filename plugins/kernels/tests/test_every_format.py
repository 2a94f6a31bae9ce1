"""What every format of this distribution promises beyond the kit: extreme weights, bounds of the rounding, any size that it fits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_kernels import groups, int8, pruning, vector_wise

from zoo.models.kernels import kernel_named
from zoo.nn.kernels.contract import LayerFormat
from zoo.registry.lookup import cards

NAMES = [card.name for card in cards("kernels/*", kind="kernel")]
# Of the greatest weight of a group or row: how far a weight may move. Half a step, and what the step itself is rounded by.
BOUNDS = {
    "bf16": 2**-8, "int8": 0.5 / 127, "int8-dynamic": 0.5 / 127, "int8-weights": 0.5 / 127, "absmax": 0.5 / 127, "llm-int8": 0.5 / 127,
    "zeropoint": 1 / 255, "int4": 1.15 / 15, "int4-64": 1.01 / 15, "int4-128": 1.01 / 15, "nf4": 0.1520 + 0.0075, "published": 0.5 / 127 + 5e-4,
}  # fmt: skip


def form_of(name: str) -> LayerFormat:
    form = kernel_named(name).kernel.linear
    assert form is not None
    return form


def test_every_format_has_a_bound_or_leaves_weights_out() -> None:
    assert {name.partition("/")[2] for name in NAMES} == {*BOUNDS, "pruned-half", "pruned-2-4"}


@pytest.mark.parametrize("name", NAMES)
def test_extreme_weights_are_finite_and_right(name) -> None:
    form = form_of(name)
    for words, weight in (
        ("zeros", torch.zeros(3, 128)),
        ("a row of zeros", torch.randn(3, 128) * torch.tensor([[0.0], [1.0], [1.0]])),
        ("constant", torch.full((3, 128), 0.25)),
        ("tiny", torch.randn(3, 128) * 1e-30),
        ("large", torch.randn(3, 128).clamp(-3, 3) * 1e30),
        ("one alone", torch.eye(3, 128) * 5),
    ):
        tensors = form.quantise(weight)
        found = form.dequantise(tensors)
        assert bool(found.isfinite().all()), words
        layer = form.layer(tensors, None)
        assert bool(layer(torch.randn(2, 128)).isfinite().all()), words
        if words == "zeros":
            assert not found.any()
            assert not layer(torch.randn(2, 128)).any()


@pytest.mark.parametrize("name", [name for name in NAMES if "pruned" not in name])
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 33), columns=st.integers(1, 300), seed=st.integers(0, 99))
def test_no_weight_moves_further_than_half_a_step(name, rows, columns, seed) -> None:
    form = form_of(name)
    if not form.fits(rows, columns):
        columns = -(-columns // 128) * 128
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    tensors = form.quantise(weight)
    apart = float((form.dequantise(tensors) - weight).abs().max())
    spread = float(weight.abs().max()) * (
        2 if name.partition("/")[2] in ("int4", "int4-64", "int4-128", "zeropoint") else 1
    )
    assert apart <= BOUNDS[name.partition("/")[2]] * spread * 1.01 + 1e-12
    layer = form.layer(tensors, None)
    assert layer(torch.randn(2, columns)).shape == (2, rows)
    assert all(torch.equal(tensors[key], tensor) for key, tensor in layer.tensors().items())


@pytest.mark.parametrize(("of", "columns"), [(None, 64), (None, 7), (4, 64), (2, 10)])
def test_the_larger_half_stays_exactly(of, columns) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, columns)
    found = pruning.dequantise(pruning.quantise(weight, of=of))
    stays = found != 0
    assert torch.equal(found[stays], weight[stays])
    runs, kept = weight.view(5, -1, of or columns), stays.view(5, -1, of or columns)
    assert (kept.sum(-1) == ((of or columns) + 1) // 2).all()
    smallest_kept = torch.where(kept, runs.abs(), torch.inf).amin(-1)
    largest_left = torch.where(kept, 0.0, runs.abs()).amax(-1)
    assert (smallest_kept >= largest_left).all()


def test_outliers_are_computed_apart_and_in_each_row_by_itself() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(30, 64), torch.randn(4, 64)
    inputs[1, 5] = 80.0
    tensors = int8.quantise(weight)
    exact = inputs @ int8.dequantise(tensors).T
    plain, apart = (vector_wise.AbsmaxLinear(tensors, outliers=outliers)(inputs) for outliers in (False, True))
    assert float((apart - exact)[1].abs().max()) < 0.1 * float((plain - exact)[1].abs().max())
    assert torch.equal(apart[0], plain[0]), "a row without outliers is as without"


def test_symmetric_groups_keep_zero_and_no_least() -> None:
    weight = torch.randn(4, 64)
    weight[:, ::3] = 0
    tensors = groups.quantise(weight, group=32, symmetric=True)
    assert set(tensors) == {"levels", "steps"}
    assert not groups.dequantise(tensors)[:, ::3].any()
