"""Sounds -> blocks of mono samples as they were recorded, counted against the limits: of files, of bytes, and of what is in memory.

Files are decoded in blocks, so that memory follows the block and never what a header claims. libsndfile decodes wav, flac, ogg
(vorbis and opus), mp3 and aiff.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from zoo.errors import MediaError, ZooError
from zoo.media.audio_channels import Mixer
from zoo.media.audio_parts import Part, PartFile
from zoo.media.file import describe_content
from zoo.media.resampling import Samples, need, resampled_blocks
from zoo.registry.activation import warn

# Few decoders: each is code that hostile bytes reach.
FORMATS = {
    "WAV": "wav",
    "WAVEX": "wav",
    "RF64": "wav",
    "FLAC": "flac",
    "OGG": "ogg, opus",
    "MPEG": "mp3",
    "MP3": "mp3",
    "AIFF": "aiff",
}
MAX_BYTES = 4_000_000_000
MAX_CHANNELS = 64
LOUDEST = 1e6  # times full scale; more is no sound, and overflows in what is computed of it
KNOWN_S = 1e9  # longer claims are how headers say that they do not know
RATES_HZ = (1_000, 768_000)
CANCEL = "cancel each other"
BLOCK_NUMBERS = 1 << 20  # decoded at a time, all channels together: 4 MB


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds of sound, and seconds of decoding, after which a source is refused."""

    duration_s: float
    decode_s: float


class Decoder(Protocol):
    """Blocks of one source, mono, as recorded; counted against the limits.

    label: what errors call the source. warnings: what was said of it, each once. duration_s: what it says of its length, 0 where it says nothing; how long it is, once it
    was decoded to its end.
    """

    label: str
    rate_hz: int
    duration_s: float
    warnings: list[str]

    def blocks(self) -> Iterator[Samples]:
        """From where the decoder stands to the end."""
        ...

    def rewind(self) -> None:
        """Start again."""
        ...


class SamplesDecoder:
    """A sound that is in memory already: float32[N]."""

    def __init__(self, label: str, samples: Samples, rate_hz: int, limits: Limits) -> None:
        self.label, self.samples, self.rate_hz = label, samples, rate_hz
        self.duration_s = len(samples) / rate_hz
        self.warnings: list[str] = []
        _refuse_long(label, self.duration_s, limits)

    def blocks(self) -> Iterator[Samples]:
        for start in range(0, len(self.samples), BLOCK_NUMBERS):
            yield self.samples[start : start + BLOCK_NUMBERS]

    def rewind(self) -> None:
        """Nothing to do: each call of `blocks` begins at the start."""


