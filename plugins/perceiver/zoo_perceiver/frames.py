"""Features, frame by frame: what every bridge begins with."""

from __future__ import annotations

import torch

from zoo.api import Encoded, UsageError


def split_frames(encoded: Encoded, frames: int, *, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of F frames -> float[B, F, T, D] in the bridge's number format, mask bool[B, F, T].

    width: D that the bridge was built for. Padding is set to zero: attention gives it no weight, but no weight times NaN is NaN.
    Raises UsageError for features of another width, for less than one frame and for frames of unequal length.
    """
    batch, count, given = encoded.tokens_BTD.shape
    if given != width:
        raise UsageError(f"this bridge reads features {width} wide (its input_width), got features {given} wide")
    if frames < 1:
        raise UsageError(f"frames must be at least 1, got {frames}")
    if count % frames:
        raise UsageError(
            f"every frame has as many tokens, so frames must divide them, got {count} tokens and frames={frames}"
        )
    tokens_BTD = encoded.tokens_BTD.to(dtype).masked_fill(~encoded.mask_BT[..., None], 0.0)
    return tokens_BTD.view(batch, frames, count // frames, width), encoded.mask_BT.view(batch, frames, count // frames)
