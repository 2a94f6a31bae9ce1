"""NF4: the values of bitsandbytes, gradients to the inputs, and an adapter that learns on it."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo_kernels import nf4

import zoo

# sha256 of what bitsandbytes 0.50.2 (CPU) dequantises of the tensors of `drawn`, the first 16 digits
REFERENCE = Path(__file__).with_name("nf4_bitsandbytes.txt").read_text(encoding="utf-8").split()


def drawn() -> list[torch.Tensor]:
    """A hundred weights of many sizes and scales, some with a row of zeros."""
    generator, weights = torch.Generator().manual_seed(0), []
    for number in range(100):
        rows, columns = (
            int(torch.randint(1, 80, (1,), generator=generator)),
            64 * int(torch.randint(1, 9, (1,), generator=generator)),
        )
        weight = torch.randn(rows, columns, generator=generator) * 10 ** float(torch.rand(1, generator=generator) * 4 - 3)
        if number % 10 == 0:
            weight[0] = 0
        weights.append(weight)
    return weights


def test_values_are_those_of_bitsandbytes_on_a_hundred_tensors() -> None:
    for number, weight in enumerate(drawn()):
        values = nf4.dequantise(nf4.quantise(weight)) + 0.0
        assert hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16] == REFERENCE[number], number


def test_the_maps_are_those_of_the_papers() -> None:
    values = nf4.eight_bit_values()
    assert (len(values), float(values[-1]), int((values == 0).sum())) == (256, 1.0, 1)
    assert len(set(values.tolist())) == 256
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083  # of the paper's appendix E: the mean of 1 - 1/30 and 1 - 1/32
    positive = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    levels = torch.cat((positive, negative, torch.zeros(1))).sort().values
    torch.testing.assert_close(torch.tensor(nf4.LEVELS), levels / levels.max(), rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 200), scale=st.floats(1e-30, 1e30), seed=st.integers(0, 9))
def test_any_size_and_scale_comes_back_near(rows: int, columns: int, scale: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    tensors = nf4.quantise(weight)
    found = nf4.dequantise(tensors)
    assert found.shape == weight.shape
    assert bool(found.isfinite().all())
    # Half the widest step between levels, of the greatest value of the block, which itself is off by up to 0.7 % of the largest's distance from the mean.
    greatest = float(weight.abs().max())
    assert float((found - weight).abs().max()) <= (0.1520 + 0.0075) * greatest * 1.01
    layer = nf4.LAYER(tensors)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in layer.tensors().items())


def test_gradients_are_those_of_a_layer_with_the_same_weight() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(30, 64), torch.randn(30)
    layer, plain = nf4.LAYER(nf4.quantise(weight), bias), nn.Linear(64, 30)
    with torch.no_grad():
        plain.weight.copy_(nf4.dequantise(nf4.quantise(weight)))
        plain.bias.copy_(bias)
    pulls = torch.randn(2, 3, 30)
    found = []
    for module in (layer, plain):
        inputs = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        (grad,) = torch.autograd.grad(module(inputs), inputs, pulls)
        found.append(grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    inputs = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(inputs).sum().backward()
    assert inputs.grad is not None


def test_a_lora_learns_on_it_and_the_four_bits_stay() -> None:
    torch.manual_seed(0)
    built = zoo.open_model("smollm/tiny", weights=None, kernel="nf4")
    layers = [part for part in built.module.modules() if getattr(part, "number_format", "") == "nf4"]
    before = [{name: tensor.clone() for name, tensor in layer.tensors().items()} for layer in layers]
    trained = zoo.train_adapter(
        [("a", "b"), ("c", "d")] * 4, model=built, training=zoo.TrainingOptions(steps=6, held_out=0, learning_rate=0.02)
    )
    losses = trained.fitted.losses
    assert losses[-1] < losses[0]
    assert len(layers) == 8
    for layer, tensors in zip(layers, before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in layer.tensors().items())


def test_it_takes_about_four_bits_a_weight() -> None:
    tensors = nf4.quantise(torch.randn(512, 512))
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 512**2
    assert bits == pytest.approx(4.127, abs=0.01)
