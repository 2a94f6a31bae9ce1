"""Sounds -> log-mel spectrograms of a batch, each row from its own sound alone.

The filters are torchaudio's; each sound is transformed by itself, so that no row knows how long the others are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from zoo.api import Sound, to_waveforms

QUIETEST = 1e-10  # power below which nothing is told apart


def log_mels(
    items: Sequence[Sound], preprocess: Mapping[str, Any], *, shortest_frames: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sounds -> log10 of mel powers float[B, T, bands], zero where a sound has ended, and mask bool[B, T].

    preprocess: the card's numbers: sample_rate_hz, max_s, bands, window and hop in samples, lowest_hz and highest_hz (half the rate
        when left out), norm of the filters ("slaney" for an area of 1) and scale ("slaney" or "htk").
    shortest_frames: shorter sounds are filled with silence to as many.
    Raises UsageError for what is no Sound, MediaError for one of more than max_s.
    """
    samples_BN, real_BN = to_waveforms(items, preprocess)
    hop = int(preprocess["hop"])
    rows = [
        _log_mel(pad(samples[:count], (0, max(0, (shortest_frames - 1) * hop - count))), preprocess)
        for samples, count in zip(samples_BN, real_BN.sum(1).tolist(), strict=True)
    ]
    longest = max(map(len, rows), default=0)
    mel_BTC = torch.stack([pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    lengths_B = torch.tensor([len(row) for row in rows])
    return mel_BTC, torch.arange(longest) < lengths_B[:, None]


def _log_mel(samples_N: torch.Tensor, preprocess: Mapping[str, Any]) -> torch.Tensor:
    """float[N] -> float[1 + N // hop, bands], frames centred on multiples of the hop, mirrored at both ends."""
    window = int(preprocess["window"])
    if len(samples_N) <= window // 2:  # too short to be mirrored
        samples_N = pad(samples_N, (0, window // 2 + 1 - len(samples_N)))
    spectrum_FT = torch.stft(
        samples_N, window, int(preprocess["hop"]), window=torch.hann_window(window), pad_mode="reflect", return_complex=True
    )
    power_TF = spectrum_FT.abs().square().T
    return (power_TF @ _filters(preprocess)).clamp(min=QUIETEST).log10()


def _filters(preprocess: Mapping[str, Any]) -> torch.Tensor:
    """float[window // 2 + 1, bands]."""
    from torchaudio.functional import melscale_fbanks

    filters: torch.Tensor = melscale_fbanks(
        n_freqs=int(preprocess["window"]) // 2 + 1,
        f_min=float(preprocess.get("lowest_hz", 0.0)),
        f_max=float(preprocess.get("highest_hz", preprocess["sample_rate_hz"] / 2)),
        n_mels=int(preprocess["bands"]),
        sample_rate=int(preprocess["sample_rate_hz"]),
        norm=preprocess.get("norm", "slaney"),
        mel_scale=preprocess.get("scale", "slaney"),
    )
    return filters
