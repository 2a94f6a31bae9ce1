"""Models in few bits: what is exact is exact, what is rounded is near, and each row keeps to itself."""

import copy

import pytest
import torch
from tiny_decoder import tiny_decoder
from torch import nn

import zoo as library
from zoo.decoding.generation import generate
from zoo.decoding.reading import batch_of
from zoo.errors import UsageError
from zoo.models.build import with_kernel
from zoo.models.kernels import apply_kernel, kernel_named
from zoo.nn import RMSNorm
from zoo.nn.kernels.exact import HalfEmbedding, HalfLinear, halves_exactly
from zoo.nn.kernels.seam import is_kernel_embedding
from zoo.registry.lookup import default_registry

BOUNDS = {"float32": 1e-6, "bf16": 0.01, "int8": 0.02, "int4": 0.01}  # of weights that the format can hold
FEW_ROWS = 16  # up to here int4 multiplies by the 4-bit weights themselves


def layer_of(kernel: str, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> nn.Module:
    """A linear layer in the format of a kernel."""
    form = kernel_named(kernel).kernel.linear
    assert form is not None
    layer = form.layer(form.quantise(weight_NK.detach()), bias_N)
    assert layer is not None
    return layer


def q4_1_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A weight as a Q4_1 file holds it: float16 steps and leasts, 16 levels, both ends used as its quantiser does."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 16, (rows, columns // 32, 32), generator=generator).float()
    levels[..., 0], levels[..., 1] = 0, 15
    steps = (torch.rand(rows, columns // 32, 1, generator=generator) * 0.02 + 1e-3).half().float()
    least = (torch.randn(rows, columns // 32, 1, generator=generator) * 0.1).half().float()
    return (levels * steps + least).flatten(1)


@pytest.mark.parametrize("kernel", BOUNDS)
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_nearly_what_it_stands_for(kernel, rows, bias) -> None:
    torch.manual_seed(0)
    exact = nn.Linear(96, 80, bias=bias)
    with torch.no_grad():
        exact.weight.copy_(q4_1_weight(80, 96))
    layer = layer_of(kernel, exact.weight, exact.bias)
    x = torch.randn(2, rows, 96)
    x[:, :, 5] *= 50  # an outlier, as the inputs of real models have them
    with torch.inference_mode():
        expected, found = exact(x), layer(x)
        assert found.dtype == torch.float32
        assert found.shape == expected.shape
        relative = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert float(relative.max()) < BOUNDS[kernel]
        loud = torch.cat((x, 1000 * torch.randn(1, rows, 96)))
        torch.testing.assert_close(layer(loud)[:2], found, rtol=0, atol=BOUNDS[kernel] * float(found.abs().max()))


def test_strided_inputs_and_weights_of_any_size() -> None:
    for scale in (1e-9, 1.0, 1e6):
        weight = scale * torch.randn(64, 64)
        for kernel in ("int8", "int4"):
            x = torch.randn(64, 5).t()
            relative = (layer_of(kernel, weight)(x) - x @ weight.T).norm() / (x @ weight.T).norm()
            assert float(relative) < (0.02 if kernel == "int8" else 0.15)


@pytest.mark.parametrize("kernel", BOUNDS)
def test_a_model_runs_by_a_kernel_nearly_as_before(kernel) -> None:
    plain, fast = (tiny_decoder(width=64, heads=4, kv_heads=2, sharpness=2.0) for _ in range(2))
    if kernel == "int4":  # weights that 4 bits hold
        for decoder in (plain, fast):
            for number, layer in enumerate(part for part in decoder.stack.modules() if isinstance(part, nn.Linear)):
                layer.weight.data = 0.25 * q4_1_weight(*layer.weight.shape, seed=number)
    apply_kernel(fast, kernel)
    assert not any(type(part) is nn.Linear for part in fast.modules())
    assert fast.stack.blocks[0].attention.query_key_value is not None
    assert fast.stack.blocks[0].feed_forward.gate_and_up is not None
    tokens = torch.randint(0, 256, (3, 20))
    with torch.inference_mode():
        cosine = torch.nn.functional.cosine_similarity(plain(tokens), fast(tokens), dim=-1)
        assert float(cosine.mean()) > 0.999
        assert float(cosine.min()) > 0.99
        cache = fast.new_cache(3, 20)
        pieces = [fast(tokens[:, start : start + 5], cache=cache) for start in range(0, 20, 5)]
        torch.testing.assert_close(torch.cat(pieces, 1), fast(tokens), rtol=0, atol=0.05)
    rows = [[1, 2, 3], [4], [5, 6, 7, 8]]
    assert generate(fast, rows, max_tokens=4) == [answer for row in rows for answer in generate(fast, [row], max_tokens=4)]


@pytest.mark.parametrize("kernel", BOUNDS)
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1, 64])
def test_what_the_other_rows_hold_changes_nothing(kernel, rows) -> None:
    layer = layer_of(kernel, q4_1_weight(80, 96))
    x = torch.randn(rows, 96)
    one, other = torch.cat((x, torch.zeros(2, 96))), torch.cat((x, 1e3 * torch.randn(2, 96)))
    assert torch.equal(layer(one)[:rows], layer(other)[:rows])


@pytest.mark.parametrize("kernel", BOUNDS)
@pytest.mark.parametrize("ragged", [False, True])
@torch.inference_mode()
def test_a_straight_step_gives_what_the_modules_give(kernel, ragged) -> None:
    decoder = tiny_decoder(width=64, heads=4, kv_heads=2, sharpness=2.0)
    apply_kernel(decoder, kernel)
    assert decoder.one_step is not None
    tokens_BT, mask_BT = batch_of([[1, 2, 3], [4] if ragged else [4, 5, 6]])
    logits = []
    for straight in (True, False):
        cache = decoder.new_cache(2, 4)
        decoder(tokens_BT, mask_BT=mask_BT, cache=cache)
        for token in range(5):
            tokens_B = torch.tensor([token, 7])
            found = decoder.one_step(tokens_B, cache) if straight else decoder(tokens_B[:, None], cache=cache)[:, 0]
        logits.append(found)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5 if kernel == "float32" else 2e-2)
    with pytest.raises(UsageError, match="token ids must be from 0 to 257, got 300"):
        decoder.one_step(torch.tensor([0, 300]), cache)


def test_other_shapes_have_no_straight_step() -> None:
    for arguments in ({"positions": "alibi"}, {"positions": "learned"}, {"experts": 2}):
        decoder = tiny_decoder(width=32, **arguments)
        apply_kernel(decoder, "float32")
        assert decoder.one_step is None


def test_a_mixture_keeps_its_router_and_odd_widths_are_bf16() -> None:
    decoder = tiny_decoder(width=24, heads=4, experts=3)
    apply_kernel(decoder, "int4")
    mixture = decoder.stack.blocks[0].feed_forward
    assert type(mixture.router) is nn.Linear
    assert mixture.experts[0].up.number_format == "bfloat16", "24 is no multiple of 32"
    assert is_kernel_embedding(decoder.embedding)
    assert (decoder.embedding.number_format, decoder.head.number_format) == ("int8", "int8")


def test_what_no_kernel_can_take_is_said() -> None:
    with pytest.raises(UsageError, match="a kernel is one of float32, .*bf16, .*, got 'int3'; did you mean"):
        apply_kernel(nn.Linear(2, 2), "int3")
    with pytest.raises(UsageError, match="the model runs by a kernel already: build it anew for int8"):
        apply_kernel(apply_kernel(nn.Sequential(nn.Linear(2, 2)), "bf16"), "int8")
    with pytest.raises(UsageError, match="kernel bf16 takes a model in float32, got torch.bfloat16: leave out dtype"):
        apply_kernel(nn.Linear(2, 2).bfloat16(), "bf16")


@pytest.mark.parametrize("shape", [(96,), (1, 96), (5, 96), (2, 3, 96)])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_that_are_float16_numbers_are_multiplied_exactly(shape, bias) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40, bias=bias)
    assert not halves_exactly(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.half())
    if not halves_exactly(layer.weight):
        pytest.skip("torch has no float16 products on this processor")
    inputs = torch.randn(shape)
    found = HalfLinear(layer.weight, layer.bias)(inputs)
    exact = layer.double()(inputs.double())
    assert found.shape == exact.shape
    assert float((found - exact).detach().abs().max()) < 2e-6


def test_a_table_of_float16_numbers_is_looked_up_exactly() -> None:
    table = torch.randn(50, 8).half().float()
    tokens = torch.tensor([[0, 49], [3, 3]])
    assert torch.equal(HalfEmbedding(table)(tokens), table[tokens])


def test_a_decoder_of_float16_numbers_answers_as_without_a_kernel() -> None:
    decoder = tiny_decoder()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(parameter.half())
    plain = generate(decoder, [[1, 2, 3]], max_tokens=8)
    halved = apply_kernel(decoder, "float32")
    assert any(isinstance(part, HalfLinear) for part in halved.modules())
    assert [answer.ids for answer in generate(halved, [[1, 2, 3]], max_tokens=8)] == [answer.ids for answer in plain]


def test_a_copied_decoder_writes_by_its_own_numbers() -> None:
    decoder = apply_kernel(tiny_decoder(width=64, heads=4, kv_heads=2), "fused")
    other = copy.deepcopy(decoder)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "norm" in name:
                parameter.mul_(torch.rand_like(parameter) * 3)
    with torch.inference_mode():
        caches = [other.new_cache(1, 4) for _ in range(2)]
        for cache in caches:
            other(torch.tensor([[3, 5, 8]]), cache=cache)
        one = other.one_step(torch.tensor([7]), caches[0])
        torch.testing.assert_close(one, other(torch.tensor([[7]]), cache=caches[1])[:, 0], rtol=1e-4, atol=1e-4)


def test_blocks_of_two_types_are_not_joined() -> None:
    from zoo_fused.quantise import quantise_q4_0, quantise_q8_0

    from zoo.nn.kernels.apply import Plan, apply_layers
    from zoo.weights.formats.gguf_blocks import Blocks

    decoder = tiny_decoder(width=64, heads=4, kv_heads=2, layers=1)
    attention = decoder.stack.blocks[0].attention
    kinds = {"query": ("Q4_0", quantise_q4_0), "key": ("Q4_0", quantise_q4_0), "value": ("Q8_0", quantise_q8_0)}
    published = {
        f"stack.blocks.0.attention.{name}.weight": Blocks(quantise(getattr(attention, name).weight), kind)
        for name, (kind, quantise) in kinds.items()
    }
    apply_layers(decoder, Plan(kernel=kernel_named("published").kernel, name="published", published=published))
    assert attention.query_key_value is None
    for name, (kind, _) in kinds.items():
        held = getattr(attention, name).tensors()
        assert torch.equal(held[kind], published[f"stack.blocks.0.attention.{name}.weight"].rows)
    with torch.inference_mode():
        decoder(torch.tensor([[1, 2, 3]]))


class Doubled(RMSNorm):
    """A norm of somebody's own."""

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        """float[..., W] -> float[..., W]."""
        return 2 * super().forward(tokens_BTW)


def give_a_norm_of_ones_own(decoder) -> None:
    decoder.stack.blocks[1].attention_norm.__class__ = Doubled


def give_another_scale(decoder) -> None:
    decoder.stack.blocks[1].attention.scale = 0.9


def watch_a_block(decoder) -> None:
    decoder.stack.blocks[0].register_forward_hook(lambda module, inputs, output: output * 1.5)


def watch_before_a_norm(decoder) -> None:
    decoder.stack.norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].abs(),))


