"""The default kernel, "float32": layers that are laid out once for running alone, and round nothing.

What the other rows hold changes nothing. How many there are may change the last digits, since few and many rows take different paths
through the library. None has parameters: they are made from a trained weight, and run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from zoo.nn.kernels.contract import Kernel, LayerFormat
from zoo.nn.memory import copy_sharing

MANY_ROWS = 512  # that a layout is chosen for; it suits one row as well (measured)
WEIGHT = "weight"


class PackedLinear(nn.Module):
    """Products in float32, laid out once for oneDNN where torch has it."""

    number_format = "float32"
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        weight = weight_NK.detach().float().contiguous()
        self.packed = weight.device.type == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, MANY_ROWS)  # noqa: SLF001 - its public name is this
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        if self.packed:
            output = torch.ops.mkldnn._linear_pointwise(input_BTK, self.weight, None, "none", [], "")  # noqa: SLF001 - as above
        else:
            output = linear(input_BTK, self.weight)
        return _with_bias(output, self.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy_sharing(self, memo, *((self.weight,) if self.packed else ()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weight float32[N, K]."""
        return {WEIGHT: self.weight.to_dense() if self.packed else self.weight}


class HalfLinear(nn.Module):
    """Weights that are float16 numbers, kept as such; products and sums in float32, so that nothing is rounded.

    Half the bytes are read, which decides the time of a few rows. For weights of which `halves_exactly` is true.
    """

    number_format = "float16"
    bias: torch.Tensor | None

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight_NK.detach().float(), None)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        rows_MK = input_BTK.reshape(-1, self.in_features)  # the product takes no fewer than two axes
        output_MN: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(rows_MK, self.packed)
        return _with_bias(output_MN, self.bias).view(*input_BTK.shape[:-1], self.out_features)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy_sharing(self, memo, self.packed)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weight float16[N, K]."""
        weight_NK: torch.Tensor = torch.ops.quantized.linear_unpack_fp16(self.packed)[0]
        return {WEIGHT: weight_NK.half()}


class HalfEmbedding(nn.Module):
    """Rows of a table of float16 numbers, kept as such; what is looked up is float32. For weights of which `halves_exactly` is true."""

    number_format = "float16"
    rows_VK: torch.Tensor

    def __init__(self, weight_VK: torch.Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight_VK.shape
        self.register_buffer("rows_VK", weight_VK.detach().half(), persistent=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """int[B, T] -> float32[B, T, K]."""
        return self.rows_VK[tokens_BT].float()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The table float16[V, K]."""
        return {WEIGHT: self.rows_VK}


def halves_exactly(weight_NK: torch.Tensor) -> bool:
    """Whether every weight is a float16 number, and torch has float16 products on this processor."""
    if "fbgemm" not in torch.backends.quantized.supported_engines or weight_NK.device.type != "cpu":
        return False
    weight_NK = weight_NK.detach()
    return all(bool((rows.half() == rows).all()) for rows in torch.split(weight_NK, 4096))


def _quantised(weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weight itself, in half the memory where it was published in float16."""
    return {WEIGHT: weight_NK.detach().half() if halves_exactly(weight_NK) else weight_NK.detach()}


def _layer(tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None) -> nn.Module:
    weight_NK = tensors[WEIGHT]
    if weight_NK.dtype == torch.float16:
        return HalfLinear(weight_NK, bias_N)
    return PackedLinear(weight_NK, bias_N)


def _table(tensors: Mapping[str, torch.Tensor], _: torch.Tensor | None) -> nn.Module | None:
    """A table of float16 numbers; any other stays the layer that it is."""
    return HalfEmbedding(tensors[WEIGHT]) if tensors[WEIGHT].dtype == torch.float16 else None


def _dequantised(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return tensors[WEIGHT].float()


EXACT_LINEAR = LayerFormat(quantise=_quantised, layer=_layer, dequantise=_dequantised)
EXACT = Kernel(
    linear=EXACT_LINEAR,
    embedding=LayerFormat(quantise=_quantised, layer=_table, dequantise=_dequantised),
)


def _with_bias(output: torch.Tensor, bias_N: torch.Tensor | None) -> torch.Tensor:
    return output if bias_N is None else output.add_(bias_N)
