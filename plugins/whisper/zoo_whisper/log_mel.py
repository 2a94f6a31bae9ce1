"""A sound -> what Whisper hears: the logarithm of 80 or 128 mel bands, 100 times a second.

The filters are openai-whisper's, and the numbers those of its `log_mel_spectrogram`. There the whole recording is one array, since the quietest
level that counts lies 8 below the loudest of all; here that level is found in a first pass and windows are computed in a second,
so that an hour takes no more memory than a minute.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from zoo.api import AudioReader
from zoo_whisper.openai_package import openai_whisper

SAMPLE_RATE_HZ = 16_000
FFT, HOP = 400, 160
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP
WINDOW_FRAMES = 3_000  # 30 s
QUIETEST = 8.0  # below the loudest, in powers of ten; less is raised to that
CHUNK_FRAMES = WINDOW_FRAMES
SILENT = -10.0  # the logarithm of what no filter hears


class LogMel:
    """Windows of the log-mel of one sound. `frames` is how many frames of 10 ms it has."""

    def __init__(self, reader: AudioReader, bands: int) -> None:
        """reader: at 16 kHz. It is read once to the end, and from its start again for the windows."""
        self.reader, self.bands = reader, bands
        self.frames, self.loudest = self._survey()
        reader.rewind()

    def window(self, first: int, count: int) -> torch.Tensor:
        """Frames `first` to `first + count`, float[bands, count], as the model takes them."""
        count = max(0, min(count, self.frames - first))
        if not count:
            return torch.empty(self.bands, 0)
        logarithms = self._logarithms(first, count)
        return (torch.maximum(logarithms, logarithms.new_tensor(self.loudest - QUIETEST)) + 4.0) / 4.0

    def _survey(self) -> tuple[int, float]:
        """The number of whole frames, and the loudest value in all of them and in the cut one after the last."""
        total, loudest = 0, SILENT
        held, begun = torch.empty(0), False  # from the first sample of the next frame on
        for block in self.reader.blocks():
            total += len(block)
            held = torch.cat((held, torch.from_numpy(block)))
            if not begun and len(held) > FFT // 2:
                held, begun = mirrored(held), True
            ready = 1 + (len(held) - FFT) // HOP
            if begun and ready >= CHUNK_FRAMES:
                loudest = max(loudest, self._loudest_of(held, ready))
                held = held[ready * HOP :]
        held = torch.cat((held, torch.zeros(FFT)))
        if not begun:
            held = mirrored(held)
        return total // HOP, max(loudest, self._loudest_of(held, 1 + (len(held) - FFT) // HOP))

    def _loudest_of(self, samples: torch.Tensor, frames: int) -> float:
        starts = range(0, frames, CHUNK_FRAMES)
        pieces = (samples[first * HOP : (min(first + CHUNK_FRAMES, frames) - 1) * HOP + FFT] for first in starts)
        return max((float(_log_mel(piece, self.bands).max()) for piece in pieces), default=SILENT)

    def _logarithms(self, first: int, count: int) -> torch.Tensor:
        start, length = first * HOP - FFT // 2, (count - 1) * HOP + FFT
        missing = max(0, -start)
        samples = torch.from_numpy(self.reader.read(max(0, start), length - missing))
        wanted = max(length - missing, FFT // 2 + 1)  # what is mirrored lies inside, too
        samples = nn.functional.pad(samples, (0, wanted - len(samples)))
        return _log_mel((mirrored(samples) if missing else samples)[:length], self.bands)


def padded(mel_CT: torch.Tensor) -> torch.Tensor:
    """A window, filled with zeros to 30 s, float[bands, 3000]."""
    return nn.functional.pad(mel_CT, (0, WINDOW_FRAMES - mel_CT.shape[1]))


def log_mel(samples_BN: torch.Tensor, bands: int) -> torch.Tensor:
    """Sounds of up to 30 s at 16 kHz, float[B, N], silent after their end -> float[B, bands, 3000], each by its own loudest value."""
    audio = openai_whisper().audio
    return torch.stack([audio.log_mel_spectrogram(audio.pad_or_trim(samples), bands) for samples in samples_BN])


def mirrored(samples: torch.Tensor) -> torch.Tensor:
    """With half a window of itself, mirrored, before the first sample: the first frame is centred there."""
    return torch.cat((samples[1 : FFT // 2 + 1].flip(0), samples))


def _log_mel(samples: torch.Tensor, bands: int) -> torch.Tensor:
    """float[N] -> float[bands, 1 + (N - 400) // 160]."""
    spectrum = torch.stft(samples, FFT, HOP, window=_window(), center=False, return_complex=True)
    return (_filters(bands) @ spectrum.abs().square()).clamp(min=10**SILENT).log10()


@cache
def _window() -> torch.Tensor:
    return torch.hann_window(FFT)


def _filters(bands: int) -> torch.Tensor:
    """The mel filters that the model was trained with, float[bands, 201]; read once."""
    filters: torch.Tensor = openai_whisper().audio.mel_filters("cpu", bands)
    return filters
