"""NF4 with double quantisation: the weights of QLoRA (Dettmers et al. 2023, arXiv:2305.14314), with gradients to the inputs.

64 weights in a row share a greatest value; each weight is the nearest of 16 levels times it, which cut a normal distribution into equal
shares. The greatest values themselves, less their mean, are kept in 8 bits, 256 of them with one scale. Reference: bitsandbytes 0.50,
`quantize_4bit(quant_type="nf4", compress_statistics=True)`, whose values these are.
"""

from collections.abc import Mapping
from functools import cache, partial

import torch
from torch.nn.functional import pad

from zoo.api import Kernel, LayerFormat
from zoo_kernels.plain import PlainLinear

HALF_STEPS = 32_767.5
BLOCK, SCALES = 64, 256  # weights with one greatest value; greatest values with one scale
# The levels, to the bit of float32 (the paper's appendix E; the tests compare them with the reference's).
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
PAIRS, GREATEST, SCALE, MEAN, SHAPE = "levels", "greatest", "greatest_scale", "greatest_mean", "shape"


@cache
def eight_bit_values() -> torch.Tensor:
    """The 256 values of the 8-bit dynamic map, float32[256], sorted: a sign, a power of ten and a linear fraction that share seven bits
    (Dettmers 2016, arXiv:1511.04561).
    """
    values = [torch.zeros(1), torch.ones(1)]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = 10.0 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [middles, -middles]
    return torch.cat(values).sort().values


@cache
def _both_levels() -> torch.Tensor:
    """The two levels of each byte, float32[256, 2]."""
    values = torch.tensor(LEVELS)
    return torch.stack((values.repeat_interleave(16), values.repeat(16)), -1)


def quantise(weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """float32[N, K] -> levels, two in a byte (the first in the high half); the greatest values as uint8 with scale and mean; [N, K]."""
    flat = weight_NK.detach().reshape(-1)
    blocks_BX = pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    greatest_B = blocks_BX.abs().amax(1)
    scaled_BX = (blocks_BX * (1.0 / greatest_B.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    levels_BX = _nearest(scaled_BX, torch.tensor(LEVELS, device=flat.device))
    mean = greatest_B.mean()
    groups_GX = pad(greatest_B - mean, (0, -len(greatest_B) % SCALES)).view(-1, SCALES)
    scales_G = groups_GX.abs().amax(1)
    # The reference looks the values up in so many steps, rounded in this order: half a step decides here and there.
    steps_GX = ((groups_GX * (1.0 / scales_G.clamp(min=1e-38))[:, None] + 1) * HALF_STEPS + 0.5).floor()
    kept_B = _nearest(steps_GX / HALF_STEPS - 1, eight_bit_values().to(flat.device)).view(-1)[: len(greatest_B)]
    levels = levels_BX.view(-1, 2)
    shape = torch.tensor(weight_NK.shape, dtype=torch.int64, device=flat.device)
    return {
        PAIRS: (levels[:, 0] << 4) | levels[:, 1],
        GREATEST: kept_B,
        SCALE: scales_G,
        MEAN: mean.reshape(1),
        SHAPE: shape,
    }


def _nearest(numbers: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of sorted values, uint8; halfway the upper one, as the reference's comparisons with the middles."""
    middles = (values[1:] + values[:-1]) / 2
    return torch.bucketize(numbers.contiguous(), middles).to(torch.uint8)


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the tensors stand for, float32[N, K]."""
    outputs, inputs = (int(size) for size in tensors[SHAPE])
    pairs, kept_B = tensors[PAIRS], tensors[GREATEST]
    scaled_B = eight_bit_values().to(pairs.device)[kept_B.int()]
    greatest_B = scaled_B * tensors[SCALE].repeat_interleave(SCALES)[: len(kept_B)] + tensors[MEAN]
    levels_BX = _both_levels().to(pairs.device).index_select(0, pairs.int()).view(-1, BLOCK)
    return levels_BX.mul_(greatest_B[:, None]).flatten()[: outputs * inputs].view(outputs, inputs)


def _kept(_: Mapping[str, torch.Tensor], __: torch.Tensor | None) -> None:
    """The layer that would be replaced stays, gradients and all."""


LAYER = partial(PlainLinear, dequantise=dequantise, number_format="nf4")
FORMAT = LayerFormat(quantise=quantise, layer=LAYER, dequantise=dequantise)
KEPT = LayerFormat(
    quantise=lambda weight_NK: {"weight": weight_NK}, layer=_kept, dequantise=lambda tensors: tensors["weight"]
)


def nf4() -> Kernel:
    """The kernel of the card `kernels/nf4`; a decoder's head and table keep float32, as in QLoRA."""
    return Kernel(linear=FORMAT, head=KEPT)
