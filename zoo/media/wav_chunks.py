"""The chunks of a wav file: where its samples lie, also when its header does not say so.

A recorder that was stopped leaves sizes of 0 (or of 2^32 - 1 and an empty ds64 in RF64), some writers forget the byte that pads an odd
chunk, and files are appended to each other. libsndfile hears nothing of these, or refuses them. What it can read is left as it stands.
Source of the layout: Microsoft's RIFF, and EBU Tech 3306 (RF64) with ITU-R BS.2088 (BW64).
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from zoo.media.audio_parts import Part, Source, occurrences, refuse_many

_STILL_CHUNKS = 4_096
_RIFFS = (b"RIFF", b"RF64", b"BW64")
_NAMES = (
    b"fmt ",
    b"data",
    b"LIST",
    b"fact",
    b"JUNK",
    b"junk",
    b"bext",
    b"ds64",
    b"PEAK",
    b"iXML",
    b"cue ",
    b"smpl",
    b"id3 ",
    b"ID3 ",
)
_BEGINS = re.compile(rb"(?:RIFF|RF64|BW64).{4}WAVE(?:" + b"|".join(_NAMES) + rb")", re.DOTALL)
_DATA = re.compile(rb"data(?=.{4})", re.DOTALL)
_UNKNOWN = 0xFFFF_FFFF
_STREAM_BYTES = 0x7FFF_0000  # a size from here on says that the writer did not know it
_DATA_WITHIN = 1 << 20  # how far behind a broken chunk the samples are looked for
_LARGEST_COPIED = 4_096  # bytes of a chunk that goes into a mended header
_WORTH_SAYING = 4_096  # bytes behind the samples


@dataclass(slots=True)
class _Wave:
    """One wav inside a file, which ends at `end`.

    data: where its samples lie. copied: chunks that a mended header needs. mend: whether it needs one. note: what to warn of.
    """

    mend: bool
    data: tuple[int, int] | None = None
    copied: dict[bytes, bytes] = field(default_factory=dict)
    end: int = 0
    note: str = ""


def wav_parts(source: Source) -> tuple[list[Part] | None, list[str]]:
    """The sounds of a wav file, each behind a header that is right; None where it can be read as it stands. And what to warn of."""
    parts, notes, at, mend = [], [], 0, False
    while source.at(at, 4) in _RIFFS:
        wave = _wave(source, at)
        if wave.data is None or b"fmt " not in wave.copied:
            break
        parts.append(_part(wave.copied, wave.data))
        refuse_many(source.label, parts)
        mend |= wave.mend
        notes += [wave.note] if wave.note and wave.note not in notes else []
        at = wave.end
    return (parts if mend or len(parts) > 1 else None), notes


def _part(copied: dict[bytes, bytes], data: tuple[int, int]) -> Part:
    """Samples behind a header of their own."""
    chunks = b"".join(name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for name, body in copied.items())
    size = data[1] - data[0]
    begin = struct.pack("<4sI4s", b"RIFF", 4 + len(chunks) + 8 + size, b"WAVE")
    return Part((begin + chunks + struct.pack("<4sI", b"data", size), data))


def _wave(source: Source, start: int) -> _Wave:
    """Walks the chunks from one RIFF to the next, or to the end of the file."""
    tag = source.at(start, 4)
    wave = _Wave(mend=tag == b"BW64")
    at, long_bytes = start + 12, _UNKNOWN
    for count in itertools.count(1):
        if at + 8 > source.size:
            break
        if count % _STILL_CHUNKS == 0:
            source.still()
        head = source.at(at, 8)
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if wave.data and name in _RIFFS:
            break
        if name == b"data" and not wave.data:
            told = long_bytes if tag != b"RIFF" and length in (0, _UNKNOWN) else length
            end, mend, note = _samples_end(source, at + 8, told, strict=tag != b"RIFF")
            wave.data, wave.mend, wave.note = (at + 8, end), wave.mend or mend, wave.note or note
            length = end - at - 8
        elif not _is_name(name) or at + 8 + length > source.size:
            found = None if wave.data else next(_samples_behind(source, at + 4), None)
            if found is None:
                break
            wave.mend, wave.note = True, "a chunk of its header has a wrong size; the samples were looked for behind it"
            at = found
            continue
        elif name in (b"fmt ", b"fact"):
            wave.copied[name] = source.at(at + 8, min(length, _LARGEST_COPIED))
        elif name == b"ds64":
            long_bytes = int.from_bytes(source.at(at + 16, 8), "little")
        at, unpadded = _behind(source, at + 8 + length, length)
        wave.mend |= unpadded and not wave.data
    wave.end = min(at, source.size)
    left = source.size - wave.end
    if wave.data and source.at(wave.end, 4) not in _RIFFS and left > _WORTH_SAYING:
        wave.note = wave.note or f"{left:,} bytes behind the sound that its header counts are not read"
    return wave


def _samples_end(source: Source, begin: int, told: int, *, strict: bool) -> tuple[int, bool, str]:
    """Where the samples end that begin here, whether the header must be mended for it, and what to warn of.

    strict: libsndfile refuses a size that is larger than the file, which it does for RF64 alone.
    """
    rest = source.size - begin
    if 0 < told <= rest:
        return begin + told, False, ""
    if told == 0 and _are_chunks(source, begin):
        return begin, False, ""
    end = next(occurrences(source, _BEGINS, begin), source.size)
    if told == 0:
        return (
            end,
            True,
            "its header says that there is no sample, as a recorder that was stopped leaves it; what follows is read",
        )
    note = f"its header speaks of {told:,} bytes of sound, the file has {rest:,}; what is there is used"
    return end, strict, note if strict and told < _UNKNOWN else ""


def _samples_behind(source: Source, start: int) -> Iterator[int]:
    """Where chunks of samples may begin behind one that is broken: those whose size fits the file, or says that it is unknown."""
    window = source.at(start, _DATA_WITHIN)
    for match in _DATA.finditer(window):
        at = start + match.start()
        end = at + 8 + int.from_bytes(window[match.end() : match.end() + 4], "little")
        if end in (at + 8, source.size) or end >= _STREAM_BYTES or _is_name(source.at(end + end % 2, 4)):
            yield at


def _are_chunks(source: Source, at: int) -> bool:
    """Whether nothing but whole chunks follows, to the end of the file."""
    for count in itertools.count(1):
        if at + 8 > source.size:
            break
        if count % _STILL_CHUNKS == 0:
            source.still()
        head = source.at(at, 8)
        if not _is_name(head[:4]) or head[:4] in _RIFFS:  # of a part behind, which is asked for itself
            return False
        length = int.from_bytes(head[4:], "little")
        at += 8 + length + length % 2
    return source.size <= at <= source.size + 1


def _behind(source: Source, at: int, length: int) -> tuple[int, bool]:
    """Where the next chunk begins, and whether it is where a pad byte should be."""
    if length % 2 == 0:
        return at, False
    names = source.at(at, 5)
    unpadded = names[:4] in (*_NAMES, *_RIFFS) and names[1:] not in (*_NAMES, *_RIFFS)
    return (at, True) if unpadded else (at + 1, False)


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)