def watch_before_a_layer(decoder) -> None:
    decoder.stack.blocks[0].feed_forward.down.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def put_a_norm_in_place(decoder) -> None:
    decoder.stack.norm = RMSNorm(64, epsilon=0.5)


@pytest.mark.parametrize("kernel", ["float32", "int8", "fused"])
@pytest.mark.parametrize(
    ("change", "after"),
    [
        (give_a_norm_of_ones_own, False),
        (give_another_scale, False),
        (watch_a_block, True),
        (watch_before_a_norm, True),
        (watch_before_a_layer, True),
        (put_a_norm_in_place, True),
    ],
)
def test_one_token_is_read_as_many_are(change, after, kernel) -> None:
    """after: whether the decoder is changed when it runs by the kernel already."""
    decoder = tiny_decoder(width=64, heads=4, kv_heads=2, sharpness=2.0)
    if not after:
        change(decoder)
    apply_kernel(decoder, kernel)
    if after:
        change(decoder)
    tokens = torch.tensor([[3, 5, 8, 13]])
    with torch.inference_mode():
        whole = decoder(tokens)[:, -1]
        cache = decoder.new_cache(1, 8)
        decoder(tokens[:, :3], cache=cache)
        one = decoder.one_step(tokens[:, 3], cache) if decoder.one_step else decoder(tokens[:, 3:], cache=cache)[:, 0]
    torch.testing.assert_close(one, whole, rtol=0, atol=2e-2 * float(whole.abs().max()))


@pytest.mark.parametrize("name", ["float32", *(card.name for card in default_registry().cards(kind="kernel"))])
def test_a_copy_answers_the_same(name) -> None:
    kernel = kernel_named(name).kernel
    if kernel.linear is None:
        pytest.skip("it has no layers")
    decoder = apply_kernel(tiny_decoder(width=64, heads=4, kv_heads=2), name)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(decoder)(tokens), decoder(tokens))


def test_a_plan_for_a_kernel_that_is_not_installed_is_float32() -> None:
    whisper = library.open_model("whisper/random", weights=None)
    whisper.module.kernel_plan = lambda kernel: {"encoder.*": "nobody/kernel", "decoder.head": "kernels/int8"}
    built = with_kernel(whisper, "fused")
    attention = built.module.encoder.stack.blocks[0].attention
    assert attention.output.number_format in ("float32", "float16")
    assert built.module.decoder.head.number_format == "int8"
    assert built.module.decoder.stack.blocks[0].feed_forward.up.number_format == "q8_0"
