"""Weights in 8 bits with a scale for each output, and inputs in 16: as good as exact inputs, at the speed of 8-bit products."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from zoo.api import Kernel, LayerFormat
from zoo.nn import copy_sharing
from zoo_kernels.plain import PlainLinear

LEVELS = 127  # of a weight, to either side
LEVELS_NK, SCALES_N = "levels", "scales"


def quantise(weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """float32[N, K] -> levels int8[N, K] from -127 to 127, and the step of each row, float32[N]."""
    scales_N = (weight_NK.detach().abs().amax(1) / LEVELS).clamp(min=1e-30)
    return {LEVELS_NK: (weight_NK.detach() / scales_N[:, None]).round_().to(torch.int8), SCALES_N: scales_N}


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the tensors stand for, float32[N, K]."""
    return tensors[LEVELS_NK].float() * tensors[SCALES_N][:, None]


class Int8Linear(nn.Module):
    """Weights in 8 bits with a scale for each output. Inputs have 16: a first digit of 8 bits and a second of what it leaves over.

    One digit would be faster for many rows, and wrong: what comes before a head has a few large values that take all its levels. A
    digit goes from -`digit` to `digit` and is stored above `zero`: 127 and 128, or 63 and 64 on processors that add two products of
    8 bits in 16. What the other rows hold changes nothing.
    """

    number_format = "int8"
    scales_N: torch.Tensor
    zeros_N: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None = None, *, digits: int = 2) -> None:
        """digits: of the inputs, 2 or 1."""
        super().__init__()
        self.digits = digits
        levels_NK, scales_N = tensors[LEVELS_NK], tensors[SCALES_N]
        self.out_features, self.in_features = levels_NK.shape
        self.whole = sums_are_whole()
        self.digit, self.zero = (127, 128) if self.whole else (63, 64)
        zeros_N = torch.zeros(len(scales_N), dtype=torch.long)
        self.packed = (
            torch.ops.onednn.qlinear_prepack(levels_NK.contiguous(), None)  # it ignores strides
            if self.whole
            else torch.ops.quantized.linear_prepack(
                torch._make_per_channel_quantized_tensor(levels_NK, scales_N.double(), zeros_N, 0),  # noqa: SLF001 - its public name is this
                None,
            )
        )
        self.register_buffer("scales_N", scales_N, persistent=False)
        self.register_buffer("zeros_N", zeros_N, persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        rows_MK = input_BTK.reshape(-1, self.in_features)
        steps_M1 = rows_MK.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / self.digit
        scaled_MK = rows_MK / steps_M1
        first_MK = scaled_MK.round()
        if self.digits == 1:
            product_MN = self._products(first_MK).mul_(steps_M1)
        else:
            second_MK = (scaled_MK - first_MK).mul_(2 * self.digit).round_()
            high_MN, low_MN = self._products(torch.cat((first_MK, second_MK))).chunk(2)
            product_MN = high_MN.add_(low_MN, alpha=1 / (2 * self.digit)).mul_(steps_M1)
        if self.bias is not None:
            product_MN = product_MN.add_(self.bias)
        return product_MN.view(*input_BTK.shape[:-1], self.out_features)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy_sharing(self, memo, self.packed)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the layer was made of: levels int8[N, K] and scales float32[N]."""
        if self.whole:
            return {LEVELS_NK: self.packed.to_dense().t().contiguous(), SCALES_N: self.scales_N}
        return {LEVELS_NK: torch.ops.quantized.linear_unpack(self.packed)[0].int_repr(), SCALES_N: self.scales_N}

    def _products(self, digits_MK: torch.Tensor) -> torch.Tensor:
        """Whole numbers from -digit to digit, float32[M, K] -> their exact products with the weights, float32[M, N]."""
        if self.whole:
            product_MN: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
                digits_MK.add_(self.zero).to(torch.uint8), 1.0, self.zero, self.packed, self.scales_N, self.zeros_N,
                None, 1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
            return product_MN
        # The library chooses a scale from the least and the greatest number; two more rows of those make it 1.
        extremes_2K = digits_MK.new_tensor([[-self.zero], [self.digit]]).expand(2, digits_MK.shape[1])
        product_MN = torch.ops.quantized.linear_dynamic(torch.cat((digits_MK, extremes_2K)), self.packed, True)
        return product_MN[:-2]


class Int8Embedding(nn.Module):
    """Rows of a table in 8 bits, each with a scale of its own."""

    number_format = "int8"
    levels_VK: torch.Tensor
    scales_V: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor], _: torch.Tensor | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = tensors[LEVELS_NK].shape
        self.register_buffer("levels_VK", tensors[LEVELS_NK], persistent=False)
        self.register_buffer("scales_V", tensors[SCALES_N], persistent=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """int[B, T] -> float32[B, T, K]."""
        return self.levels_VK[tokens_BT].float() * self.scales_V[tokens_BT][..., None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the table was made of."""
        return {LEVELS_NK: self.levels_VK, SCALES_N: self.scales_V}


@cache
def sums_are_whole() -> bool:
    """Whether this processor adds products of 8 bits in 32; without such instructions (VNNI) two of them meet in 16, and are cut."""
    columns = 32
    ones = torch.full((1, columns), LEVELS, dtype=torch.int8)
    product = torch.ops.onednn.qlinear_pointwise(
        torch.full((1, columns), 255, dtype=torch.uint8), 1.0, 0, torch.ops.onednn.qlinear_prepack(ones, None), torch.ones(1),
        torch.zeros(1, dtype=torch.long), None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return float(product) == 255 * LEVELS * columns


FORMAT = LayerFormat(quantise=quantise, layer=Int8Linear, dequantise=dequantise)
TABLE = LayerFormat(quantise=quantise, layer=Int8Embedding, dequantise=dequantise)


def int8() -> Kernel:
    """The kernel of the card `kernels/int8`."""
    return Kernel(linear=FORMAT, embedding=TABLE)


def int8_dynamic() -> Kernel:
    """The kernel of the card `kernels/int8-dynamic`: one digit of inputs, half the work of `int8` and an error that is seen."""
    one_digit = LayerFormat(quantise=quantise, layer=partial(Int8Linear, digits=1), dequantise=dequantise)
    return Kernel(linear=one_digit, head=FORMAT, embedding=TABLE)


def int8_weights() -> Kernel:
    """The kernel of the card `kernels/int8-weights`: inputs stay as they are, and gradients reach them."""
    exact = partial(PlainLinear, dequantise=dequantise, number_format="int8-weights")
    return Kernel(linear=LayerFormat(quantise=quantise, layer=exact, dequantise=dequantise))
