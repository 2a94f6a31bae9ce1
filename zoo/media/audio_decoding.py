"""Sounds -> blocks of mono samples as they were recorded, counted against the limits: of files, of bytes, and of what is in memory.

Files are decoded in blocks, so that memory follows the block and never what a header claims. libsndfile decodes wav, flac, ogg
(vorbis and opus), mp3 and aiff; m4a is turned into wav by `ffmpeg`, where the system has it, first.
"""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from zoo.errors import MediaError, ZooError
from zoo.media.file import check_file, describe_content, expanded
from zoo.media.resampling import Samples, need

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
BLOCK_NUMBERS = 1 << 20  # decoded at a time, all channels together: 4 MB


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds of sound, and seconds of decoding, after which a source is refused."""

    duration_s: float
    decode_s: float


class Decoder(Protocol):
    """Blocks of one source, mono, as recorded; counted against the limits.

    label: what errors call the source. duration_s: what it says of its length, 0 where it says nothing; how long it is, once it
    was decoded to its end.
    """

    label: str
    rate_hz: int
    duration_s: float

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
        _refuse_long(label, self.duration_s, limits)

    def blocks(self) -> Iterator[Samples]:
        for start in range(0, len(self.samples), BLOCK_NUMBERS):
            yield self.samples[start : start + BLOCK_NUMBERS]

    def rewind(self) -> None:
        """Nothing to do: each call of `blocks` begins at the start."""


class FileDecoder:
    """A file as libsndfile decodes it, its channels averaged."""

    def __init__(self, label: str, file: Any, raw: BinaryIO, limits: Limits) -> None:
        """file: libsndfile's, which decodes the open file `raw`."""
        self.label, self.file, self.raw, self.limits = label, file, raw, limits
        self.rate_hz: int = file.samplerate
        claimed_s = file.frames / self.rate_hz
        self.duration_s = claimed_s if claimed_s < KNOWN_S else 0.0
        self.spent_s = 0.0
        _refuse_long(label, self.duration_s, limits)

    def rewind(self) -> None:
        """Open the file anew: not every format can be sought in."""
        self.spent_s = 0.0
        self.file.close()
        self.raw.seek(0)
        self.file = self._guarded(lambda: _decoded(self.raw))

    def blocks(self) -> Iterator[Samples]:
        frames = max(1, BLOCK_NUMBERS // self.file.channels)
        done = 0
        while True:
            block: Any = self._guarded(lambda: self.file.read(frames, dtype="float32", always_2d=True))
            if not len(block):
                break
            mono = block[:, 0].copy() if block.shape[1] == 1 else block.mean(1)
            refuse_wild(mono, done, self.rate_hz, self.label)
            done += len(block)
            _refuse_long(self.label, done / self.rate_hz, self.limits)
            yield mono
        if done / self.rate_hz < 0.99 * self.duration_s:
            logging.getLogger("zoo").warning(
                "%s: the header promises %.1f s, the file holds %.1f s; what is there is used",
                self.label, self.duration_s, done / self.rate_hz,
            )  # fmt: skip
        self.duration_s = done / self.rate_hz

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """What the library gives, its errors as ours, and its time counted."""
        started = time.perf_counter()
        try:
            answer = call()
        except Exception as error:  # decoders raise whatever hostile bytes lead them to
            raise MediaError(f"{self.label}: a damaged sound ({error or type(error).__name__})") from error
        self.spent_s += time.perf_counter() - started
        if self.spent_s > self.limits.decode_s:
            raise MediaError(
                f"{self.label}: decoding took more than {self.limits.decode_s:g} s; raise max_decode_s if that is right"
            )
        return answer


@contextmanager
def opened(source: str | Path | bytes, label: str, limits: Limits) -> Iterator[FileDecoder]:
    """A path or the bytes of a file -> its decoder, open while the context lasts. Raises MediaError for what is no sound."""
    with _opened(source, label, limits) as (file, raw):
        decoder = FileDecoder(label, file, raw, limits)
        try:
            yield decoder
        finally:
            decoder.file.close()


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


@contextmanager
def _opened(source: str | Path | bytes, label: str, limits: Limits) -> Iterator[tuple[Any, BinaryIO]]:
    """The source as libsndfile's file, checked, and the open file under it."""
    if isinstance(source, bytes):
        if not source:
            raise MediaError(f"{label}: there are no bytes")
        if _is_aac(source[:64]):
            with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
                path = Path(folder, "given")
                path.write_bytes(source)
                with _opened(path, label, limits) as both:
                    yield both
            return
        raw: BinaryIO = io.BytesIO(source)
        with _checked(raw, source[:64], label) as file:
            yield file, raw
        return
    path = expanded(source)
    check_file(path, "an audio file", max_bytes=MAX_BYTES)
    # libsndfile gets the open file: it takes the name "-" for standard input, and looks at suffixes.
    with path.open("rb") as raw:
        head = raw.read(64)
        raw.seek(0)
        if _is_aac(head):
            with (
                _by_ffmpeg(path, label, limits) as converted,
                converted.open("rb") as wav,
                _checked(wav, head, label) as file,
            ):
                yield file, wav
            return
        _warn_if_cut(path, head, label)
        with _checked(raw, head, label) as file:
            yield file, raw


def _is_aac(head: bytes) -> bool:
    """Whether a file is MPEG-4, or AAC as a stream: libsndfile has neither."""
    return head[4:8] == b"ftyp" or head[:2] in (b"\xff\xf1", b"\xff\xf9")


def _decoded(raw: BinaryIO) -> Any:
    """An open file, as libsndfile reads it."""
    file = need("soundfile").SoundFile(raw)
    if file.frames / file.samplerate >= KNOWN_S:  # a stream: the library seeks after each read, which fails at its end
        file.seekable = lambda: False
    return file


@contextmanager
def _checked(given: BinaryIO, head: bytes, label: str) -> Iterator[Any]:
    expected = "expected wav, flac, ogg, opus, mp3, aiff, or m4a with ffmpeg"
    try:
        file = _decoded(given)
    except ZooError:  # the library is not there
        raise
    except Exception as error:  # as above
        raise MediaError(f"{label}: not a sound that can be read ({describe_content(head)}); {expected}") from error
    with file:
        if file.format not in FORMATS:
            raise MediaError(f"{label}: {file.format_info} is not among the formats that are read; {expected}")
        if not 1 <= file.channels <= MAX_CHANNELS:
            raise MediaError(f"{label}: {file.channels} channels, the limit is {MAX_CHANNELS}")
        if not RATES_HZ[0] <= file.samplerate <= RATES_HZ[1]:
            raise MediaError(
                f"{label}: the header says {file.samplerate:,} samples a second, expected {RATES_HZ[0]:,} to {RATES_HZ[1]:,}"
            )
        yield file


@contextmanager
def _by_ffmpeg(path: Path, label: str, limits: Limits) -> Iterator[Path]:
    """The sound of a file as a wav, in a temporary folder. No shell is involved, and no other file or address is followed."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise MediaError(
            f"{label}: m4a is read with ffmpeg, which is not installed (apt install ffmpeg, brew install ffmpeg)"
        )
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        target = Path(folder, "sound.wav")
        command = [
            *(program, "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-i", f"file:{path.absolute()}"),
            *("-vn", "-map", "0:a:0", "-t", f"{min(limits.duration_s, KNOWN_S) + 1:.0f}"),
            *("-fs", str(MAX_BYTES), "-c:a", "pcm_s16le", str(target)),
        ]
        try:
            run = subprocess.run(  # noqa: S603 - a list, not a shell; the path is behind file:
                command, capture_output=True, text=True, errors="replace", timeout=limits.decode_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise MediaError(f"{label}: decoding took more than {limits.decode_s:g} s; raise max_decode_s") from None
        if run.returncode or not target.is_file():
            reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MediaError(f"{label}: a damaged sound (ffmpeg: {reason})")
        yield target


def _warn_if_cut(path: Path, head: bytes, label: str) -> None:
    """Libsndfile takes a wav that ends early for a whole one, without a word."""
    claimed = int.from_bytes(head[4:8], "little") + 8
    size = path.stat().st_size
    known = claimed < 2**32 - 64  # streams that do not know write the largest number
    if head[:4] == b"RIFF" and known and claimed > size + 1:
        logging.getLogger("zoo").warning(
            "%s: the header speaks of %s bytes, the file has %s; what is there is used", label, f"{claimed:,}", f"{size:,}"
        )
