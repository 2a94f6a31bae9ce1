"""Linear layers that are laid out, and rounded, for running alone. All take and give float32, so that one can stand for `nn.Linear`.

What the other rows hold changes nothing: where inputs are rounded, too, each row has a scale of its own. How many there are may
change the last digits, since few and many rows take different paths through the library. None has parameters: they are made from a trained weight, and run.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear, pad

from zoo.errors import UsageError

GROUP = 32  # weights that share a scale in 4 bits
MANY_ROWS = 512  # that a layout is chosen for; it suits one row as well (measured)
FEW_ROWS = (
    16  # up to here reading the weights decides the time, and 4 bits win; above it arithmetic does, and bfloat16 wins
)
PACK_ROWS = (64, 32)  # rows that torch's 4-bit layout interleaves: with AVX-512, and with AVX2
SMALLEST_HALF = 2.0**-14  # of the float16 numbers with all their digits
LEVELS = 127  # of an 8-bit weight, to either side


class PackedLinear(nn.Module):
    """Products in one format, laid out once for oneDNN where torch has it: float32, which rounds nothing, or bfloat16 with sums in
    float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.dtype, self.number_format = dtype, str(dtype).removeprefix("torch.")
        weight = weight_NK.detach().to(dtype).contiguous()
        self.packed = weight.device.type == "cpu" and _library_takes(dtype)
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, MANY_ROWS)  # noqa: SLF001 - its public name is this
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)

    def forward(self, input_BTK: torch.Tensor) -> torch.Tensor:
        """float32[..., K] -> float32[..., N]."""
        rounded = input_BTK.to(self.dtype)
        if self.packed:
            output = torch.ops.mkldnn._linear_pointwise(rounded, self.weight, None, "none", [], "")  # noqa: SLF001 - as above
        else:
            output = linear(rounded, self.weight)
        return _with_bias(output.float(), self.bias)


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


class Int4Linear(nn.Module):
    """Sixteen levels between the least and the greatest weight of each group of 32 in a row; inputs in bfloat16.

    It is the arithmetic of GGUF's Q4_1, so a weight that was published so is kept as it was (its scales rounded to
    bfloat16). A few rows are multiplied by the 4-bit weights themselves, many by a bfloat16 copy that is made for the call.
    """

    number_format = "int4"
    packed: torch.Tensor
    scales_and_zeros: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        levels_NK, scales_NG, least_NG = four_bits(weight_NK.detach().float())
        levels_NK = pad(levels_NK, (0, 0, 0, -len(levels_NK) % max(PACK_ROWS)))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels_NK, 1)  # noqa: SLF001 - its public name is this
        both_GN2 = torch.stack((scales_NG, least_NG + 8 * scales_NG), -1).transpose(0, 1)
        both_GN2 = pad(both_GN2, (0, 0, 0, len(levels_NK) - both_GN2.shape[1])).bfloat16().contiguous()
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scales_and_zeros", both_GN2, persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float(), persistent=False)
        # The layout is torch's own affair: where it is none that `unpacked` knows, few rows at a time must do.
        levels_NK = levels_NK.to(torch.uint8)
        self.pack_rows = next((rows for rows in PACK_ROWS if torch.equal(unpacked(packed, rows), levels_NK)), None)

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
        product_MN = _with_bias(product_MN.float(), self.bias)
        return product_MN if input_BTK.ndim == 2 else product_MN.view(*input_BTK.shape[:-1], outputs)

    def dequantised(self) -> torch.Tensor:
        """The weights, bfloat16[N, K], N rounded up to the layout's rows."""
        if self.pack_rows is None:
            raise UsageError("this processor's 4-bit layout is not known: multiply by it, a few rows at a time")
        scales_NG1, zeros_NG1 = self.scales_and_zeros.transpose(0, 1)[..., None].unbind(2)
        groups_NGX = unpacked(self.packed, self.pack_rows).view(self.packed.shape[0], -1, GROUP).float()
        return groups_NGX.sub_(8).mul_(scales_NG1).add_(zeros_NG1).bfloat16().flatten(1)


