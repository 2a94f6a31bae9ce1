"""The frames of an mp3 file: counted, cut where another sound begins, and joined across what is no sound.

An mp3 says nothing of its length but in an Info frame (Xing's), if it has one; without it libmpg123 guesses from the first frame, and
libsndfile stops there. So frames are counted here, and a sound whose Info frame is missing or wrong gets one that is right.
Source of the layout: ISO/IEC 11172-3 and 13818-3, and the revised description of the LAME tag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from zoo.errors import MediaError
from zoo.media.audio_parts import Part, Source, refuse_many

_HEAD_BYTES = 64  # what is read of each frame: enough to see an Info frame
_STILL_FRAMES = 4_096
_MAX_CANDIDATES = 200_000  # places that look like a frame and are none: hostile, or no mp3
_CANDIDATE = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]")
_BITRATES_KBPS = {  # by (MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version


class Frame(NamedTuple):
    """What a frame's header says. kind: what does not change within one sound. info_at: where its Info tag would stand."""

    size: int
    kind: tuple[int, int, int, bool]
    info_at: int


@dataclass(slots=True)
class _Sound:
    """Frames of one kind in a row. promised: how many its Info frame speaks of. left_out: bytes among them that are none, and no tag."""

    kind: tuple[int, int, int, bool]
    header: int
    promised: int | None
    frames: int = 0
    pieces: list[tuple[int, int]] = field(default_factory=list)
    info_end: int = 0  # where its Info frame ends
    left_out: int = 0

    def add(self, start: int, end: int) -> None:
        if self.pieces and self.pieces[-1][1] == start:
            start = self.pieces.pop()[0]
        self.pieces.append((start, end))


def mp3_parts(source: Source) -> list[Part] | None:
    """The sounds of an mp3 file, each with an Info frame that is right; None where the file can be read as it stands.

    A sound ends where another Info frame stands, and where rate, channels or layer change. What lies between frames (tags, zeros)
    is left out, with a warning where it is no tag. Raises MediaError for what has too much of it.
    """
    at = after_tags(source, 0)
    if at and _frame_at(source, at) is None:  # a tag that says less than its length
        at, _ = _next_frame(source, at)
    first = _frame_at(source, at)
    if first is None or first.kind[1] != 3:
        return None
    sounds = _sounds(source, at)
    whole = len(sounds) == 1 and len(sounds[0].pieces) == 1 and _counts_well(sounds[0])
    return None if whole else [_part(sound) for sound in sounds if sound.frames]


def _sounds(source: Source, at: int) -> list[_Sound]:
    sounds: list[_Sound] = []
    tries = count = left_out = 0
    while at < source.size:
        count += 1
        if count % _STILL_FRAMES == 0:
            source.still()
        head = source.at(at, _HEAD_BYTES)
        frame = _frame(head)
        current = sounds[-1] if sounds else None
        if frame is None or (current and frame.kind != current.kind and not _confirmed(source, at, frame)):
            following, tried = _next_frame(source, at)
            left_out += following - at if after_tags(source, at) == at else 0
            at, tries = following, tries + tried
            if tries > _MAX_CANDIDATES:
                raise MediaError(f"{source.label}: a damaged sound (mp3 frames among too much that is none)")
            continue
        promised = _promised(head, frame)
        end = min(at + frame.size, source.size)
        if current is None or frame.kind != current.kind or promised is not None:
            current = _Sound(frame.kind, int.from_bytes(head[:4], "big"), promised)
            sounds.append(current)
            refuse_many(source.label, sounds)
        current.left_out, left_out = current.left_out + (left_out if current.pieces else 0), 0
        if promised is None:
            current.frames += at + frame.size <= source.size
        else:
            current.info_end = end
        current.add(at, end)
        at = end
    return sounds


def _counts_well(sound: _Sound) -> bool:
    """Whether its Info frame may stand. One of a file that was cut promises more, which its decoder says; far more, and it is wrong."""
    return sound.frames <= (sound.promised or 0) <= 2 * sound.frames + 1


