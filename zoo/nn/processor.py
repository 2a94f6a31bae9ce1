"""What the processor can do, where a choice depends on it."""

import torch


def multiplies_in_bfloat16() -> bool:
    """Whether it has bfloat16 products; without, they are float32 products with conversions, and slow."""
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001 - their public names are these