class Int8Linear(nn.Module):
    """Weights in 8 bits with a scale for each output. Inputs have 16: a first digit of 8 bits and a second of what it leaves over.

    One digit would be faster for many rows, and wrong: what comes before a head has a few large values that take all its levels. A
    digit goes from -`digit` to `digit` and is stored above `zero`: 127 and 128, or 63 and 64 on processors that add two products of
    8 bits in 16.
    """

    number_format = "int8"
    scales_N: torch.Tensor
    zeros_N: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.whole = sums_are_whole()
        self.digit, self.zero = (127, 128) if self.whole else (63, 64)
        levels_NK, scales_N = eight_bits(weight_NK.detach().float())
        zeros_N = torch.zeros(len(scales_N), dtype=torch.long)
        self.packed = (
            torch.ops.onednn.qlinear_prepack(levels_NK, None)
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
        second_MK = (scaled_MK - first_MK).mul_(2 * self.digit).round_()
        high_MN, low_MN = self._products(torch.cat((first_MK, second_MK)))
        product_MN = high_MN.add_(low_MN, alpha=1 / (2 * self.digit)).mul_(steps_M1)
        return _with_bias(product_MN, self.bias).view(*input_BTK.shape[:-1], self.out_features)

    def _products(self, digits_2MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole numbers from -digit to digit, float32[2 M, K] -> their exact products with the weights, float32[M, N] twice."""
        if self.whole:
            product = torch.ops.onednn.qlinear_pointwise(
                digits_2MK.add_(self.zero).to(torch.uint8), 1.0, self.zero, self.packed, self.scales_N, self.zeros_N,
                None, 1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
            high_MN, low_MN = product.chunk(2)
            return high_MN, low_MN
        # The library chooses a scale from the least and the greatest number; two more rows of those make it 1.
        extremes_2K = digits_2MK.new_tensor([[-self.zero], [self.digit]]).expand(2, digits_2MK.shape[1])
        product = torch.ops.quantized.linear_dynamic(torch.cat((digits_2MK, extremes_2K)), self.packed, True)
        high_MN, low_MN = product[:-2].chunk(2)
        return high_MN, low_MN


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


class Int8Embedding(nn.Module):
    """Rows of a table in 8 bits, each with a scale of its own."""

    number_format = "int8"
    levels_VK: torch.Tensor
    scales_V: torch.Tensor

    def __init__(self, weight_VK: torch.Tensor) -> None:
        super().__init__()
        levels_VK, scales_V = eight_bits(weight_VK.detach().float())
        self.num_embeddings, self.embedding_dim = levels_VK.shape
        self.register_buffer("levels_VK", levels_VK, persistent=False)
        self.register_buffer("scales_V", scales_V, persistent=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """int[B, T] -> float32[B, T, K]."""
        return self.levels_VK[tokens_BT].float() * self.scales_V[tokens_BT][..., None]


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


def eight_bits(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32[N, K] -> levels int8[N, K] from -127 to 127, and the step of each row, float32[N]."""
    scales_N = (weight_NK.abs().amax(1) / LEVELS).clamp(min=1e-30)
    return (weight_NK / scales_N[:, None]).round_().to(torch.int8), scales_N


def unpacked(packed: torch.Tensor, pack_rows: int) -> torch.Tensor:
    """The 4-bit layout of torch, uint8[N, K/2] -> levels uint8[N, K]: `pack_rows` rows lie together, column by column, row r in the
    low half of a byte and row r + pack_rows / 2 in the high half.
    """
    rows, half = packed.shape
    blocks = packed.view(rows // pack_rows, 2 * half, pack_rows // 2)
    return torch.cat((blocks & 15, blocks >> 4), -1).transpose(1, 2).reshape(rows, 2 * half)


@cache
def sums_are_whole() -> bool:
    """Whether this processor adds products of 8 bits in 32; without such instructions (VNNI) two of them meet in 16, and are cut."""
    ones = torch.full((1, GROUP), LEVELS, dtype=torch.int8)
    product = torch.ops.onednn.qlinear_pointwise(
        torch.full((1, GROUP), 255, dtype=torch.uint8), 1.0, 0, torch.ops.onednn.qlinear_prepack(ones, None), torch.ones(1),
        torch.zeros(1, dtype=torch.long), None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return float(product) == 255 * LEVELS * GROUP


def halves_exactly(weight_NK: torch.Tensor) -> bool:
    """Whether every weight is a float16 number, and torch has float16 products on this processor."""
    if "fbgemm" not in torch.backends.quantized.supported_engines or weight_NK.device.type != "cpu":
        return False
    weight_NK = weight_NK.detach()
    return all(bool((rows.half() == rows).all()) for rows in torch.split(weight_NK, 4096))


def multiplies_in_bfloat16() -> bool:
    """Whether this processor has bfloat16 products; without, they are float32 products with conversions, and slow."""
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001 - their public names are these


def _library_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of this format on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - its public name is this


def _with_bias(output: torch.Tensor, bias_N: torch.Tensor | None) -> torch.Tensor:
    return output if bias_N is None else output.add_(bias_N)
