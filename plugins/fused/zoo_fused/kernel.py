"""The kernels `fused/...`: layers in GGUF's blocks, and a decoder's passes as one native call each."""

from __future__ import annotations

from functools import partial

from zoo.api import Kernel, LayerFormat
from zoo_fused.linear import BLOCKS, BlockEmbedding, BlockLinear, dequantise, fits, quantise
from zoo_fused.step import fused_step


def fused_kernel(*, blocks: str = "Q8_0") -> Kernel:
    """Build the kernel. What a file holds in blocks of a known type stays as it is; other weights become `blocks`, head and table Q8_0."""
    linear, eight = _format(blocks), _format("Q8_0")
    table = LayerFormat(
        quantise=partial(quantise, name="Q8_0"),
        layer=BlockEmbedding,
        dequantise=dequantise,
        fits=partial(fits, "Q8_0"),
        blocks=BLOCKS,
    )
    return Kernel(linear=linear, head=eight, embedding=table, step=fused_step)


def _format(blocks: str) -> LayerFormat:
    return LayerFormat(
        quantise=partial(quantise, name=blocks),
        layer=BlockLinear,
        dequantise=dequantise,
        fits=partial(fits, blocks),
        blocks=BLOCKS,
    )
