"""Weights in 4 bits with a step and a least for each group of 32: the arithmetic of GGUF's Q4_1."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear, pad

from zoo.api import Kernel, LayerFormat, UsageError
from zoo_kernels import bf16, int8

GROUP = 32  # weights that share a step
# Up to here reading the weights decides the time, and 4 bits win; above it arithmetic does, and bfloat16 wins.
FEW_ROWS = 16
PACK_ROWS = (64, 32)  # rows that torch's 4-bit layout interleaves: with AVX-512, and with AVX2
SMALLEST_HALF = 2.0**-14  # of the float16 numbers with all their digits
LEVELS_NK, GROUPS_NG2 = "levels", "steps_and_middles"
Q4_1, HEAD_BYTES, BLOCK_BYTES = "Q4_1", 4, 20  # a block: step and least in float16, then two levels a byte


def quantise(weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """float32[N, K] -> levels from 0 to 15, two in a byte, uint8[N, K / 2]; for each group the step and the middle (level 8), bfloat16[N, K / 32, 2]."""
    levels_NK, steps_NG, least_NG = four_bits(weight_NK.detach().float())
    return {LEVELS_NK: _pairs(levels_NK.to(torch.uint8)), GROUPS_NG2: _steps_and_middles(steps_NG, least_NG)}


def from_blocks(rows_NX: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same of the blocks of a Q4_1 weight, uint8[N, bytes of a row]: its own levels, no weight in between."""
    levels_NK, both_NG2 = _of_blocks(rows_NX)
    return {LEVELS_NK: _pairs(levels_NK), GROUPS_NG2: both_NG2}