class FileDecoder:
    """A file as libsndfile decodes it: its parts one after the other, the channels of each averaged."""

    def __init__(self, label: str, raw: BinaryIO, parts: Sequence[Part], limits: Limits) -> None:
        """raw: the open file. parts: the sounds in it; none: it is one, as it stands. The rate of the first is the rate of all."""
        self.label, self.raw, self.parts, self.limits = label, raw, parts, limits
        self.warnings: list[str] = []
        self.file: Any = None  # libsndfile's, of the part that is read
        self.spent_s = claimed_s = 0.0
        try:
            for number in reversed(range(max(1, len(parts)))):  # the first stays open
                self.file = self._guarded(self._open, number)
                claimed_s += self.file.frames / self.file.samplerate
            self.duration_s = claimed_s if claimed_s < KNOWN_S else 0.0
            _refuse_long(label, self.duration_s, limits)
        except BaseException:
            if self.file is not None:
                self.file.close()
            raise
        self.rate_hz: int = self.file.samplerate
        for number, part in enumerate(parts, start=1):
            if part.warning:
                self.warn(part.warning if len(parts) == 1 else f"sound {number} of {len(parts)}: {part.warning}")

    def rewind(self) -> None:
        """Open the file anew: not every format can be sought in."""
        self.spent_s = 0.0
        self.file = self._guarded(self._open, 0)

    def blocks(self) -> Iterator[Samples]:
        done = 0
        for number in range(max(1, len(self.parts))):
            if number:
                self.file = self._guarded(self._open, number)
            blocks, rate_hz = self._mixed(self.file, done), self.file.samplerate
            for block in blocks if rate_hz == self.rate_hz else resampled_blocks(blocks, rate_hz, self.rate_hz):
                done += len(block)
                _refuse_long(self.label, done / self.rate_hz, self.limits)
                yield block
        if done / self.rate_hz < 0.99 * self.duration_s:
            self.warn(
                f"the header promises {self.duration_s:.1f} s, the file holds {done / self.rate_hz:.1f} s; what is there is used"
            )
        self.duration_s = done / self.rate_hz

    def warn(self, what: str) -> None:
        """Say it once, however often the file is read."""
        if what not in self.warnings:
            self.warnings.append(what)
            warn(f"{self.label}: {what}")

    def _open(self, number: int) -> Any:
        """A part as libsndfile's file, checked; the one before is closed."""
        if self.file is not None:
            self.file.close()
        if self.parts:
            label = self.label if len(self.parts) == 1 else f"{self.label}, sound {number + 1} of {len(self.parts)}"
            return checked(PartFile(self.raw, self.parts[number]), label)
        self.raw.seek(0)
        return checked(self.raw, self.label)

    def _mixed(self, file: Any, before: int) -> Iterator[Samples]:
        """Mono blocks of one part, behind `before` samples at the rate of the first."""
        mixer = Mixer(file.samplerate)
        frames = max(1, BLOCK_NUMBERS // file.channels)
        if frames > mixer.window:
            frames -= frames % mixer.window
        done = round(before * file.samplerate / self.rate_hz)
        while len(block := self._guarded(file.read, frames, dtype="float32", always_2d=True)):
            mono, cancel_at = mixer.mix(block)
            refuse_wild(mono, done, file.samplerate, self.label)
            if cancel_at is not None and not any(CANCEL in warning for warning in self.warnings):
                self.warn(
                    f"its channels {CANCEL} when they are averaged, from {(done + cancel_at) / file.samplerate:.1f} s on; "
                    f"where they do, channel {(mixer.taken or 0) + 1}, the louder, is taken"
                )
            done += len(block)
            yield mono

    def _guarded(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What the library gives, its errors as ours, and its time counted."""
        started = time.perf_counter()
        try:
            answer = call(*arguments, **named)
        except ZooError:
            raise
        except Exception as error:  # decoders raise whatever hostile bytes lead them to
            raise MediaError(f"{self.label}: a damaged sound ({error or type(error).__name__})") from error
        self.spent_s += time.perf_counter() - started
        if self.spent_s > self.limits.decode_s:
            raise MediaError(
                f"{self.label}: decoding took more than {self.limits.decode_s:g} s; raise max_decode_s if that is right"
            )
        return answer


def refuse_wild(samples: Samples, before: int, rate_hz: int, label: str) -> None:
    tame = np.abs(samples) <= LOUDEST  # which no NaN is
    if not tame.all():
        first = int(np.argmin(tame))
        raise MediaError(
            f"{label}: sample {before + first:,} ({(before + first) / rate_hz:.2f} s) is {samples[first]:g}; full scale is 1"
        )


def _refuse_long(label: str, duration_s: float, limits: Limits) -> None:
    if duration_s > limits.duration_s:
        raise MediaError(
            f"{label}: {duration_s:,.0f} s of sound or more, the limit is {limits.duration_s:,.0f} s; cut it, or "
            f"raise max_duration_s (zoo transcribe: --max-duration)"
        )


def checked(given: Any, label: str) -> Any:
    """An open file (anything with read, seek and tell), as libsndfile's, if it is of a format that is read."""
    expected = "expected wav, flac, ogg, opus, mp3, aiff, or m4a with ffmpeg"
    library = need("soundfile")
    try:
        file = library.SoundFile(given)
    except Exception as error:  # as above
        given.seek(0)
        raise MediaError(
            f"{label}: not a sound that can be read ({describe_content(given.read(64))}); {expected}"
        ) from error
    refused = ""
    if file.format not in FORMATS:
        refused = f"{file.format_info} is not among the formats that are read; {expected}"
    elif not 1 <= file.channels <= MAX_CHANNELS:
        refused = f"{file.channels} channels, the limit is {MAX_CHANNELS}"
    elif not RATES_HZ[0] <= file.samplerate <= RATES_HZ[1]:
        refused = f"the header says {file.samplerate:,} samples a second, expected {RATES_HZ[0]:,} to {RATES_HZ[1]:,}"
    if refused:
        file.close()
        raise MediaError(f"{label}: {refused}")
    if file.frames / file.samplerate >= KNOWN_S:  # a stream: the library seeks after each read, which fails at its end
        file.seekable = lambda: False
    return file
