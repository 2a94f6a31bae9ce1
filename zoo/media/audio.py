"""Audio files and bytes -> mono samples, behind one gate with limits.

Every sound of the zoo passes here: the command line, Python and benchmarks hear the same samples and get the same errors. Files are
decoded in blocks (`zoo.media.audio_decoding`) and resampled as they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import MediaError, UsageError
from zoo.media.audio_decoding import RATES_HZ, Limits, SamplesDecoder, refuse_wild
from zoo.media.audio_opening import opened
from zoo.media.audio_reader import AudioReader
from zoo.media.resampling import Samples, resample

if TYPE_CHECKING:
    import torch

MAX_DURATION_S = 600.0  # of a sound that is held in memory whole: 38 MB at 16 kHz
MAX_DECODE_S = 600.0
MAX_SAMPLES = 1 << 27  # of a sound that is held in memory whole: half a gigabyte, whatever rate a header claims


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """One sound in memory: `samples` float32[N], mono, full scale at 1, and how many of them make a second."""

    samples: Samples
    sample_rate_hz: int

    def __post_init__(self) -> None:
        samples = np.asarray(self.samples)
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            axis = 0 if samples.ndim == 2 and samples.shape[0] < samples.shape[-1] else 1
            raise MediaError(
                f"a sound is float[N], mono, full scale at 1, got {samples.dtype}{list(samples.shape)}: "
                f"mix its channels (samples.mean({axis})), divide integers by their full scale"
            )
        whole = isinstance(self.sample_rate_hz, Integral)
        if not whole or not RATES_HZ[0] <= self.sample_rate_hz <= RATES_HZ[1]:
            raise MediaError(
                f"a sample rate is a whole number from {RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz, got {self.sample_rate_hz!r}"
            )
        with np.errstate(over="ignore"):  # what is too large for float32 is refused below
            samples = np.ascontiguousarray(samples, np.float32)
        refuse_wild(samples, 0, self.sample_rate_hz, "the sound")
        object.__setattr__(self, "samples", samples)

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


AudioSource = str | Path | bytes | Sound


def open_audio(
    source: AudioSource,
    *,
    sample_rate_hz: int | None = None,
    max_duration_s: float = MAX_DURATION_S,
    max_decode_s: float = MAX_DECODE_S,
    label: str | None = None,
) -> Sound:
    """Anything that is a sound -> `Sound`, its channels averaged.

    source: a path, the bytes of a file, or a Sound.
    sample_rate_hz: what it is resampled to; None: as it was recorded.
    max_duration_s, max_decode_s: seconds of sound, and seconds of decoding, after which it is refused.
    label: what errors call it, for bytes that came from somewhere with a name.
    Raises MediaError: what was given, why it cannot be read, what was expected.
    """
    with open_reader(
        source, sample_rate_hz=sample_rate_hz, max_duration_s=max_duration_s, max_decode_s=max_decode_s, label=label
    ) as reader:
        blocks, count = [], 0
        for block in reader.blocks():
            blocks.append(block)
            count += len(block)
            if count > MAX_SAMPLES:
                raise MediaError(
                    f"{reader.label}: more than {MAX_SAMPLES:,} samples at {reader.sample_rate_hz:,} Hz; cut it"
                )
        whole = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
        if not len(whole):
            raise MediaError(f"{reader.label}: it holds no sample")
        return Sound(whole, reader.sample_rate_hz)


@contextmanager
def open_reader(
    source: AudioSource,
    *,
    sample_rate_hz: int | None = None,
    max_duration_s: float = MAX_DURATION_S,
    max_decode_s: float = MAX_DECODE_S,
    label: str | None = None,
) -> Iterator[AudioReader]:
    """As `open_audio`, for a sound that is read piece by piece, in constant memory."""
    if sample_rate_hz is not None and not RATES_HZ[0] <= sample_rate_hz <= RATES_HZ[1]:
        raise UsageError(f"sample_rate_hz is from {RATES_HZ[0]:,} to {RATES_HZ[1]:,}, got {sample_rate_hz:,}")
    for name, limit_s in (("max_duration_s", max_duration_s), ("max_decode_s", max_decode_s)):
        if not limit_s > 0:  # which NaN is not: every sound would be short enough
            raise UsageError(f"{name} is a number of seconds above 0, got {limit_s}")
    limits = Limits(max_duration_s, max_decode_s)
    if isinstance(source, Sound):
        decoder = SamplesDecoder(label or "the sound", source.samples, source.sample_rate_hz, limits)
        yield AudioReader(decoder, sample_rate_hz or source.sample_rate_hz)
        return
    if not isinstance(source, (str, Path, bytes)):
        raise MediaError(
            f"a sound is a path, the bytes of a file, or zoo.Sound(samples, sample_rate_hz), got "
            f"{type(source).__name__}: an array says nothing of its rate"
        )
    label = label or (str(source) if isinstance(source, (str, Path)) else f"{len(source):,} bytes")
    with opened(source, label, limits) as file:
        yield AudioReader(file, sample_rate_hz or file.rate_hz)


def to_waveforms(sounds: Sequence[Sound], preprocess: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sounds -> samples float[B, N], zero where a sound has ended, and mask bool[B, N]; what most encoders of sounds begin with.

    preprocess: the card's numbers: sample_rate_hz, to which each is resampled, and max_s, the longest that the encoder takes.
    Raises UsageError for what is no Sound, MediaError for one that is longer.
    """
    import torch

    rate_hz = int(preprocess["sample_rate_hz"])
    rows = []
    for number, sound in enumerate(sounds):
        if not isinstance(sound, Sound):
            raise UsageError(f"an encoder of sounds takes zoo.Sound, item {number} is {type(sound).__name__}")
        limit_s = preprocess.get("max_s", math.inf)
        if sound.duration_s > limit_s:
            raise MediaError(f"a sound of {sound.duration_s:.1f} s: this encoder takes at most {limit_s:g} s, cut it first")
        rows.append(resample(torch.from_numpy(sound.samples), sound.sample_rate_hz, rate_hz))
        if not len(rows[-1]):
            raise MediaError(f"sound {number} holds no sample")
    longest = max(map(len, rows), default=0)
    samples_BN = torch.zeros(len(rows), longest)
    for row, samples in zip(samples_BN, rows, strict=True):
        row[: len(samples)] = samples
    lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return samples_BN, torch.arange(longest) < lengths_B[:, None]