def _part(sound: _Sound) -> Part:
    """As the file has it where its Info frame may stand; else behind one that counts right."""
    warnings = []
    if sound.left_out:
        warnings.append(
            f"{sound.left_out:,} bytes among its frames are none: damage, by which sound is missing, or a tag of an unknown kind"
        )
    if sound.kind[1] != 3 or _counts_well(sound):
        return Part(tuple(sound.pieces), "; ".join(warnings))
    if (sound.promised or 0) > sound.frames:
        warnings.append(
            f"its Info frame promises {sound.promised:,} frames, the file holds {sound.frames:,}; what is there is used"
        )
    pieces = [(max(start, sound.info_end), end) for start, end in sound.pieces if end > sound.info_end]
    return Part((_info_frame(sound), *pieces), "; ".join(warnings))


def _info_frame(sound: _Sound) -> bytes:
    """A frame without sound that tells the decoder how many follow."""
    header = (sound.header & ~0xF200 | 0x9000 | 0x10000).to_bytes(4, "big")  # no checksum, no padding, room enough
    frame = _frame(header)
    if frame is None:
        raise AssertionError(header)
    tag = bytes(frame.info_at - 4) + b"Info" + (1).to_bytes(4, "big") + sound.frames.to_bytes(4, "big")
    return (header + tag).ljust(frame.size, b"\0")


@lru_cache(4_096)
def _parsed(header: bytes) -> Frame | None:
    word = int.from_bytes(header, "big")
    version, layer, rate = word >> 19 & 3, 4 - (word >> 17 & 3), word >> 10 & 3
    bitrate, padding, mono = word >> 12 & 15, word >> 9 & 1, word >> 6 & 3 == 3
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or rate == 3 or bitrate in (0, 15):
        return None
    bits, rate_hz = _BITRATES_KBPS[version == 3, layer][bitrate - 1] * 1_000, _RATES_HZ[version][rate]
    if layer == 1:
        size = (12 * bits // rate_hz + padding) * 4
    else:
        size = (72 if layer == 3 and version != 3 else 144) * bits // rate_hz + padding
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    checked = 0 if word >> 16 & 1 else 2
    return Frame(size, (version, layer, rate_hz, mono), 4 + checked + side)


def _frame(head: bytes) -> Frame | None:
    return _parsed(head[:4]) if head[:1] == b"\xff" and len(head) >= 4 else None


def _frame_at(source: Source, at: int) -> Frame | None:
    return _frame(source.at(at, 4))


def _promised(head: bytes, frame: Frame) -> int | None:
    """The number of frames in an Info frame, 0 where it has none; None for a frame of sound."""
    at = frame.info_at
    if head[at : at + 4] in (b"Xing", b"Info") and not any(head[6:at]):
        return int.from_bytes(head[at + 8 : at + 12], "big") if head[at + 7 : at + 8] and head[at + 7] & 1 else 0
    return 0 if head[36:40] == b"VBRI" and not any(head[6:36]) else None


def _confirmed(source: Source, at: int, frame: Frame) -> bool:
    """Whether another frame of its kind, a tag or the end stands behind it."""
    end = at + frame.size
    behind = source.at(end, 8)
    after = _frame(behind)
    return (after is not None and after.kind == frame.kind) or end == source.size or _is_tag(behind)


def _is_tag(head: bytes) -> bool:
    return head[:3] in (b"ID3", b"TAG") or head[:8] == b"APETAGEX"


def after_tags(source: Source, at: int) -> int:
    """Behind the tags (ID3, APE) that begin here."""
    while at < source.size:
        head = source.at(at, 32)
        if head[:3] == b"ID3" and len(head) == 32 and not any(byte & 0x80 for byte in head[6:10]):
            length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            at += 10 + length + (10 if head[5] & 0x10 else 0)
        elif head[:3] == b"TAG":
            at += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            at += 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)  # else it is the end of one
        else:
            break
    return min(at, source.size)


def _next_frame(source: Source, at: int) -> tuple[int, int]:
    """Where the next frame stands, or the end of the file; and how many places were tried."""
    after = after_tags(source, at)
    if after > at:
        return after, 0
    tried = 0
    start = at + 1
    while start < source.size:
        source.still()
        window = source.at(start, 1 << 16)
        for match in _CANDIDATE.finditer(window):
            tried += 1
            place = start + match.start()
            frame = _frame_at(source, place)
            if (frame is not None and _confirmed(source, place, frame)) or tried > _MAX_CANDIDATES:
                return place, tried
        start += max(1, len(window) - 8)
    return source.size, tried
