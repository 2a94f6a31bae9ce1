"""Products and passes of the native code against plain PyTorch, on every instruction set that this machine has."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_decoder import tiny_decoder
from torch import nn
from zoo_fused import blocks, native, ops
from zoo_fused.linear import BlockEmbedding, BlockLinear, dequantise
from zoo_fused.step import FusedStep

import zoo
from zoo.decoding.generation import generate
from zoo.decoding.reading import batch_of
from zoo.decoding.scoring import perplexity
from zoo.errors import WeightsMissingError
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
