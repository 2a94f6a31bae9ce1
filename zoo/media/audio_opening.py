"""A path or the bytes of a file -> its decoder: what kind of file it is, and which sounds it holds.

libsndfile reads what `zoo.media.audio_decoding` names; m4a is turned into wav by `ffmpeg`, where the system has it, first.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from zoo.errors import MediaError
from zoo.media.audio_decoding import KNOWN_S, MAX_BYTES, FileDecoder, Limits
from zoo.media.audio_parts import Part, Source, aiff_parts, flac_parts, ogg_parts
from zoo.media.file import check_file, expanded
from zoo.media.mp3_frames import after_tags, mp3_parts
from zoo.media.wav_chunks import wav_parts


@contextmanager
def opened(source: str | Path | bytes, label: str, limits: Limits) -> Iterator[FileDecoder]:
    """A path or the bytes of a file -> its decoder, open while the context lasts. Raises MediaError for what is no sound."""
    with ExitStack() as stack:
        raw, size = _readable(source, label, limits, stack)
        parts, warnings = _parts(_watched(raw, size, label, limits))
        decoder = FileDecoder(label, raw, parts, limits)
        for warning in warnings:
            decoder.warn(warning)
        try:
            yield decoder
        finally:
            decoder.file.close()


def _readable(source: str | Path | bytes, label: str, limits: Limits, stack: ExitStack) -> tuple[BinaryIO, int]:
    """The source as an open file that libsndfile can read, and its size."""
    if isinstance(source, bytes):
        if not source:
            raise MediaError(f"{label}: there are no bytes")
        if not _is_aac(source[:64]):
            return io.BytesIO(source), len(source)
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zoo-")), "given")
        path.write_bytes(source)
    else:
        path = expanded(source)
        check_file(path, "an audio file", max_bytes=MAX_BYTES)
    # libsndfile gets the open file: it takes the name "-" for standard input, and looks at suffixes.
    raw: BinaryIO = stack.enter_context(path.open("rb"))
    if _is_aac(raw.read(64)):
        _refuse_joined(Source(raw, path.stat().st_size, label))
        path = stack.enter_context(_by_ffmpeg(path, label, limits))
        raw = stack.enter_context(path.open("rb"))
    return raw, path.stat().st_size


def _watched(raw: BinaryIO, size: int, label: str, limits: Limits) -> Source:
    """The file to be looked through, within the limit on decoding."""
    begun = time.perf_counter()

    def still() -> None:
        if time.perf_counter() - begun > limits.decode_s:
            raise MediaError(f"{label}: looking through it took more than {limits.decode_s:g} s; raise max_decode_s")

    return Source(raw, size, label, still)


def _parts(source: Source) -> tuple[list[Part], list[str]]:
    """The sounds that a file holds, none where it is to be read as it stands; and what to warn of."""
    head = source.at(0, 12)
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        parts, warnings = wav_parts(source)
        return parts or [], warnings or _cut(head, source)
    if head[:4] == b"OggS":
        parts = ogg_parts(source)
    elif head[:4] == b"FORM":
        parts = aiff_parts(source)
    elif source.at(after_tags(source, 0), 4) == b"fLaC":
        parts = flac_parts(source)
    else:
        return mp3_parts(source) or [], []
    return parts if len(parts) > 1 else [], []


def _cut(head: bytes, source: Source) -> list[str]:
    """Libsndfile takes a wav that ends early for a whole one, without a word."""
    claimed = int.from_bytes(head[4:8], "little") + 8
    known = claimed < 2**32 - 64  # streams that do not know write the largest number
    if head[:4] != b"RIFF" or not known or claimed <= source.size + 1:
        return []
    return [f"the header speaks of {claimed:,} bytes, the file has {source.size:,}; what is there is used"]


def _is_aac(head: bytes) -> bool:
    """Whether a file is MPEG-4, or AAC as a stream: libsndfile has neither."""
    return head[4:8] == b"ftyp" or head[:2] in (b"\xff\xf1", b"\xff\xf9")


def _refuse_joined(source: Source) -> None:
    """Ffmpeg reads the first of several MPEG-4 files that were appended to each other, without a word."""
    at, begun = 0, 0
    while len(head := source.at(at, 16)) >= 8 and begun < 2:
        begun += head[4:8] == b"ftyp"
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        if length < 8:
            return
        at += length
    if begun > 1:
        raise MediaError(f"{source.label}: several MPEG-4 files in one, of which only the first can be read; split it")


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
