"""Products and passes of the native code against plain PyTorch, on every instruction set that this machine has."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder
from torch import nn
from zoo_fused import blocks, native, ops
from zoo_fused.linear import BlockEmbedding, BlockLinear, dequantise, quantise
from zoo_fused.step import FusedStep

import zoo
from zoo.decoding.generation import generate
from zoo.decoding.reading import batch_of
from zoo.decoding.scoring import perplexity
from zoo.errors import UsageError, WeightsMissingError
from zoo.models.kernels import apply_kernel
from zoo.weights.formats.gguf_blocks import dequantise as by_the_core

ISAS = native.supported_isas()
needs_native = pytest.mark.skipif(not ISAS, reason="there is no C++ compiler here")
QUANTISED = ("Q4_0", "Q4_1", "Q8_0")


def damaged_free(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    """Blocks of any type with random quants and small finite scales."""
    generator = torch.Generator().manual_seed(seed)
    shape = blocks.block_type(kind)
    made = torch.randint(0, 256, (rows, columns // shape.weights, shape.bytes), generator=generator, dtype=torch.uint8)
    for at in shape.halves:
        halves = (torch.rand(rows, columns // shape.weights, 1, generator=generator) * 0.02 + 0.001).half()
        made[..., at : at + 2] = halves.view(torch.uint8)
    return made.flatten(1)


def rounded(input_MK: torch.Tensor) -> torch.Tensor:
    """Inputs as the products see them: whole numbers from -127 to 127 of a step for each 32."""
    groups_MGX = input_MK.reshape(len(input_MK), -1, 32)
    steps = groups_MGX.abs().amax(-1, keepdim=True) / 127
    return (groups_MGX / steps.clamp(min=1e-38)).round().mul(steps).flatten(1)


@pytest.mark.parametrize("kind", blocks.TYPES)
def test_a_layout_is_lossless_and_the_same_without_the_native_code(kind) -> None:
    made = damaged_free(kind, 37, 512, seed=1)
    tiles = ops.repack(made, kind)
    assert torch.equal(tiles, blocks.repack(made, kind))
    assert torch.equal(ops.unpack(tiles, kind, 37, 512), made)
    assert torch.equal(BlockLinear({kind: made}).tensors()[kind], made)
    assert torch.equal(dequantise({kind: made}), by_the_core(made, kind))
    indices = torch.tensor([[0, 36], [5, 5]])
    torch.testing.assert_close(
        BlockEmbedding({kind: made})(indices), by_the_core(made, kind)[indices], rtol=1e-6, atol=1e-6
    )


@needs_native
@pytest.mark.parametrize("isa", ISAS or [""])
@pytest.mark.parametrize("kind", blocks.TYPES)
@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 3), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_product_is_that_of_the_same_rounded_inputs(isa, kind, rows, columns, count, seed) -> None:
    made = damaged_free(kind, rows, 256 * columns, seed)
    inputs = torch.randn(count, 256 * columns, generator=torch.Generator().manual_seed(seed))
    bias = torch.randn(rows)
    tiles = ops.repack(made, kind)
    found = ops.linear(inputs, tiles, bias, kind, rows, 1, isa)
    weight = by_the_core(made, kind).double()
    exact = rounded(inputs).double() @ weight.T + bias
    sums = rounded(inputs).double().abs() @ weight.abs().T + bias.abs()
    # A step that is rounded another way at its last digit moves an input by a step here and there: the second bound is for those.
    apart = (found - exact).abs() / sums
    assert float(apart.median()) <= 1e-6
    assert float(apart.max()) <= 2e-4
    assert torch.equal(found, ops.linear(inputs, tiles, bias, kind, rows, 2, isa)), "threads change nothing"
    assert torch.equal(found[:1], ops.linear(inputs[:1], tiles, bias, kind, rows, 1, isa)), "other rows change nothing"


@pytest.mark.parametrize("kind", QUANTISED)
def test_weights_become_the_blocks_of_the_library(kind) -> None:
    gguf = pytest.importorskip("gguf")
    from gguf.quants import quantize

    torch.manual_seed(0)
    weight = torch.randn(20, 96)
    theirs = torch.from_numpy(quantize(weight.numpy(), gguf.GGMLQuantizationType[kind]))
    ours = quantise(weight, kind)[kind]
    assert float((ours != theirs).float().mean()) < 0.01, "but for the last digit of a step"
    for extreme in (torch.zeros(2, 32), torch.full((2, 32), 3.0), torch.full((2, 32), 1e-30)):
        assert bool(dequantise(quantise(extreme, kind)).isfinite().all())


def fused(decoder: nn.Module, kernel: str = "fused") -> nn.Module:
    apply_kernel(decoder, kernel)
    assert isinstance(decoder.step, FusedStep)
    return decoder


@needs_native
@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 64, "heads": 4, "kv_heads": 2},
        {"width": 96, "heads": 3, "kv_heads": 1},
        {"width": 64, "heads": 4, "positions": "learned"},
    ],
)
def test_a_pass_is_that_of_the_modules(arguments) -> None:
    decoder = tiny_decoder(sharpness=2.0, **arguments)
    apply_kernel(decoder, "fused")
    if decoder.step is None:
        pytest.skip("this shape is left to the modules")
    rows = [[3, 5, 8, 13, 21, 34, 55], [1, 2], [40, 41, 42]]
    tokens_BT, mask_BT = batch_of(rows)
    with torch.inference_mode():
        whole = decoder(tokens_BT, mask_BT=mask_BT)  # without a cache: by the layers
        scale = float(whole[mask_BT].abs().max())
        cache = decoder.new_cache(3, 9)
        at_once = decoder(tokens_BT, mask_BT=mask_BT, cache=cache)
        torch.testing.assert_close(at_once[mask_BT], whole[mask_BT], rtol=0, atol=2e-2 * scale)
        cache, parts = decoder.new_cache(3, 7), (slice(0, 4), slice(4, 5), slice(5, 7))
        pieces = [decoder(tokens_BT[:, part], mask_BT=mask_BT[:, part], cache=cache) for part in parts]
        torch.testing.assert_close(torch.cat(pieces, 1)[mask_BT], at_once[mask_BT], rtol=0, atol=2e-2 * scale)
        last = decoder(tokens_BT, mask_BT=mask_BT, cache=decoder.new_cache(3, 7), at_BN=torch.full((3, 1), 6))
        torch.testing.assert_close(last[:, 0], at_once[:, 6], rtol=0, atol=1e-5 * scale)
    answers = generate(decoder, rows, max_tokens=6)
    assert [answer.ids for answer in answers] == [generate(decoder, [row], max_tokens=6)[0].ids for row in rows]


@needs_native
def test_threads_change_nothing() -> None:
    decoder = fused(tiny_decoder(width=64, heads=4, kv_heads=2))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(decoder(torch.arange(40).view(2, 20), cache=decoder.new_cache(2, 20)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@needs_native
def test_what_a_pass_does_not_know_is_left_to_the_modules() -> None:
    decoder = fused(tiny_decoder(width=64, heads=4, kv_heads=2))
    cache = decoder.new_cache(1, 8)
    assert not decoder.step.takes(cache), "gradients of the norms are wanted"
    with torch.inference_mode():
        assert decoder.step.takes(cache)
    assert not decoder.step.takes(None)
    assert not decoder.step.takes(cache, before_layer=lambda layer, tokens: tokens)
    adapters = zoo.adapt(decoder, "lora", name="own")
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3)
    assert not decoder.step.takes(decoder.new_cache(1, 8))
    with torch.inference_mode():
        changed = decoder(torch.tensor([[1, 2, 3]]), cache=decoder.new_cache(1, 8))
        adapters.use()
        plain = decoder(torch.tensor([[1, 2, 3]]), cache=decoder.new_cache(1, 8))
    assert not torch.allclose(changed, plain)


@needs_native
def test_operations_keep_torchs_rules() -> None:
    made = damaged_free("Q4_1", 20, 64, seed=0)
    tiles = ops.repack(made, "Q4_1")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.zoo_fused.repack.default, (made, "Q4_1"), test_utils=tests)
    torch.library.opcheck(torch.ops.zoo_fused.unpack.default, (tiles, "Q4_1", 20, 64), test_utils=tests)
    torch.library.opcheck(
        torch.ops.zoo_fused.linear.default, (torch.randn(3, 64), tiles, None, "Q4_1", 20), test_utils=tests
    )
    torch.library.opcheck(
        torch.ops.zoo_fused.look_up.default, (torch.tensor([[0, 19]]), tiles, "Q4_1", 20, 64), test_utils=tests
    )
    inputs = torch.randn(3, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.linear(inputs, tiles, None, "Q4_1", 20).sum(), inputs)
    torch.testing.assert_close(grad, by_the_core(made, "Q4_1").sum(0).expand(3, 64), rtol=1e-5, atol=1e-5)


def test_what_is_wrong_is_said_before_a_pointer_is_used() -> None:
    made = damaged_free("Q4_1", 20, 64, seed=0)
    tiles = ops.repack(made, "Q4_1")
    for call, message in (
        (lambda: ops.repack(made[:, :-1], "Q4_1"), "blocks of Q4_1 must be uint8"),
        (lambda: ops.repack(made, "Q9"), "blocks must be of type Q4_0"),
        (lambda: ops.linear(torch.randn(3, 96), tiles, None, "Q4_1", 20), "tiles"),
        (lambda: ops.linear(torch.randn(3, 64).double(), tiles, None, "Q4_1", 20), "a fused layer takes float32"),
        (lambda: ops.linear(torch.randn(3, 64), tiles, torch.zeros(3), "Q4_1", 20), "the bias must be float32"),
        (lambda: ops.linear(torch.randn(3, 64), tiles, None, "Q4_1", 20, 1, "sse9"), "'sse9' is unknown; this machine has"),
        (lambda: ops.look_up(torch.tensor([20]), tiles, "Q4_1", 20, 64), "rows must be from 0 to 19, got 20"),
        (lambda: ops.look_up(torch.tensor([0.5]), tiles, "Q4_1", 20, 64), "named by int32 or int64"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    broken = made.clone()
    broken[3, 0:2] = torch.tensor([float("inf")]).half().view(torch.uint8)
    with pytest.raises(Exception, match="row 3"):
        ops.repack(broken, "Q4_1")


def test_without_the_native_code_the_layers_answer_the_same() -> None:
    """ZOO_FUSED_ISA=pytorch, in a process of its own: the shared object is opened once."""
    script = (
        "import sys; sys.path.insert(0, 'tests'); import torch; from tiny_decoder import tiny_decoder; from zoo.models.kernels import apply_kernel\n"
        "d = tiny_decoder(width=64, heads=4, kv_heads=2); apply_kernel(d, 'fused'); assert d.step is None\n"
        "print(d(torch.tensor([[1, 2, 3, 4]]))[0, -1].argmax().item())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ZOO_FUSED_ISA": isa},
        )
        for isa in ("pytorch", "mmx")
    ]
    assert found[0].returncode == 0, found[0].stderr
    decoder = tiny_decoder(width=64, heads=4, kv_heads=2)
    apply_kernel(decoder, "fused")
    assert int(found[0].stdout) == int(decoder(torch.tensor([[1, 2, 3, 4]]))[0, -1].argmax())
    assert "the instruction set 'mmx' is unknown; this machine has" in found[1].stderr


@needs_native
def test_the_published_file_foretells_text_as_well_as_its_numbers() -> None:
    try:
        exact, fast = (zoo.open_model("smollm/135m-instruct", kernel=kernel) for kernel in ("float32", "fused"))
    except WeightsMissingError:
        pytest.skip("needs the published file: zoo fetch smollm/135m-instruct")
    ids = exact.module.tokenizer.encode(
        "The committee met on Tuesday to discuss the budget, and after two hours it agreed to wait. " * 2
    )
    losses = []
    for built in (exact, fast):
        with torch.inference_mode():
            cache = built.module.new_cache(1, len(ids))
            logits = built.module(torch.tensor([ids]), cache=cache)[0]
        losses.append(float(nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert isinstance(fast.module.step, FusedStep)
    assert perplexity(fast.module, ids).nll_nats / (len(ids) - 1) == pytest.approx(losses[0], rel=0.01)
