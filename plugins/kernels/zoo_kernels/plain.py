"""A linear layer of any format in plain PyTorch: the weight is made anew for each product, and gradients reach the inputs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Dequantise = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


class _Product(torch.autograd.Function):
    """input @ weight.T, which keeps what the weight is made of for the way back, and no weight of float32."""

    @staticmethod
    def forward(context: Any, input_MK: torch.Tensor, layer: "PlainLinear") -> torch.Tensor:
        """float[M, K] -> float32[M, N]."""
        context.layer, context.dtype = layer, input_MK.dtype
        return input_MK.float() @ layer.weight().T

    @staticmethod
    def backward(context: Any, *pulls: torch.Tensor) -> tuple[torch.Tensor, None]:
        """float[M, N] of the output -> float[M, K] of the input."""
        return (pulls[0].float() @ context.layer.weight()).to(context.dtype), None


class PlainLinear(nn.Module):
    """Products in float32 with the weight that the tensors stand for. What it is slower than is said by `zoo bench kernels`."""

    passes_gradients = True
    bias: torch.Tensor | None

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        bias_N: torch.Tensor | None = None,
        *,
        dequantise: Dequantise,
        number_format: str,
    ) -> None:
        super().__init__()
        self.number_format, self.dequantise, self.names = number_format, dequantise, tuple(tensors)
        self.out_features, self.in_features = dequantise(tensors).shape
        for name, tensor in tensors.items():
            self.register_buffer(f"kept_{name}", tensor, persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        with torch.autocast(input_BTK.device.type, enabled=False):
            output_MN: torch.Tensor = _Product.apply(input_BTK.reshape(-1, self.in_features), self)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            output_MN = output_MN + self.bias
        return output_MN.view(*input_BTK.shape[:-1], self.out_features)

    def weight(self) -> torch.Tensor:
        """The weight float32[N, K], made anew."""
        return self.dequantise(self.tensors())

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the layer was made of."""
        return {name: getattr(self, f"kept_{name}") for name in self.names}
