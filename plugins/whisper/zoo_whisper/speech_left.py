"""What of the speech in a window no segment speaks for: it is decoded again, so that nothing that somebody said is passed over.

Frames are of 10 ms, from the start of the sound; `speech` is where voice activity heard somebody, in seconds, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from zoo.api import Segment, Span
from zoo_whisper.log_mel import FRAMES_PER_SECOND

SLIVER_S = 0.5  # less of a span is its margin, or a moment that the model set a little off
TAIL_S = 3.0
LEAST_S = 0.2  # by which a window must be shorter than the one before it, so that there is an end


def trimmed(segment: Segment, speech: Sequence[Span]) -> Segment:
    """The segment without the pauses at its ends, where the model drew it up to the next thing that it heard.

    One whose words have times keeps its own, which follow from those.
    """
    if segment.words:
        return segment
    pieces = _overlaps(segment.start_s, segment.end_s, speech)
    whole = [piece for piece in pieces if piece[1] - piece[0] >= SLIVER_S or piece in speech] or pieces
    if not whole:
        return segment
    return replace(segment, start_s=whole[0][0], end_s=whole[-1][1])


def left_out(segments: Sequence[Segment], speech: Sequence[Span], first: int, size: int) -> list[tuple[int, int]]:
    """Windows (first frame, how many) for the speech in a window that none of its segments covers; none where it has no segments."""
    begin_s, end_s = first / FRAMES_PER_SECOND, (first + size) / FRAMES_PER_SECOND
    found = []
    for gap_start_s, gap_end_s in _gaps(segments, begin_s, end_s):
        pieces = [piece for piece in _overlaps(gap_start_s, gap_end_s, speech) if piece[1] - piece[0] >= SLIVER_S]
        if pieces and pieces[-1][1] - pieces[0][0] <= end_s - begin_s - LEAST_S:
            start, stop = (round(moment_s * FRAMES_PER_SECOND) for moment_s in (pieces[0][0], pieces[-1][1]))
            found.append((start, stop - start))
    return found


def left_after(segments: Sequence[Segment], speech: Sequence[Span], first: int, size: int) -> int:
    """The frame where speech of more than `TAIL_S` begins that lies after the last segment of a window; the window's end without.

    In a window of one span the text of all of it often ends with a moment that is too early: a shorter rest would be written twice.
    """
    last_s = max((segment.end_s for segment in segments if segment.text.strip()), default=0.0)
    start, count = next(reversed(left_out(segments, speech, first, size)), (0, 0))
    is_tail = start / FRAMES_PER_SECOND >= last_s > 0 and count > TAIL_S * FRAMES_PER_SECOND
    return start if is_tail else first + size


def _gaps(segments: Sequence[Segment], begin_s: float, end_s: float) -> Iterator[Span]:
    """What lies between segments, before the first and after the last; nothing without any."""
    reached_s = begin_s
    for segment in sorted(segments, key=lambda one: one.start_s):
        yield reached_s, segment.start_s
        reached_s = max(reached_s, segment.end_s)
    if segments:
        yield reached_s, end_s


def _overlaps(begin_s: float, end_s: float, speech: Sequence[Span]) -> list[Span]:
    cut = [(max(start_s, begin_s), min(stop_s, end_s)) for start_s, stop_s in speech]
    return [(start_s, stop_s) for start_s, stop_s in cut if stop_s > start_s]
