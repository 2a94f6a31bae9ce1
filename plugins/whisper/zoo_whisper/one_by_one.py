"""Windows one after another: where each begins, and what it is told, follows from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from zoo.api import MediaError, Segment, Span, UsageError, Window
from zoo_whisper.decoding import Decoded
from zoo_whisper.hearing import Heard
from zoo_whisper.log_mel import FRAMES_PER_SECOND, WINDOW_FRAMES
from zoo_whisper.rules import Rules
from zoo_whisper.run import Run
from zoo_whisper.segments import ends_alone, segments_of, window_to
from zoo_whisper.speech_left import left_after
from zoo_whisper.words import Alignment, segments_with_words, skip_hallucinations, speech_end_s

HOT = 0.5  # what was written at a higher temperature is no prompt for what follows


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a transcription stands: all that the next window depends on."""

    seek: int = 0
    clip: int = 0
    language: str | None = None
    before: list[int] = field(default_factory=list)  # tokens since the last reset, as many as a prompt can hold
    was_reset: bool = False
    last_speech_s: float = 0.0

    def to_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """What goes from one window to the next. speech: where voice activity heard somebody; empty where nobody looked."""

    conditioned: bool
    carried: bool
    hallucination_silence_s: float | None
    speech: Sequence[Span] = ()


def clips_of(
    timestamps: Sequence[float], speech: Sequence[Span] | None, frames: int, label: str = "the sound"
) -> list[tuple[int, int]]:
    """Where to listen, in frames. Raises UsageError for times that never can be, MediaError for a start that is not in this sound."""
    if timestamps and speech is not None:
        raise UsageError("clip_timestamps and voice activity both say where to listen: give one of them")
    if any(later < earlier for earlier, later in pairwise((0, *timestamps))):
        raise UsageError(
            f"clip_timestamps are start, end, start, ... in seconds and never go back, from 0 on, got {list(timestamps)}"
        )
    points = [round(point * FRAMES_PER_SECOND) for point in timestamps] or [0]
    late_s = next((start_s for start_s in timestamps[::2] if round(start_s * FRAMES_PER_SECOND) >= frames), None)
    if late_s is not None:
        raise MediaError(
            f"{label}: clip_timestamps has a start at {late_s:g} s, and the sound ends at {frames / FRAMES_PER_SECOND:.2f} s"
        )
    if speech is not None:
        points = [round(point * FRAMES_PER_SECOND) for span in speech for point in span]
    elif len(points) % 2:
        points.append(frames)
    return [(start, min(end, frames)) for start, end in zip(points[::2], points[1::2], strict=True)]


@torch.inference_mode()
def one_by_one(run: Run, clips: Sequence[tuple[int, int]], follow: Follow, place: Place) -> Iterator[Window]:
    """Go on from a place to the end of the last clip; the place moves along."""
    longest = run.model.decoder.context // 2 - 1
    rules = run.rules
    while place.clip < len(clips):
        start, end = clips[place.clip]
        place.seek = max(place.seek, start)
        if place.seek >= end:
            place.clip += 1
            continue
        first, size = place.seek, min(WINDOW_FRAMES, end - place.seek)
        heard = run.hear([run.mel.window(first, size)])
        if run.known.multilingual and place.language is None:
            place.language = rules.language or run.spoken(heard)
        rules = replace(rules, language=place.language)
        if follow.carried:
            room = longest - len(run.prompt)
            prompt = run.prompt + (place.before[-room:] if room > 0 else [])
        else:
            prompt = place.before if place.was_reset else run.prompt + place.before
        result = run.decode(heard, rules, prompt, [first])[0]
        segments: list[Segment] = []
        if run.ladder.skips(result):
            place.seek += size
        else:
            segments, place.seek = segments_of(result, run.known, first, size, run.model.vocabulary)
            if place.seek == first + size:
                place.seek = left_after(segments, follow.speech, first, size)
            if run.words:
                with_words = _with_words(run, heard, rules, segments, follow, place, (first, size), result)
                if with_words is None:  # silence before what was made up: as if nothing had been decoded
                    yield window_to([], min(place.seek, end), place.language, place.to_state())
                    continue
                segments = with_words
            segments = [segment for segment in segments if segment.text.strip() and segment.start_s != segment.end_s]
            written = [token for segment in segments for token in segment.tokens]
            place.before = (place.before + written)[-longest:]
            if not follow.conditioned or result.temperature > HOT:
                place.before, place.was_reset = [], True
        yield window_to(segments, min(place.seek, end), place.language, place.to_state())


def _with_words(
    run: Run,
    heard: Heard,
    rules: Rules,
    segments: list[Segment],
    follow: Follow,
    place: Place,
    window: tuple[int, int],
    result: Decoded,
) -> list[Segment] | None:
    """The segments with their words, which may move the next window and take segments away; None: start anew where that is."""
    first, size = window
    aligned = Alignment(run.model, heard, rules.language, rules.task, size)
    segments = segments_with_words(aligned, segments, first / FRAMES_PER_SECOND, place.last_speech_s)
    known_end = ends_alone(result.tokens, run.known)
    end_s = speech_end_s(segments)
    if not known_end and end_s is not None and end_s > first / FRAMES_PER_SECOND:
        place.seek = round(end_s * FRAMES_PER_SECOND)
    if follow.hallucination_silence_s is not None:
        kept, place.seek = skip_hallucinations(
            segments,
            follow.hallucination_silence_s,
            first=first,
            size=size,
            seek=place.seek,
            frames=run.mel.frames,
            last_speech_s=place.last_speech_s,
            ends_alone=known_end,
        )
        if kept is None:
            return None
        segments = kept
    end_s = speech_end_s(segments)
    if end_s is not None:
        place.last_speech_s = end_s
    return segments
