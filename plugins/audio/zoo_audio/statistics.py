"""An embedding of sounds that nobody trained: how its log-mel answers random convolutions, and the path that its cepstra take.

Two halves, for two questions. What does it sound like: the share of time in which each of 192 fixed random kernels over time and
frequency answers, in the manner of ROCKET (Dempster et al. 2020, arXiv:1910.13051) on a spectrogram. What happens in it, in what order:
cepstra (Davis and Mermelstein 1980) at 32 points of equal change ("trace segmentation": Kuhn and Tomaschewski 1983), so that fast and
slow speakers of a word meet, as a two-dimensional cosine transform. Levels are relative to the sound's own loudest moment throughout.

`benchmarks/sound_shots.py` measures it against what was known, on kits, instruments and speakers that it never met.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool1d, conv1d, normalize, pad

from zoo.api import Encoded, Sound, to_waveforms

BANDS, FFT, WINDOW, HOP = 64, 512, 400, 160
LOWEST_HZ, HIGHEST_HZ = 40.0, 8000.0
SILENT_DB = -200.0  # a sound whose loudest moment lies below is silence
RANGE_DB = 60.0  # below the loudest value of a spectrogram: less is silence
KERNELS, LENGTH, DILATIONS = 64, 9, (1, 4, 16)
THRESHOLDS, STEEPNESS = (-0.3, 0.0, 0.3), 8.0  # of the share of time in which a kernel answers
SOUNDING_DB, SPEAKING_DB = 35.0, 50.0  # below the loudest frame: where the sound begins and ends
VOICE_BANDS = 48  # those below 4 kHz, which telephones carry
POINTS, TIMES, CEPSTRA, TURNS = 32, 12, 16, 13
BEND = 0.6  # of progress that is change; the rest is time
MEAN_WEIGHT, LOUDNESS_WEIGHT = 0.5, 0.3  # who speaks, and how loudly, against what is said
PATH_WEIGHT = 0.3


def statistics(*, preprocess: Mapping[str, Any]) -> nn.Module:
    """Build the embedding; it has no parameters. preprocess: sample_rate_hz, which is 16,000, and max_s."""
    return Statistics(preprocess)


class Statistics(nn.Module):
    """Sounds -> their log-mel, 100 tokens a second, and a vector float[1152] of constant length."""

    kernels_SKCT: torch.Tensor

    def __init__(self, preprocess: Mapping[str, Any]) -> None:
        super().__init__()
        self.numbers = dict(preprocess)
        self.register_buffer("kernels_SKCT", random_kernels(), persistent=False)

    def preprocess(self, items: Sequence[Sound]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sounds -> log-mel float[B, T, 64] in dB below the loudest of each, and mask bool[B, T].

        Raises UsageError for what is no Sound, MediaError for one that is too long.
        """
        samples_BN, real_BN = to_waveforms(items, self.numbers)
        rows = [decibels(samples[:count]) for samples, count in zip(samples_BN, real_BN.sum(1).tolist(), strict=True)]
        lengths_B = torch.tensor([len(row) for row in rows])
        levels_BTC = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-RANGE_DB)
        return levels_BTC, torch.arange(levels_BTC.shape[1]) < lengths_B[:, None]

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(log-mel float[B, T, 64] in dB, mask bool[B, T]) -> tokens from 0 (silence) to 1 (loudest), mask, vectors float[B, 1152]."""
        kernels = self.kernels_SKCT
        levels_BTC, mask_BT = inputs[0].to(kernels.device, torch.float32), inputs[1].to(kernels.device)
        pooled_BD = torch.stack(
            [_vector(levels[mask], kernels.float()) for levels, mask in zip(levels_BTC, mask_BT, strict=True)]
        )
        tokens_BTC = floored(levels_BTC) / RANGE_DB + 1
        return Encoded(tokens_BTC.to(kernels.dtype), mask_BT, pooled_BD.to(kernels.dtype))


def random_kernels() -> torch.Tensor:
    """float[dilations, kernels, bands, length]: each on a random run of bands, of mean 0 and norm 1, the same on every machine."""
    generator = np.random.RandomState(0)  # whose stream is frozen for ever; that of the newer generator is not
    kernels = np.zeros((len(DILATIONS), KERNELS, BANDS, LENGTH), np.float32)
    for kernel_CT in kernels.reshape(-1, BANDS, LENGTH):
        span = int(2 ** generator.uniform(2, 6))
        first = generator.randint(0, BANDS - span + 1)
        drawn = generator.standard_normal((span, LENGTH))
        kernel_CT[first : first + span] = drawn - drawn.mean()
        kernel_CT[:] = kernel_CT / np.linalg.norm(kernel_CT)
    return torch.from_numpy(kernels)


def decibels(samples_N: torch.Tensor) -> torch.Tensor:
    """Samples float[N] at 16 kHz -> mel powers float[T, 64] in dB below the loudest, T = 2 + N // 160 or one more."""
    from torchaudio.functional import melscale_fbanks

    filters = melscale_fbanks(FFT // 2 + 1, LOWEST_HZ, HIGHEST_HZ, BANDS, 16_000, norm=None, mel_scale="htk")
    filled = pad(samples_N, (FFT // 2, FFT // 2 + HOP))
    spectrum_FT = torch.stft(filled, FFT, HOP, WINDOW, torch.hann_window(WINDOW), center=False, return_complex=True)
    powers_TC = spectrum_FT.abs().square().T @ filters
    levels_TC: torch.Tensor = 10 * powers_TC.clamp_min(1e-30).log10()
    return levels_TC - levels_TC.max().clamp_min(SILENT_DB)


def floored(levels_TC: torch.Tensor) -> torch.Tensor:
    """No less than 60 dB below what the loudest value may be."""
    return levels_TC.clamp(-RANGE_DB, 0.0)


def _vector(levels_TC: torch.Tensor, kernels_SKCT: torch.Tensor) -> torch.Tensor:
    both = (normalize(texture(levels_TC, kernels_SKCT), dim=0), PATH_WEIGHT * normalize(path(levels_TC), dim=0))
    return torch.cat(both)


def texture(levels_TC: torch.Tensor, kernels_SKCT: torch.Tensor) -> torch.Tensor:
    """For each kernel the share of time above three thresholds, its largest and its smallest answer, float[960]."""
    sound_1CT = _heard(floored(levels_TC), SOUNDING_DB).T[None]
    found = []
    for kernels_KCT, dilation in zip(kernels_SKCT, DILATIONS, strict=True):
        edge = (LENGTH - 1) * dilation // 2
        answers_KT = conv1d(pad(sound_1CT, (edge, edge)), kernels_KCT, dilation=dilation)[0]
        found += [torch.sigmoid(STEEPNESS * (answers_KT - threshold)).mean(1) for threshold in THRESHOLDS]
        found += [answers_KT.amax(1), answers_KT.amin(1)]
    return torch.cat(found)


def path(levels_TC: torch.Tensor) -> torch.Tensor:
    """Cepstra at points of equal progress, their course over the path as cosines, float[192]."""
    voice_TC = levels_TC[:, :VOICE_BANDS]
    spoken_TC = _heard(floored(voice_TC - voice_TC.max()), SPEAKING_DB)
    count = len(spoken_TC)
    cepstra_TK = spoken_TC @ cosines(TURNS, VOICE_BANDS).to(spoken_TC).T
    smooth_TK = avg_pool1d(pad(cepstra_TK.T[None], (1, 1), mode="replicate"), 3, 1)[0].T
    changed_T = pad(smooth_TK.diff(dim=0).norm(dim=1).cumsum(0), (1, 0))
    time_T = torch.linspace(0, 1, max(count, 2), device=spoken_TC.device)[:count]
    progress_T = BEND * changed_T / changed_T[-1].clamp_min(1e-6) + (1 - BEND) * time_T
    points_P = (torch.arange(POINTS, device=spoken_TC.device) + 0.5) / POINTS
    apart_PT = (progress_T[None] - points_P[:, None]).abs()
    weights_PT = (1 - apart_PT * POINTS / 1.5).clamp_min(0)
    weights_PT[torch.arange(POINTS), apart_PT.argmin(1)] += 0.01  # a point that no frame is near takes the nearest
    along_PC = weights_PT / weights_PT.sum(1, keepdim=True) @ spoken_TC
    found = cosines(TIMES, POINTS).to(along_PC) @ along_PC @ cosines(CEPSTRA, VOICE_BANDS).to(along_PC).T
    found = found * torch.arange(1, CEPSTRA + 1, device=found.device).sqrt()
    found[0] *= MEAN_WEIGHT
    found[:, 0] *= LOUDNESS_WEIGHT
    return found.flatten()


def cosines(count: int, of: int) -> torch.Tensor:
    """The first `count` rows of the orthonormal cosine transform of `of` numbers (type II), float[count, of]."""
    rows = torch.cos(math.pi / of * (torch.arange(of) + 0.5) * torch.arange(count)[:, None]) * math.sqrt(2 / of)
    rows[0] /= math.sqrt(2)
    return rows


def _heard(levels_TC: torch.Tensor, below_db: float) -> torch.Tensor:
    """From the first to the last frame that is within `below_db` of the loudest, from 0 (silence) to 1."""
    energies_T = 10 * (10 ** (levels_TC / 10)).sum(1).log10()
    loud = (energies_T > energies_T.max() - below_db).nonzero().flatten()
    return levels_TC[int(loud[0]) : int(loud[-1]) + 1] / RANGE_DB + 1
