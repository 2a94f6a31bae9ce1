"""Where in time a frame stands: one learned vector for each frame, stretched over longer videos."""

from __future__ import annotations

import torch
from torch import nn


class TimeEmbedding(nn.Module):
    """A vector for each of the N real frames of a video, out of M learned ones.

    Up to M frames take the first N of them, as in OpenFlamingo. More are spread evenly from the first to the last, each between
    two neighbours by linear interpolation: so Flamingo, trained on 8 frames, reads 30 (Alayrac et al. 2022,
    arXiv:2204.14198). Frames of padding are not counted, so a short video has the same vectors beside a long one as alone.
    """

    def __init__(self, most_frames: int, width: int) -> None:
        """most_frames: M."""
        super().__init__()
        self.table = nn.Parameter(torch.randn(most_frames, width))

    def forward(self, real_BF: torch.Tensor) -> torch.Tensor:
        """bool[B, F], True where a frame is real -> float[B, F, D]; what stands for padding means nothing."""
        last = len(self.table) - 1
        place_BF = (real_BF.cumsum(1) - 1).clamp(min=0)
        count_B1 = real_BF.sum(1, keepdim=True)
        spread_BF = place_BF * last / (count_B1 - 1).clamp(min=1)
        place_BF = torch.where(count_B1 > last + 1, spread_BF, place_BF.to(spread_BF.dtype))
        before_BF = place_BF.long()
        after_BF = (before_BF + 1).clamp(max=last)
        share_BF1 = (place_BF - before_BF)[..., None].to(self.table.dtype)
        return torch.lerp(self.table[before_BF], self.table[after_BF], share_BF1)
