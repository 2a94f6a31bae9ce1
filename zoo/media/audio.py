"""Audio files and bytes -> mono samples, behind one gate with limits.

Every sound of the zoo passes here: the command line, Python and benchmarks hear the same samples and get the same errors. Files are
decoded in blocks and resampled as they come, so that memory follows the block and never what a header claims. libsndfile decodes
wav, flac, ogg (vorbis and opus), mp3 and aiff; m4a is turned into wav by `ffmpeg`, where the system has it, first.
"""

from __future__ import annotations

import io
import logging
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from zoo.errors import MediaError, UsageError, ZooError
from zoo.media.file import check_file, describe_content, expanded
from zoo.media.resampling import Samples, need, resample, resampled_blocks

if TYPE_CHECKING:
    import torch

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
MAX_DURATION_S = 600.0  # of a sound that is held in memory whole: 38 MB at 16 kHz
MAX_BYTES = 4_000_000_000
MAX_DECODE_S = 600.0
MAX_CHANNELS = 64
MAX_SAMPLES = 1 << 27  # of a sound that is held in memory whole: half a gigabyte, whatever rate a header claims
LOUDEST = 1e6  # times full scale; more is no sound, and overflows in what is computed of it
KNOWN_S = 1e9  # longer claims are how headers say that they do not know
RATES_HZ = (1_000, 768_000)
BLOCK_NUMBERS = 1 << 20  # decoded at a time, all channels together: 4 MB


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
        _refuse_wild(samples, 0, self.sample_rate_hz, "the sound")
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


class AudioReader:
    """A sound that is read piece by piece: `read(start, count)` gives mono samples at `sample_rate_hz`.

    Reading goes forward; a step back before what is still held decodes again from the start. Made by `open_reader`, and closed by it.
    """

    def __init__(self, decoder: _Decoder, sample_rate_hz: int) -> None:
        self.label = decoder.label
        self.sample_rate_hz = sample_rate_hz
        self._decoder = decoder
        self._held = np.empty(0, np.float32)
        self._start = 0  # where in the sound what is held begins
        self._blocks = decoder.resampled(sample_rate_hz)

    @property
    def duration_s(self) -> float:
        """How long the sound is, once it was read to its end; before, what it says, 0 where it says nothing."""
        return self._decoder.duration_s

    def read(self, start: int, count: int) -> Samples:
        """Samples `start` to `start + count`, float32[N]; N is less than `count` only where the sound ends."""
        if start < self._start:
            self.rewind()
        pieces = [self._held]
        reached = self._start + len(self._held)
        while reached < start + count:
            block = next(self._blocks, None)
            if block is None:
                break
            pieces.append(block)
            reached += len(block)
            if reached <= start:  # nothing of this is wanted
                pieces, self._start = [], reached
        held = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
        skipped = min(max(start - self._start, 0), len(held))
        self._held, self._start = held[skipped:], self._start + skipped
        return self._held[:count]

    def blocks(self) -> Iterator[Samples]:
        """All of it from the start, block after block; `read` begins anew afterwards."""
        self.rewind()
        yield from self._blocks
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self._decoder.rewind()
        self._held, self._start = np.empty(0, np.float32), 0
        self._blocks = self._decoder.resampled(self.sample_rate_hz)


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
    limits = _Limits(max_duration_s, max_decode_s)
    if isinstance(source, Sound):
        decoder = _Decoder(label or "the sound", None, None, source, limits)
        yield AudioReader(decoder, sample_rate_hz or source.sample_rate_hz)
        return
    if not isinstance(source, (str, Path, bytes)):
        raise MediaError(
            f"a sound is a path, the bytes of a file, or zoo.media.audio.Sound(samples, sample_rate_hz), got "
            f"{type(source).__name__}: an array says nothing of its rate"
        )
    label = label or (str(source) if isinstance(source, (str, Path)) else f"{len(source):,} bytes")
    with _opened(source, label, limits) as (file, raw):
        decoder = _Decoder(label, file, raw, None, limits)
        try:
            yield AudioReader(decoder, sample_rate_hz or file.samplerate)
        finally:
            decoder.file.close()


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
            raise UsageError(f"an encoder of sounds takes zoo.media.audio.Sound, item {number} is {type(sound).__name__}")
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


@dataclass(frozen=True, slots=True)
class _Limits:
    duration_s: float
    decode_s: float


class _Decoder:
    """Blocks of one source, mono, as recorded; counted against the limits."""

    def __init__(self, label: str, file: Any, raw: BinaryIO | None, sound: Sound | None, limits: _Limits) -> None:
        """file: libsndfile's, which decodes the open file `raw`; without both, a sound that is decoded."""
        self.label, self.file, self.raw, self.sound, self.limits = label, file, raw, sound, limits
        self.rate_hz: int = file.samplerate if sound is None else sound.sample_rate_hz
        claimed_s = (file.frames if sound is None else len(sound.samples)) / self.rate_hz
        self.duration_s = claimed_s if claimed_s < KNOWN_S else 0.0
        self.spent_s = 0.0
        self._refuse_long(self.duration_s)

    def rewind(self) -> None:
        self.spent_s = 0.0
        if self.raw is not None:  # opened anew: not every format can be sought in
            raw = self.raw
            self.file.close()
            raw.seek(0)
            self.file = self._guarded(lambda: _decoded(raw))

    def resampled(self, rate_hz: int) -> Iterator[Samples]:
        return self._native() if rate_hz == self.rate_hz else resampled_blocks(self._native(), self.rate_hz, rate_hz)

    def _native(self) -> Iterator[Samples]:
        if self.sound is not None:
            for start in range(0, len(self.sound.samples), BLOCK_NUMBERS):
                yield self.sound.samples[start : start + BLOCK_NUMBERS]
            return
        frames = max(1, BLOCK_NUMBERS // self.file.channels)
        done = 0
        while True:
            block: Any = self._guarded(lambda: self.file.read(frames, dtype="float32", always_2d=True))
            if not len(block):
                break
            mono = block[:, 0].copy() if block.shape[1] == 1 else block.mean(1)
            _refuse_wild(mono, done, self.rate_hz, self.label)
            done += len(block)
            self._refuse_long(done / self.rate_hz)
            yield mono
        if done / self.rate_hz < 0.99 * self.duration_s:
            logging.getLogger("zoo").warning(
                "%s: the header promises %.1f s, the file holds %.1f s; what is there is used",
                self.label, self.duration_s, done / self.rate_hz,
            )  # fmt: skip
        self.duration_s = done / self.rate_hz

    def _guarded(self, call: Any) -> Any:
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

    def _refuse_long(self, duration_s: float) -> None:
        if duration_s > self.limits.duration_s:
            raise MediaError(
                f"{self.label}: {duration_s:,.0f} s of sound or more, the limit is {self.limits.duration_s:,.0f} s; cut it, or "
                f"raise max_duration_s (zoo transcribe: --max-duration)"
            )


@contextmanager
def _opened(source: str | Path | bytes, label: str, limits: _Limits) -> Iterator[tuple[Any, BinaryIO]]:
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
def _by_ffmpeg(path: Path, label: str, limits: _Limits) -> Iterator[Path]:
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


def _refuse_wild(samples: Samples, before: int, rate_hz: int, label: str) -> None:
    tame = np.abs(samples) <= LOUDEST  # which no NaN is
    if not tame.all():
        first = int(np.argmin(tame))
        raise MediaError(
            f"{label}: sample {before + first:,} ({(before + first) / rate_hz:.2f} s) is {samples[first]:g}; full scale is 1"
        )
