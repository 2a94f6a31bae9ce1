"""Blocks as they were published: bit for bit in memory, and gradients to the inputs."""

import pytest
import torch
from torch import nn
from zoo_kernels import published

import zoo
from zoo.errors import WeightsMissingError
from zoo.weights.formats.gguf_blocks import dequantise


def test_what_is_in_no_blocks_becomes_those_of_the_library() -> None:
    gguf = pytest.importorskip("gguf")
    from gguf.quants import quantize

    torch.manual_seed(0)
    weight = torch.randn(20, 96)
    theirs = dequantise(torch.from_numpy(quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)), "Q8_0")
    ours = published.dequantise(published.quantise(weight))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(weight.abs().max()))
    assert float((ours - weight).abs().max()) <= (0.5 / 127 + 5e-4) * float(weight.abs().max())
    for extreme in (torch.zeros(2, 32), torch.full((2, 32), 1e30), torch.full((2, 32), 1e-30)):
        assert bool(published.dequantise(published.quantise(extreme)).isfinite().all())


def test_gradients_are_those_of_a_layer_with_the_same_weight() -> None:
    torch.manual_seed(0)
    tensors = published.quantise(torch.randn(30, 64))
    layer, plain = published.layer(tensors, None), nn.Linear(64, 30, bias=False)
    with torch.no_grad():
        plain.weight.copy_(published.dequantise(tensors))
    pulls, found = torch.randn(5, 30), []
    for module in (layer, plain):
        inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        found.append(torch.autograd.grad(module(inputs), inputs, pulls)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_a_file_of_blocks_is_held_as_it_is_and_answers_as_its_numbers_do() -> None:
    try:
        made = zoo.quantize("smollm/135m-instruct", "published")
    except WeightsMissingError:
        pytest.skip("needs the published file: zoo fetch smollm/135m-instruct")
    assert set(made.layers.values()) == {"q4_1", "q8_0"}
    assert made.weight_bytes < 130e6, "98 MB of the file, and the head beside the table"
    plain = zoo.open_model("smollm/135m-instruct")
    tokens = torch.tensor([[504, 3575, 282, 4649, 314]])
    with torch.inference_mode():
        torch.testing.assert_close(made.built.module(tokens), plain.module(tokens), rtol=0, atol=1e-3)
