"""Tokens of one window -> its segments, with their times in the sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.api import Segment, Window
from zoo_whisper.decoding import Decoded
from zoo_whisper.log_mel import FRAMES_PER_SECOND
from zoo_whisper.tokens import SECONDS_PER_MOMENT, Controls

FRAMES_PER_MOMENT = 2


def segments_of(result: Decoded, known: Controls, first: int, size: int, vocabulary: Any) -> tuple[list[Segment], int]:
    """Tokens of a window -> its segments, and where the next window begins.

    Between two moments side by side one segment ends and the next begins. What follows the last such pair is not finished: the
    next window begins there. No segment that begins in its window ends after it.
    """
    tokens = result.tokens
    offset_s, window_s = first / FRAMES_PER_SECOND, size / FRAMES_PER_SECOND
    moment = [token >= known.first_moment for token in tokens]
    alone = ends_alone(tokens, known)
    cuts = [place for place in range(1, len(tokens)) if moment[place - 1] and moment[place]]

    def segment(own: Sequence[int], start_s: float, end_s: float) -> Segment:
        return Segment(
            start_s=start_s,
            end_s=end_s if start_s >= offset_s + window_s else min(end_s, offset_s + window_s),
            text=vocabulary.decode([token for token in own if token < known.end]),
            tokens=tuple(own),
            average_log_probability=result.average_log_probability,
            no_speech_probability=result.no_speech_probability,
            compression_ratio=result.compression_ratio,
            temperature=result.temperature,
        )

    def time_s(token: int) -> float:
        return (token - known.first_moment) * SECONDS_PER_MOMENT

    if not cuts:
        times = [token for token, is_moment in zip(tokens, moment, strict=True) if is_moment]
        duration_s = time_s(times[-1]) if times and times[-1] != known.first_moment else window_s
        return [segment(tokens, offset_s, offset_s + duration_s)], first + size
    segments = []
    pieces = [*cuts, len(tokens)] if alone else cuts
    last = 0
    for cut in pieces:
        own = tokens[last:cut]
        end_s = time_s(own[-1]) if moment[cut - 1] else window_s
        segments.append(segment(own, offset_s + time_s(own[0]), offset_s + end_s))
        last = cut
    if alone:
        return segments, first + size
    return segments, first + (tokens[last - 1] - known.first_moment) * FRAMES_PER_MOMENT


def ends_alone(tokens: Sequence[int], known: Controls) -> bool:
    """Whether the last moment stands alone: nothing is said after it in this window."""
    moments = [token >= known.first_moment for token in tokens[-2:]]
    return moments == [False, True]


def window_to(segments: Sequence[Segment], frame: int, language: str | None, state: Mapping[str, Any]) -> Window:
    return Window(
        segments=tuple(segments),
        reached_s=frame / FRAMES_PER_SECOND,
        language=language,
        state={key: list(value) if isinstance(value, list) else value for key, value in state.items()},
    )
