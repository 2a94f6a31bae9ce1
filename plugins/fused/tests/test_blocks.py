"""Blocks in their layout, and products with them, against float64 on the same rounded inputs."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_fused import blocks as plain
from zoo_fused import ops
from zoo_fused.linear import BlockEmbedding, BlockLinear, dequantise, quantise
from zoo_fused.native import supported_isas

from zoo.api import UsageError, WeightsError

TYPES = tuple(plain.TYPES)
MADE = ("Q4_0", "Q4_1", "Q8_0")
EXAMPLES = settings(max_examples=12, deadline=None)


def random_blocks(name: str, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Blocks with every byte drawn, scales apart, which are of the size that weights have."""
    kind = plain.TYPES[name]
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns // kind.weights, kind.bytes)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for offset in kind.halves:
        halves = (torch.randn(*shape[:2], 1, generator=generator) * 0.01).half()
        blocks[:, :, offset : offset + 2] = halves.view(torch.uint8)
    return blocks.flatten(1)


@pytest.mark.parametrize("name", TYPES)
@EXAMPLES
@given(rows=st.integers(1, 50), count=st.integers(1, 5), seed=st.integers(0, 99))
def test_repacked_blocks_come_back_bit_for_bit(name: str, rows: int, count: int, seed: int) -> None:
    columns = count * plain.TYPES[name].weights
    blocks = random_blocks(name, rows, columns, seed)
    tiles = ops.repack(blocks, name)
    assert torch.equal(tiles, plain.repack(blocks, name))  # the layout is one, native or not
    assert torch.equal(ops.unpack(tiles, name, rows, columns), blocks)
    assert torch.equal(plain.unpack(tiles, name, rows, columns), blocks)


@pytest.mark.parametrize("name", MADE)
def test_weights_are_put_into_blocks_as_the_library_does_it(name: str) -> None:
    weight = torch.randn(21, 160, generator=torch.Generator().manual_seed(3))
    weight[2] = 0
    weight[3] = 0.5
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[name])
    assert np.array_equal(quantise(weight, name)[name].numpy(), theirs)


def product_error(isa: str, name: str, inputs: int, rows: int, count: int, seed: int) -> float:
    """Greatest difference from float64 on the same rounded inputs, as a part of the greatest output."""
    columns = count * plain.TYPES[name].weights
    blocks = random_blocks(name, rows, columns, seed)
    input_MK = torch.randn(inputs, columns, generator=torch.Generator().manual_seed(seed + 1))
    quants, steps = plain.round_rows(input_MK)
    exact = (quants.double() * steps.double()).flatten(1) @ plain.dequantise(blocks, name).double().T
    found = ops.linear(input_MK, ops.repack(blocks, name), None, name, rows, 1, isa)
    assert torch.equal(found, ops.linear(input_MK, ops.repack(blocks, name), None, name, rows, 2, isa))
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("isa", supported_isas())
def test_a_product_is_exact_but_for_float32(isa: str, name: str) -> None:
    errors = [product_error(isa, name, inputs, 16 + inputs % 19, 1 + inputs % 3, inputs) for inputs in range(1, 34)]
    assert max(errors) <= 1e-6, errors


