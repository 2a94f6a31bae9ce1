"""float32 weights -> blocks, by the formulas of ggml's reference (quantize_row_*_ref in ggml-quants.c); the peer is the library gguf."""

from __future__ import annotations

import torch

from zoo.api import UsageError
from zoo_fused.blocks import GROUP


def quantise_q8_0(weight_NK: torch.Tensor) -> torch.Tensor:
    """float32[N, K] -> Q8_0, uint8[N, K / 32 * 34]: a step for each 32, which is their greatest size / 127. Raises UsageError."""
    groups_NGX = _groups(weight_NK)
    steps_NG1 = groups_NGX.abs().amax(-1, keepdim=True) / 127
    scaled_NGX = groups_NGX * _inverse(steps_NG1)
    levels_NGX = (scaled_NGX.abs() + 0.5).floor() * scaled_NGX.sign()  # halves go away from zero, as in C
    return _joined(_half(steps_NG1), levels_NGX.to(torch.int8).view(torch.uint8))


def quantise_q4_1(weight_NK: torch.Tensor) -> torch.Tensor:
    """float32[N, K] -> Q4_1, uint8[N, K / 32 * 20]: sixteen levels from the least to the greatest of each 32. Raises UsageError."""
    groups_NGX = _groups(weight_NK)
    least_NG1, greatest_NG1 = torch.aminmax(groups_NGX, dim=-1, keepdim=True)
    steps_NG1 = (greatest_NG1 - least_NG1) / 15
    levels_NGX = ((groups_NGX - least_NG1) * _inverse(steps_NG1) + 0.5).floor().clamp(0, 15)
    return _joined(_half(steps_NG1), _half(least_NG1), _nibbles(levels_NGX))


def quantise_q4_0(weight_NK: torch.Tensor) -> torch.Tensor:
    """float32[N, K] -> Q4_0, uint8[N, K / 32 * 18]: levels from -8 to 7 of a step for each 32, -8 for the one of greatest size."""
    groups_NGX = _groups(weight_NK)
    farthest_NG1 = groups_NGX.gather(-1, groups_NGX.abs().argmax(-1, keepdim=True))
    steps_NG1 = farthest_NG1 / -8
    levels_NGX = (groups_NGX * _inverse(steps_NG1) + 8.5).floor().clamp(0, 15)
    return _joined(_half(steps_NG1), _nibbles(levels_NGX))


def _groups(weight_NK: torch.Tensor) -> torch.Tensor:
    if weight_NK.ndim != 2 or not weight_NK.is_floating_point() or 0 in weight_NK.shape or weight_NK.shape[1] % GROUP:
        raise UsageError(
            f"blocks are made of float[N, a multiple of {GROUP}], got {weight_NK.dtype}{list(weight_NK.shape)}"
        )
    weight_NK = weight_NK.detach().float()
    if not bool(weight_NK.isfinite().all()):
        row = int((~weight_NK.isfinite()).any(1).nonzero()[0])
        raise UsageError(f"row {row} of the weight holds a number that is not finite: it has no blocks")
    groups_NGX: torch.Tensor = weight_NK.reshape(len(weight_NK), -1, GROUP)
    return groups_NGX


def _inverse(steps: torch.Tensor) -> torch.Tensor:
    return torch.where(steps != 0, 1 / steps, torch.zeros_like(steps))


def _half(numbers_NG1: torch.Tensor) -> torch.Tensor:
    halves = numbers_NG1.half()
    if not bool(halves.isfinite().all()):
        raise UsageError("a weight is too large for blocks: their scales are float16, up to 65504")
    return halves.view(torch.uint8)


def _nibbles(levels_NGX: torch.Tensor) -> torch.Tensor:
    low, high = levels_NGX.to(torch.uint8).chunk(2, -1)
    return low | high << 4


def _joined(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts, -1).flatten(1).contiguous()
