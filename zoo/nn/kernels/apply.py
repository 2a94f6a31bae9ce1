"""A built model with its linear layers in another number format: module -> module, in place, layer by layer.

    float32  laid out once, nothing rounded (*)    int8  weights in 8 bits, one scale for each output
    bf16     products in bfloat16, laid out once   int4  weights in 4 bits, one scale for 32: exactly what a Q4_1 file holds

(*) weights that were published in float16 stay so; products and sums are float32.

What is left over (norms, positions, attention, the residual) stays in float32. A model that runs by a kernel is not trained
and not saved: the trained one is.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.nn.block import Block
from zoo.nn.decoder import Decoder
from zoo.nn.extension import extensions_in
from zoo.nn.feed_forward import Gated
from zoo.nn.kernels.linear import (
    GROUP,
    HalfEmbedding,
    HalfLinear,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    PackedLinear,
    halves_exactly,
)
from zoo.nn.kernels.seam import runs_by_kernel
from zoo.nn.kernels.step import decode_step
from zoo.nn.mixture import Mixture

LARGE = 10_000_000  # parameters: looking through the memory of the process for less is not worth its time


def _exact(weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> nn.Module:
    """float32, and in half the memory where the weights were published in float16."""
    if halves_exactly(weight_NK):
        return HalfLinear(weight_NK, bias_N)
    return PackedLinear(weight_NK, bias_N, dtype=torch.float32)


LINEARS: dict[str, Callable[..., nn.Module]] = {
    "float32": _exact,
    "bf16": partial(PackedLinear, dtype=torch.bfloat16),
    "int8": Int8Linear,
    "int4": Int4Linear,
}


def apply_kernel(module: nn.Module, kernel: str) -> nn.Module:
    """The module, with every `nn.Linear` in it replaced; projections of zoo.nn that read the same input are joined first.

    A router stays as it is, and in "int4" a layer whose input width is no multiple of 32 becomes bf16. The tied head of a
    `Decoder` is a layer of its own afterwards: 8 bits where the others have 8 or 4, and the embedding, too.
    Raises UsageError for an unknown kernel, a module that is not on the CPU in float32, and one that has a kernel or adapters already.
    """
    if kernel not in LINEARS:
        raise UsageError(f"a kernel is one of {', '.join(LINEARS)}, got {kernel!r}")
    if runs_by_kernel(module):
        raise UsageError(f"the model runs by a kernel already: build it anew for {kernel}")
    if any(extension.names for extension in extensions_in(module)):
        raise UsageError(f"the model has adapters: apply kernel {kernel} first, and adapt what runs by it")
    wrong = next(
        (tensor for tensor in module.parameters() if tensor.device.type != "cpu" or tensor.dtype != torch.float32), None
    )
    if wrong is not None:
        raise UsageError(
            f"kernel {kernel} takes a model on the CPU in float32, got {wrong.dtype} on {wrong.device}: leave out dtype and device"
        )
    make, size = LINEARS[kernel], sum(parameter.numel() for parameter in module.parameters())
    decoders = [part for part in module.modules() if isinstance(part, Decoder)]
    for decoder in decoders:
        _replace_head(decoder, kernel)
    for part in list(module.modules()):
        if isinstance(part, Block):
            _join(part.attention, ("query", "key", "value"), "query_key_value")
        if isinstance(part, Gated):
            _join(part, ("gate", "up"), "gate_and_up")
        for name, child in list(part.named_children()):
            if type(child) is nn.Linear and not (isinstance(part, Mixture) and name == "router"):
                fits = kernel != "int4" or child.in_features % GROUP == 0
                layer = (make if fits else LINEARS["bf16"])(child.weight, child.bias)
                setattr(part, name, layer)
        del part
    for decoder in decoders:
        decoder.one_step = decode_step(decoder)
    if size >= LARGE:
        _give_back_memory()
    return module.eval()


def _give_back_memory() -> None:
    """What the float32 weights took goes back to the system, where the C library would keep it for later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _join(part: Any, names: tuple[str, ...], joined: str) -> None:
    """Linear layers with one input as one layer with all their outputs, in place of them."""
    layers = [getattr(part, name) for name in names]
    if not all(type(layer) is nn.Linear for layer in layers):
        return
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat(
            [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() for layer in layers]
        )
    weight = torch.cat([layer.weight.detach() for layer in layers])
    together = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    together.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        together.bias = nn.Parameter(bias, requires_grad=False)
    setattr(part, joined, together)
    for name in names:
        setattr(part, name, nn.Identity())


def _replace_head(decoder: Decoder, kernel: str) -> None:
    """A head of its own in place of the tied embedding, made before the embedding is rounded."""
    eight = kernel in ("int8", "int4")
    if decoder.head is None:
        weight: Any = decoder.embedding.weight
        decoder.head = Int8Linear(weight) if eight else LINEARS[kernel](weight, None)
    elif type(decoder.head) is nn.Linear and eight:
        decoder.head = Int8Linear(decoder.head.weight, decoder.head.bias)
    if isinstance(decoder.embedding, nn.Embedding):
        if eight:
            decoder.embedding = Int8Embedding(decoder.embedding.weight)
        elif kernel == "float32" and halves_exactly(decoder.embedding.weight):
            decoder.embedding = HalfEmbedding(decoder.embedding.weight)
