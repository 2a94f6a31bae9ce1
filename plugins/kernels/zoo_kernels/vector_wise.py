"""8-bit products as the literature writes them down (Dettmers et al. 2022, arXiv:2208.07339): absmax, zero-point, and LLM.int8's outliers.

Each row of the inputs and each row of the weight has a scale of its own ("vector-wise"). Whole numbers are multiplied in float32, which holds their
sums to its own precision: these are references to read and to compare with, and `int8` is the fast one.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import linear

from zoo.api import Kernel, LayerFormat
from zoo_kernels import int8

OUTLIER = 6.0  # section 3.2: inputs of at least this size are computed apart
LEVELS_NK, STEPS_N, LEAST_N = "levels", "steps", "least"


class AbsmaxLinear(nn.Module):
    """Section 2.1: x -> round(127 x / max |x|), the weight likewise, and their product times both scales.

    outliers: multiply inputs of 6 and more by the weights in float32, and the rest in 8 bits (section 3). They are found in each row by itself,
    where the paper finds columns of a batch: here no row depends on its neighbours.
    """

    bias: torch.Tensor | None
    levels_NK: torch.Tensor
    scales_N: torch.Tensor

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None = None, *, outliers: bool = False
    ) -> None:
        super().__init__()
        self.number_format, self.outliers = "llm-int8" if outliers else "absmax", outliers
        self.out_features, self.in_features = tensors[int8.LEVELS_NK].shape
        self.register_buffer("levels_NK", tensors[int8.LEVELS_NK], persistent=False)
        self.register_buffer("scales_N", tensors[int8.SCALES_N], persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        rows_MK = input_BTK.reshape(-1, self.in_features)
        large_MK = torch.where(rows_MK.abs() >= OUTLIER, rows_MK, 0.0) if self.outliers else torch.zeros_like(rows_MK)
        rest_MK = rows_MK - large_MK
        steps_M1 = rest_MK.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        product_MN = linear((rest_MK / steps_M1).round(), self.levels_NK.float()) * steps_M1 * self.scales_N
        if self.outliers:
            product_MN = product_MN + linear(large_MK, int8.dequantise(self.tensors()))
        if self.bias is not None:
            product_MN = product_MN + self.bias
        return product_MN.view(*input_BTK.shape[:-1], self.out_features)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the layer was made of."""
        return {int8.LEVELS_NK: self.levels_NK, int8.SCALES_N: self.scales_N}


def quantise_from_zero_point(weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """Section 2.1: 255 steps between the least and the greatest of each row, uint8[N, K] with step and least, float32[N]."""
    least_N, greatest_N = torch.aminmax(weight_NK.detach(), dim=1)
    steps_N = (greatest_N / 255 - least_N / 255).clamp(min=1e-38)
    levels_NK = (
        (weight_NK.detach() / steps_N[:, None] - (least_N / steps_N)[:, None]).round_().clamp_(0, 255).to(torch.uint8)
    )
    return {LEVELS_NK: levels_NK, STEPS_N: steps_N, LEAST_N: least_N}


def dequantise_from_zero_point(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the tensors stand for, float32[N, K]."""
    return tensors[LEVELS_NK].float() * tensors[STEPS_N][:, None] + tensors[LEAST_N][:, None]


class ZeroPointLinear(nn.Module):
    """Inputs and weights by 255 steps from the least of their row. The product of (a + least) and (b + least) has four terms; all are summed."""

    number_format = "zeropoint"
    bias: torch.Tensor | None
    levels_NK: torch.Tensor
    steps_N: torch.Tensor
    least_N: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = tensors[LEVELS_NK].shape
        for name, key in (("levels_NK", LEVELS_NK), ("steps_N", STEPS_N), ("least_N", LEAST_N)):
            self.register_buffer(name, tensors[key], persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        rows_MK = input_BTK.reshape(-1, self.in_features)
        least_M1, greatest_M1 = rows_MK.amin(1, keepdim=True), rows_MK.amax(1, keepdim=True)
        steps_M1 = (greatest_M1 / 255 - least_M1 / 255).clamp(min=1e-38)
        levels_MK = ((rows_MK - least_M1) / steps_M1).round().clamp(0, 255)
        weights_NK = self.levels_NK.float()
        product_MN = linear(levels_MK, weights_NK) * steps_M1 * self.steps_N
        product_MN = product_MN + levels_MK.sum(1, keepdim=True) * steps_M1 * self.least_N
        product_MN = product_MN + least_M1 * (weights_NK.sum(1) * self.steps_N + self.in_features * self.least_N)
        if self.bias is not None:
            product_MN = product_MN + self.bias
        return product_MN.view(*input_BTK.shape[:-1], self.out_features)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the layer was made of."""
        return {LEVELS_NK: self.levels_NK, STEPS_N: self.steps_N, LEAST_N: self.least_N}


def absmax(*, outliers: bool = False) -> Kernel:
    """The kernel of the cards `kernels/absmax` and, with `outliers`, `kernels/llm-int8`."""

    def layer(tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None) -> nn.Module:
        return AbsmaxLinear(tensors, bias_N, outliers=outliers)

    return Kernel(linear=LayerFormat(quantise=int8.quantise, layer=layer, dequantise=int8.dequantise))


def zeropoint() -> Kernel:
    """The kernel of the card `kernels/zeropoint`."""
    return Kernel(
        linear=LayerFormat(quantise=quantise_from_zero_point, layer=ZeroPointLinear, dequantise=dequantise_from_zero_point)
    )
