"""Weights in 4 bits by groups of any size, with a step and a zero for each, or a step alone: weight-only, inputs as they are."""

from collections.abc import Mapping
from functools import partial

import torch

from zoo.api import Kernel, LayerFormat
from zoo_kernels.plain import PlainLinear

PAIRS, STEPS, LEAST = "levels", "steps", "least"
LEVELS = 15


def quantise(weight_NK: torch.Tensor, *, group: int, symmetric: bool) -> dict[str, torch.Tensor]:
    """float32[N, K] -> levels, two in a byte; step and least of each group in float32[N, K / group].

    symmetric: levels from -7 to 7 around 0, so that the least is -8 steps and is not kept.
    """
    groups_NGX = weight_NK.detach().reshape(len(weight_NK), -1, group)
    if symmetric:
        steps_NG = groups_NGX.abs().amax(-1) / 7
        least_NG = -8 * steps_NG
    else:
        least_NG, greatest_NG = torch.aminmax(groups_NGX, dim=-1)
        steps_NG = greatest_NG / LEVELS - least_NG / LEVELS  # apart, so that the largest numbers do not overflow
    safe_NG1 = torch.where(steps_NG > 0, steps_NG, torch.ones_like(steps_NG))[..., None]
    levels_NK = (
        (groups_NGX / safe_NG1 - least_NG[..., None] / safe_NG1).round_().clamp_(0, LEVELS).to(torch.uint8).flatten(1)
    )
    kept = {PAIRS: levels_NK[:, ::2] | (levels_NK[:, 1::2] << 4), STEPS: steps_NG}
    return kept if symmetric else {**kept, LEAST: least_NG}


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the tensors stand for, float32[N, K]."""
    pairs_NX, steps_NG1 = tensors[PAIRS], tensors[STEPS][..., None]
    levels_NGX = torch.stack((pairs_NX & 15, pairs_NX >> 4), -1).reshape(len(pairs_NX), steps_NG1.shape[1], -1).float()
    least_NG1 = tensors[LEAST][..., None] if LEAST in tensors else -8 * steps_NG1
    return (levels_NGX * steps_NG1 + least_NG1).flatten(1)


def int4_groups(*, group: int, symmetric: bool = False) -> Kernel:
    """The kernel of the cards `kernels/int4-64`, `kernels/int4-128`; layers whose inputs are no whole groups keep float32."""
    form = LayerFormat(
        quantise=partial(quantise, group=group, symmetric=symmetric),
        layer=partial(PlainLinear, dequantise=dequantise, number_format=f"int4-{group}"),
        dequantise=dequantise,
        fits=lambda outputs, inputs: outputs > 0 and inputs > 0 and inputs % group == 0,
    )
    return Kernel(linear=form)
