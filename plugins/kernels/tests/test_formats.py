"""The formats of `kernels/bf16`, `kernels/int8` and `kernels/int4`: what is kept, what it stands for, how it is multiplied."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zoo_kernels import bf16, int4, int8
from zoo_kernels.int4 import Int4Linear, four_bits, unpacked
from zoo_kernels.int8 import Int8Linear

from zoo.weights.formats.gguf_blocks import dequantise

FORMATS = {"bf16": bf16.FORMAT, "int8": int8.FORMAT, "int4": int4.FORMAT}


def q4_1_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A weight as a Q4_1 file holds it: float16 steps and leasts, 16 levels, both ends used as its quantiser does."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 16, (rows, columns // 32, 32), generator=generator).float()
    levels[..., 0], levels[..., 1] = 0, 15
    steps = (torch.rand(rows, columns // 32, 1, generator=generator) * 0.02 + 1e-3).half().float()
    least = (torch.randn(rows, columns // 32, 1, generator=generator) * 0.1).half().float()
    return (levels * steps + least).flatten(1)


@given(rows=st.integers(1, 70), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_four_bits_give_a_q4_1_weight_back_exactly(rows, groups, seed) -> None:
    weight = q4_1_weight(rows, 32 * groups, seed)
    levels, steps, least = four_bits(weight)
    back = levels.view(rows, groups, 32) * steps[..., None] + least[..., None]
    assert torch.equal(back.flatten(1), weight)


def test_constant_groups_have_no_step_and_stay() -> None:
    levels, steps, least = four_bits(torch.full((2, 32), 0.5))
    assert (int(levels.abs().max()), steps.tolist(), least.tolist()) == (0, [[0.0]] * 2, [[0.5]] * 2)


def test_the_loudness_of_a_row_does_not_touch_the_others() -> None:
    layer = Int8Linear(int8.quantise(torch.randn(40, 64)))
    quiet, loud = torch.randn(2, 64), 1e4 * torch.randn(1, 64)
    assert torch.equal(layer(torch.cat((quiet, loud)))[:2], layer(torch.cat((quiet, torch.zeros(1, 64))))[:2])


def test_the_4_bit_layout_is_the_one_that_is_unpacked() -> None:
    layer = Int4Linear(int4.quantise(q4_1_weight(130, 64)))
    assert layer.pack_rows is not None
    levels, _, _ = four_bits(q4_1_weight(130, 64))
    assert torch.equal(unpacked(layer.packed, layer.pack_rows)[:130], levels.to(torch.uint8))


@pytest.mark.parametrize("width", [1, 2, 7])
def test_eight_bits_take_inputs_of_any_width(width) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(5, width), torch.randn(3, width)
    assert float((Int8Linear(int8.quantise(weight))(inputs) - inputs @ weight.T).abs().max()) < 0.05


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(80, 96), (1, 32), (130, 64)])
def test_a_layer_gives_its_tensors_back_and_its_product_is_that_of_the_reference(name, shape) -> None:
    torch.manual_seed(0)
    form, weight = FORMATS[name], torch.randn(shape)
    kept = form.quantise(weight)
    layer = form.layer(kept, None)
    again = layer.tensors()
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[key], again[key]) and kept[key].dtype == again[key].dtype for key in kept)
    inputs = torch.randn(3, shape[1]).bfloat16().float()  # which no format rounds any more
    exact = inputs.double() @ form.dequantise(kept).double().T
    bound = {"bf16": 4e-3, "int8": 5e-5, "int4": 5e-3}[name]  # inputs of 16 bits; what comes out is rounded to bfloat16
    sums = inputs.double().abs() @ form.dequantise(kept).double().abs().T
    assert float(((layer(inputs) - exact).abs() / sums).max()) <= bound


def test_blocks_of_a_file_become_the_layer_that_their_numbers_would() -> None:
    gguf = pytest.importorskip("gguf")
    from gguf.quants import quantize

    weight = torch.randn(70, 96)
    blocks = torch.from_numpy(quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_1))
    direct, by_numbers = int4.from_blocks(blocks), int4.quantise(dequantise(blocks, "Q4_1"))
    assert torch.equal(int4.dequantise(direct), int4.dequantise(by_numbers))
    assert torch.equal(Int4Linear({"Q4_1": blocks})(weight[:2]), Int4Linear(by_numbers)(weight[:2]))
