"""Products in bfloat16, with sums in float32: the weight is laid out once for oneDNN where torch has it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from zoo.api import Kernel, LayerFormat
from zoo.nn import copy_sharing

WEIGHT = "weight"
MANY_ROWS = 512  # that a layout is chosen for; it suits one row as well (measured)


def quantise(weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """float32[N, K] -> the weight rounded to bfloat16, the nearest with ties to even."""
    return {WEIGHT: weight_NK.detach().bfloat16()}


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the tensors stand for, float32[N, K]."""
    return tensors[WEIGHT].float()


class Bf16Linear(nn.Module):
    """Inputs, weights and what comes out are bfloat16 numbers, sums float32. What the other rows hold changes nothing."""

    number_format = "bfloat16"
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None = None) -> None:
        super().__init__()
        weight_NK = tensors[WEIGHT].contiguous()
        self.out_features, self.in_features = weight_NK.shape
        self.packed = weight_NK.device.type == "cpu" and torch.backends.mkldnn.is_available() and _library_takes_bfloat16()  # type: ignore[no-untyped-call]
        if self.packed:
            weight_NK = torch.ops.mkldnn._reorder_linear_weight(weight_NK, MANY_ROWS)  # noqa: SLF001 - its public name is this
        self.register_buffer("weight", weight_NK, persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        rounded = input_BTK.bfloat16()
        if self.packed:
            output = torch.ops.mkldnn._linear_pointwise(rounded, self.weight, None, "none", [], "")  # noqa: SLF001 - as above
        else:
            output = linear(rounded, self.weight)
        output_BTN: torch.Tensor = output.float()
        return output_BTN if self.bias is None else output_BTN.add_(self.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy_sharing(self, memo, *((self.weight,) if self.packed else ()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weight bfloat16[N, K]."""
        return {WEIGHT: self.weight.to_dense() if self.packed else self.weight}


def _library_takes_bfloat16() -> bool:
    """Whether oneDNN lays out such weights on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - its public name is this


FORMAT = LayerFormat(quantise=quantise, layer=Bf16Linear, dequantise=dequantise)


def bf16() -> Kernel:
    """The kernel of the card `kernels/bf16`."""
    return Kernel(linear=FORMAT)
