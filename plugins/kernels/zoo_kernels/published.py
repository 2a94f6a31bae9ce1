"""Weights as their file holds them: GGUF's blocks stay as they are, and adapters on them can be trained.

What is in no blocks becomes Q8_0: 32 weights share a step, in float16, and are whole numbers of it from -127 to 127.
"""

from collections.abc import Mapping

import torch
from torch import nn

from zoo.api import Kernel, LayerFormat
from zoo.api import dequantise as dequantise_blocks
from zoo_kernels import nf4
from zoo_kernels.plain import PlainLinear

GROUP, Q8_0, HEAD_BYTES = 32, "Q8_0", 2
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def quantise(weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """float32[N, K] -> blocks of Q8_0, uint8[N, K / 32 * 34]. A step that float16 cannot hold becomes the nearest that it can."""
    groups_NGX = weight_NK.detach().reshape(len(weight_NK), -1, GROUP)
    steps_NG1 = groups_NGX.abs().amax(-1, keepdim=True) / 127
    levels_NGX = (groups_NGX / steps_NG1.clamp(min=1e-38)).round().clamp(-127, 127)
    halves_NG1 = steps_NG1.clamp(max=torch.finfo(torch.float16).max).half()
    blocks_NGX = torch.cat((halves_NG1.view(torch.uint8), levels_NGX.to(torch.int8).view(torch.uint8)), -1)
    return {Q8_0: blocks_NGX.flatten(1)}


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the blocks stand for, float32[N, K]."""
    ((kind, rows_NX),) = tensors.items()
    return dequantise_blocks(rows_NX, kind)


def layer(tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None) -> nn.Module:
    """A linear layer that multiplies by the blocks."""
    (kind,) = tensors
    return PlainLinear(tensors, bias_N, dequantise=dequantise, number_format=kind.lower())


class PublishedEmbedding(nn.Module):
    """Rows of a table in blocks; those that are looked up are dequantised."""

    rows_VX: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor], _: torch.Tensor | None = None) -> None:
        super().__init__()
        ((self.kind, rows_VX),) = tensors.items()
        self.number_format = self.kind.lower()
        self.num_embeddings, self.embedding_dim = len(rows_VX), dequantise_blocks(rows_VX[:1], self.kind).shape[1]
        self.register_buffer("rows_VX", rows_VX, persistent=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """int[B, T] -> float32[B, T, K]."""
        found = dequantise_blocks(self.rows_VX[tokens_BT.reshape(-1)], self.kind)
        return found.view(*tokens_BT.shape, self.embedding_dim)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the table was made of."""
        return {self.kind: self.rows_VX}


def fits(outputs: int, inputs: int) -> bool:
    """Whether the inputs are whole blocks."""
    return outputs > 0 and inputs > 0 and inputs % GROUP == 0


FORMAT = LayerFormat(quantise=quantise, layer=layer, dequantise=dequantise, fits=fits, blocks=TYPES)
TABLE = LayerFormat(quantise=quantise, layer=PublishedEmbedding, dequantise=dequantise, fits=fits, blocks=TYPES)


def published() -> Kernel:
    """The kernel of the card `kernels/published`; layers of other widths are nf4, through which gradients pass, too."""
    return Kernel(linear=FORMAT, embedding=TABLE, otherwise=nf4.FORMAT)