@pytest.mark.parametrize("isa", supported_isas())
@EXAMPLES
@given(
    name=st.sampled_from(TYPES),
    inputs=st.integers(1, 40),
    rows=st.integers(1, 70),
    count=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_products_of_any_shape(isa: str, name: str, inputs: int, rows: int, count: int, seed: int) -> None:
    assert product_error(isa, name, inputs, rows, count, seed) <= 2e-6  # one output alone may be small


@pytest.mark.parametrize("name", TYPES)
def test_tiles_of_the_processor_give_the_bits_of_vectors(name: str) -> None:
    if "amx" not in supported_isas():
        pytest.skip("this processor has no AMX")
    for inputs, rows, count in (
        (16, 16, 1),
        (85, 40, 3),
        (150, 33, 5),
    ):  # whole panels, rows that are left over, several spans
        torch.manual_seed(inputs)
        input_MK = torch.randn(inputs, count * plain.TYPES[name].weights)
        tiles = ops.repack(random_blocks(name, rows, input_MK.shape[1]), name)
        found = [ops.linear(input_MK, tiles, None, name, rows, 1, isa) for isa in ("avx512vnni", "amx")]
        assert torch.equal(*found)


@pytest.mark.parametrize("isa", supported_isas())
def test_levels_at_their_ends_do_not_overflow(isa: str) -> None:
    for name, level in (("Q8_0", 128), ("Q8_0", 127), ("Q4_1", 255), ("Q4_0", 0)):
        blocks = torch.full((16, plain.TYPES[name].bytes), level, dtype=torch.uint8)
        for offset in plain.TYPES[name].halves:
            blocks[:, offset : offset + 2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
        for input_1K in (torch.full((1, 32), 127.0), torch.full((1, 32), -127.0)):
            found = ops.linear(input_1K, ops.repack(blocks, name), None, name, 16, 1, isa)
            assert torch.equal(found, input_1K @ plain.dequantise(blocks, name).T)


def test_a_row_with_a_nan_gives_nan_and_the_others_do_not_change() -> None:
    layer = BlockLinear(quantise(torch.randn(24, 64), "Q4_1"))
    input_MK = torch.randn(5, 64)
    good = layer(input_MK)
    for poison in (float("nan"), float("inf")):
        bad = input_MK.clone()
        bad[2, 40] = poison
        found = layer(bad)
        assert found[2].isnan().all()
        assert torch.equal(found[[0, 1, 3, 4]], good[[0, 1, 3, 4]])


def test_layers_keep_what_they_were_made_from() -> None:
    weight = torch.randn(40, 96)
    kept = quantise(weight, "Q8_0")
    layer, table = BlockLinear(kept, torch.arange(40.0)), BlockEmbedding(kept)
    assert torch.equal(layer.tensors()["Q8_0"], kept["Q8_0"])
    assert torch.equal(table.tensors()["Q8_0"], kept["Q8_0"])
    assert (layer.number_format, layer.in_features, layer.out_features) == ("q8_0", 96, 40)
    assert not list(layer.parameters())
    tokens = torch.tensor([[0, 39, 7]])
    assert torch.equal(table(tokens), dequantise(kept)[tokens])
    expected = torch.nn.functional.linear(torch.ones(2, 3, 96), dequantise(kept), torch.arange(40.0))
    assert torch.allclose(layer(torch.ones(2, 3, 96)), expected, rtol=1e-5, atol=1e-4)
    assert layer(torch.ones(0, 96)).shape == (0, 40)


def test_a_gradient_reaches_the_inputs() -> None:
    layer = BlockLinear(quantise(torch.randn(24, 64), "Q4_1"))
    input_MK = torch.randn(3, 64, requires_grad=True)
    layer(input_MK).square().sum().backward()
    assert input_MK.grad is not None
    assert torch.allclose(input_MK.grad, 2 * layer(input_MK).detach() @ dequantise(layer.tensors()), rtol=1e-4, atol=1e-4)


def test_without_the_shared_object_pytorch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TYPES:
        kept = {name: random_blocks(name, 19, 512)}
        native = BlockLinear(kept, torch.randn(19))
        input_MK = torch.randn(4, 512)
        by_native = native(input_MK)
        monkeypatch.setenv("ZOO_FUSED_ISA", "pytorch")
        layer, table = BlockLinear(kept, native.bias), BlockEmbedding(kept)
        assert torch.equal(layer.tiles, native.tiles)
        assert torch.equal(layer.tensors()[name], kept[name])
        assert torch.equal(layer(input_MK), torch.nn.functional.linear(input_MK, dequantise(kept), native.bias))
        assert torch.equal(table(torch.tensor([[3, 18]])), dequantise(kept)[[3, 18]][None])
        assert (
            float((by_native - layer(input_MK)).abs().max() / by_native.abs().max()) < 0.05
        )  # their inputs are not rounded
        monkeypatch.delenv("ZOO_FUSED_ISA")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("isa", ["", "pytorch"])
def test_a_damaged_block_is_named_by_its_row(value: float, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_FUSED_ISA", isa)
    for name, kind in plain.TYPES.items():
        for offset in kind.halves:
            blocks = random_blocks(name, 20, 512)
            start = offset + kind.bytes
            blocks[17, start : start + 2] = torch.tensor([value], dtype=torch.float16).view(torch.uint8)
            with pytest.raises(WeightsError, match="block 1 of row 17 has a scale that is no finite number"):
                ops.repack(blocks, name)


BLOCKS = random_blocks("Q4_1", 16, 64)
TILES = plain.repack(BLOCKS, "Q4_1")
WRONG = {
    "type": (lambda: ops.repack(BLOCKS, "Q5_1"), "blocks must be of type Q4_0, .*, got 'Q5_1'"),
    "row bytes": (lambda: ops.repack(BLOCKS[:, 1:], "Q4_1"), "a multiple of 20"),
    "rank": (lambda: ops.repack(BLOCKS[0], "Q4_1"), "uint8.rows, a multiple of 20.*uint8.40."),
    "dtype": (lambda: ops.repack(BLOCKS.int(), "Q4_1"), "got torch.int32"),
    "no rows": (lambda: ops.repack(BLOCKS[:0], "Q4_1"), "got torch.uint8.0, 40."),
    "tiles short": (lambda: ops.unpack(TILES[1:], "Q4_1", 16, 64), r"must be uint8\[640\], got torch.uint8\[639\]"),
    "rows": (lambda: ops.unpack(TILES, "Q4_1", 17, 64), r"must be uint8\[1280\]"),
    "no columns": (lambda: ops.unpack(TILES, "Q4_1", 16, 0), "a multiple of 32 weights, got 16 rows of 0"),
    "input width": (lambda: ops.linear(torch.ones(2, 96), TILES, None, "Q4_1", 16), r"must be uint8\[960\]"),
    "odd width": (lambda: ops.linear(torch.ones(2, 63), TILES, None, "Q4_1", 16), "multiple of 32 weights, got 16 rows of 63"),
    "input dtype": (lambda: ops.linear(torch.ones(2, 64).double(), TILES, None, "Q4_1", 16), "float32.*got torch.float64"),
    "scalar": (lambda: ops.linear(torch.tensor(1.0), TILES, None, "Q4_1", 16), "a fused layer takes float32"),
    "bias": (lambda: ops.linear(torch.ones(2, 64), TILES, torch.ones(15), "Q4_1", 16), r"float32\[16\], got torch.float32\[15\]"),
    "strided tiles": (lambda: ops.linear(torch.ones(2, 64), TILES.repeat_interleave(2)[::2], None, "Q4_1", 16), "must be uint8"),
    "threads": (lambda: ops.linear(torch.ones(2, 64), TILES, None, "Q4_1", 16, -1), "threads at least 1"),
    "isa": (lambda: ops.linear(torch.ones(2, 64), TILES, None, "Q4_1", 16, 1, "sse"), "instruction set 'sse' is unknown; .* has portable"),
    "index": (lambda: ops.look_up(torch.tensor([16]), TILES, "Q4_1", 16, 64), "rows must be from 0 to 15, got 16"),
    "negative index": (lambda: ops.look_up(torch.tensor([-1]), TILES, "Q4_1", 16, 64), "got -1"),
    "index dtype": (lambda: ops.look_up(torch.tensor([1.0]), TILES, "Q4_1", 16, 64), "int32 or int64, got torch.float32"),
    "two tensors": (lambda: BlockLinear({"Q4_1": BLOCKS, "Q4_0": BLOCKS}), "has one tensor, named by its type"),
    "layer bias": (lambda: BlockLinear({"Q4_1": BLOCKS}, torch.ones(3)), r"the bias must be float\[16\]"),
    "quantise type": (lambda: quantise(torch.ones(2, 32), "Q4_K"), "of type Q4_0, Q4_1, Q8_0, got 'Q4_K'"),
    "quantise width": (lambda: quantise(torch.ones(2, 33), "Q4_1"), "a multiple of 32.*got torch.float32.2, 33."),
    "quantise nan": (lambda: quantise(torch.full((2, 32), float("nan")), "Q4_1"), "row 0 .* not finite"),
    "quantise large": (lambda: quantise(torch.eye(32) * 1e9, "Q8_0"), "too large for blocks"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_told(what: str) -> None:
    wrong, message = WRONG[what]
    with pytest.raises(UsageError, match=message):
        wrong()


@pytest.mark.filterwarnings("ignore")
def test_operations_keep_what_torch_asks_of_them() -> None:
    torch.library.opcheck(ops.repack, (BLOCKS, "Q4_1"))
    torch.library.opcheck(ops.unpack, (TILES, "Q4_1", 16, 64))
    torch.library.opcheck(ops.dequantise, (TILES, "Q4_1", 16, 64))
    torch.library.opcheck(ops.look_up, (torch.tensor([[1, 2]]), TILES, "Q4_1", 16, 64))
    torch.library.opcheck(ops.linear, (torch.randn(3, 64), TILES, torch.randn(16), "Q4_1", 16))
    torch.library.opcheck(ops.linear, (torch.randn(3, 64, requires_grad=True), TILES, None, "Q4_1", 16))


def test_layers_of_the_same_blocks_share_their_tiles() -> None:
    blocks = random_blocks("Q8_0", 20, 64)
    first, second, other = (BlockLinear({"Q8_0": one}) for one in (blocks, blocks, blocks.clone()))
    assert first.tiles.data_ptr() == second.tiles.data_ptr() != other.tiles.data_ptr()
    blocks[0, 2] += 1
    assert not torch.equal(BlockLinear({"Q8_0": blocks}).tiles, first.tiles), (
        "blocks that were changed since are laid out anew"
    )
    with torch.inference_mode():
        made = blocks + 0
        assert torch.equal(BlockLinear({"Q8_0": made}).tensors()["Q8_0"], blocks)
