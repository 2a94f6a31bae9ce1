"""The video Q-Former of Video-LLaMA (Zhang et al. 2023, arXiv:2306.02858): each frame is read alone, then all frames together.

A Q-Former as BLIP-2's gives the queries of each frame, the frame's learned position is added to them, and a second, short one,
which reads in every layer, makes one set of latents of them all. Written after the paper and the sizes that its published code
sets (32 queries and 32 positions, a second Q-Former of two layers); not compared with its numbers. More frames than there are
positions, which that refuses, stretch the learned ones.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from zoo.api import Encoded
from zoo_perceiver.checks import require_positive
from zoo_perceiver.frames import split_frames
from zoo_perceiver.qformer import QFormer
from zoo_perceiver.time_embedding import TimeEmbedding


class VideoQFormer(nn.Module):
    """A Q-Former for each frame, positions of frames, and a Q-Former over frames x queries (`zoo.api.Bridge`)."""

    def __init__(
        self, frame: QFormer, times: TimeEmbedding, video: QFormer, *, input_width: int, output_width: int | None
    ) -> None:
        super().__init__()
        self.frame, self.times, self.video = frame, times, video
        width = video.queries.shape[1]
        self.input_width, self.output_width = input_width, output_width or width
        self.output = nn.Identity() if output_width is None else nn.Linear(width, output_width)

    def forward(self, encoded: Encoded, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Features float[B, frames * T, D] -> latents float[B, L, W], mask bool[B, L], all real.

        A frame of padding alone is not read. Raises UsageError, see `split_frames`.
        """
        features_BFTD, mask_BFT = split_frames(encoded, frames, width=self.input_width, dtype=self.video.queries.dtype)
        real_BF = mask_BFT.any(2)
        queries_NQW = self.frame(features_BFTD.flatten(0, 1), mask_BFT.flatten(0, 1))
        queries_BFQW = queries_NQW.unflatten(0, real_BF.shape) + self.times(real_BF)[:, :, None]
        real_BS = real_BF.repeat_interleave(queries_BFQW.shape[2], 1)
        latents_BLW = self.output(self.video(queries_BFQW.flatten(1, 2), real_BS))
        return latents_BLW, real_BF.new_ones(latents_BLW.shape[:2])


def video_qformer(
    *,
    input_width: int,
    output_width: int | None = None,
    queries: int = 32,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int | None = None,
    cross_every: int = 2,
    video_queries: int = 32,
    video_layers: int = 2,
    video_cross_every: int = 1,
    most_frames: int = 32,
    epsilon: float = 1e-12,
) -> nn.Module:
    """The two Q-Formers with random weights.

    input_width: D, of the features. output_width: W, by a last linear layer (Video-LLaMA's projection to its language model); None:
        the latents as they are, `width` wide.
    queries: of each frame. video_queries: L. video_layers, video_cross_every: of the second Q-Former; the other numbers are those
        of `zoo_perceiver.qformer.qformer`, and shared. most_frames: number of learned positions.
    Raises UsageError for numbers below 1 and for heads that do not divide the width.
    """
    require_positive(
        input_width=input_width,
        output_width=output_width,
        queries=queries,
        layers=layers,
        width=width,
        heads=heads,
        hidden=hidden,
        cross_every=cross_every,
        video_queries=video_queries,
        video_layers=video_layers,
        video_cross_every=video_cross_every,
        most_frames=most_frames,
    )
    alike = partial(QFormer, width=width, heads=heads, hidden=hidden, epsilon=epsilon)
    frame = alike(source_width=input_width, queries=queries, layers=layers, cross_every=cross_every)
    video = alike(source_width=width, queries=video_queries, layers=video_layers, cross_every=video_cross_every)
    times = TimeEmbedding(most_frames, width)
    return VideoQFormer(frame, times, video, input_width=input_width, output_width=output_width)