def _of_blocks(rows_NX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels uint8[N, K], and steps and middles, of blocks. Raises UsageError for a step or least that is NaN or infinite."""
    blocks_NGX = rows_NX.view(len(rows_NX), -1, BLOCK_BYTES)
    halves_NG2 = blocks_NGX[..., :HEAD_BYTES].contiguous().view(torch.float16).float()
    if not bool(halves_NG2.isfinite().all()):
        raise UsageError(
            "a block of Q4_1 has a step or a least that is NaN or infinite: the file is damaged, fetch it anew"
        )
    bytes_NGX = blocks_NGX[..., HEAD_BYTES:]  # the low halves are the first 16 levels of the block, the high ones the last
    levels_NK = torch.empty(*bytes_NGX.shape[:2], GROUP, dtype=torch.uint8)
    torch.bitwise_and(bytes_NGX, 15, out=levels_NK[..., : GROUP // 2])
    torch.bitwise_right_shift(bytes_NGX, 4, out=levels_NK[..., GROUP // 2 :])
    return levels_NK.flatten(1), _steps_and_middles(halves_NG2[..., 0], halves_NG2[..., 1])


def _steps_and_middles(steps_NG: torch.Tensor, least_NG: torch.Tensor) -> torch.Tensor:
    """The middle is what torch's products count from, and bfloat16 what they take: bfloat16[N, G, 2]."""
    return torch.stack((steps_NG, least_NG + 8 * steps_NG), -1).bfloat16()


def _pairs(levels_NK: torch.Tensor) -> torch.Tensor:
    """Levels uint8[N, K] -> two in a byte, uint8[N, K / 2]."""
    return levels_NK[:, ::2] | (levels_NK[:, 1::2] << 4)


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the tensors stand for, float32[N, K]."""
    levels_NK = _levels(tensors[LEVELS_NK])
    steps_NG1, middles_NG1 = tensors[GROUPS_NG2].float()[..., None].unbind(2)
    groups_NGX = levels_NK.view(len(levels_NK), -1, GROUP).float()
    return groups_NGX.sub_(8).mul_(steps_NG1).add_(middles_NG1).flatten(1)


def _levels(pairs_NX: torch.Tensor) -> torch.Tensor:
    """Two levels a byte, uint8[N, K / 2] -> uint8[N, K]."""
    return torch.stack((pairs_NX & 15, pairs_NX >> 4), -1).flatten(1)


class Int4Linear(nn.Module):
    """Sixteen levels between the least and the greatest weight of each group of 32 in a row; inputs in bfloat16.

    A few rows are multiplied by the 4-bit weights themselves, many by a bfloat16 copy that is made for the call. What the other rows
    hold changes nothing; how many there are may change the last digits.
    """

    number_format = "int4"
    packed: torch.Tensor
    scales_and_zeros: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, tensors: Mapping[str, torch.Tensor], bias_N: torch.Tensor | None = None) -> None:
        super().__init__()
        if Q4_1 in tensors:
            levels_NK, both_NG2 = _of_blocks(tensors[Q4_1])
        else:
            levels_NK, both_NG2 = _levels(tensors[LEVELS_NK]), tensors[GROUPS_NG2]
        self.out_features, self.in_features = levels_NK.shape
        both_GN2, missing = both_NG2.transpose(0, 1), -len(levels_NK) % max(PACK_ROWS)
        if missing:
            levels_NK, both_GN2 = pad(levels_NK, (0, 0, 0, missing)), pad(both_GN2, (0, 0, 0, missing))
        both_GN2 = both_GN2.contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels_NK.int(), 1)  # noqa: SLF001 - its public name is this
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scales_and_zeros", both_GN2, persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)
        self.pack_rows = pack_rows()
        self.unknown = levels_NK if self.pack_rows is None else None

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        columns, outputs = self.in_features, self.out_features
        rows_MK = input_BTK.reshape(-1, columns).to(torch.bfloat16, memory_format=torch.contiguous_format)
        if rows_MK.shape[0] <= FEW_ROWS or self.pack_rows is None:
            product_MN = torch.ops.aten._weight_int4pack_mm_for_cpu(  # noqa: SLF001 - its public name is this
                rows_MK, self.packed, GROUP, self.scales_and_zeros
            )
        else:
            product_MN = linear(rows_MK, self.dequantised())
        if product_MN.shape[1] != outputs:  # rows that only fill the layout
            product_MN = product_MN[:, :outputs]
        output_MN: torch.Tensor = product_MN.float()
        if self.bias is not None:
            output_MN = output_MN.add_(self.bias)
        return output_MN if input_BTK.ndim == 2 else output_MN.view(*input_BTK.shape[:-1], outputs)

    def dequantised(self) -> torch.Tensor:
        """The weights, bfloat16[N, K], N rounded up to the layout's rows."""
        if self.pack_rows is None:
            raise UsageError("this processor's 4-bit layout is not known: multiply by it, a few rows at a time")
        scales_NG1, zeros_NG1 = self.scales_and_zeros.transpose(0, 1)[..., None].unbind(2)
        groups_NGX = unpacked(self.packed, self.pack_rows).view(self.packed.shape[0], -1, GROUP).float()
        return groups_NGX.sub_(8).mul_(scales_NG1).add_(zeros_NG1).bfloat16().flatten(1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the layer was made of, as `quantise` gives it."""
        rows = self.pack_rows
        levels_NK = (unpacked(self.packed, rows) if rows is not None else self.unknown)[: self.out_features]  # type: ignore[index]  # one of the two is there
        return {
            LEVELS_NK: _pairs(levels_NK),
            GROUPS_NG2: self.scales_and_zeros[:, : self.out_features].transpose(0, 1).contiguous(),
        }


def four_bits(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32[N, K] -> levels int32[N, K] from 0 to 15, and for each group of 32 the step and the least, float32[N, K/32].

    Steps and leasts are rounded to float16, as a Q4_1 block stores them, where that can hold them.
    """
    groups_NGX = weight_NK.reshape(len(weight_NK), -1, GROUP)
    least_NG, greatest_NG = torch.aminmax(groups_NGX, dim=-1)
    steps_NG, least_NG = _as_in_a_block((greatest_NG - least_NG) / 15), _as_in_a_block(least_NG)
    safe_NG = torch.where(steps_NG > 0, steps_NG, torch.ones_like(steps_NG))
    levels_NGX = ((groups_NGX - least_NG[..., None]) / safe_NG[..., None]).round_().clamp_(0, 15)
    return levels_NGX.flatten(1).int(), steps_NG, least_NG


def _as_in_a_block(numbers: torch.Tensor) -> torch.Tensor:
    """Rounded to float16; as they are where that would be infinity or fewer than its full digits."""
    rounded = numbers.half().float()
    held = (numbers == 0) | ((numbers.abs() >= SMALLEST_HALF) & rounded.isfinite())
    return torch.where(held, rounded, numbers)


def unpacked(packed: torch.Tensor, pack_rows: int) -> torch.Tensor:
    """The 4-bit layout of torch, uint8[N, K/2] -> levels uint8[N, K]: `pack_rows` rows lie together, column by column, row r in the
    low half of a byte and row r + pack_rows / 2 in the high half.
    """
    rows, half = packed.shape
    blocks = packed.view(rows // pack_rows, 2 * half, pack_rows // 2)
    return torch.cat((blocks & 15, blocks >> 4), -1).transpose(1, 2).reshape(rows, 2 * half)


@cache
def pack_rows() -> int | None:
    """Rows that torch's layout interleaves on this processor. It is torch's own affair: None where it is none that `unpacked` knows."""
    levels_NK = torch.randint(
        0, 16, (2 * max(PACK_ROWS), 2 * GROUP), dtype=torch.int32, generator=torch.Generator().manual_seed(0)
    )
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels_NK, 1)  # noqa: SLF001 - its public name is this
    return next((rows for rows in PACK_ROWS if torch.equal(unpacked(packed, rows), levels_NK.to(torch.uint8))), None)


def fits(outputs: int, inputs: int) -> bool:
    """Whether the inputs are whole groups."""
    return outputs > 0 and inputs > 0 and inputs % GROUP == 0


FORMAT = LayerFormat(quantise=quantise, layer=Int4Linear, dequantise=dequantise, fits=fits, blocks=(Q4_1,))


def int4() -> Kernel:
    """The kernel of the card `kernels/int4`: 8 bits for a decoder's head and table, which are read once and decide most."""
    return Kernel(linear=FORMAT, head=int8.FORMAT, embedding=int8.TABLE, otherwise=bf16.FORMAT)
