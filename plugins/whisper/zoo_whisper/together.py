"""Windows several at once, cut between spans of speech: each stands by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from zoo.api import Segment, Span, Window
from zoo_whisper.log_mel import FRAMES_PER_SECOND, WINDOW_FRAMES
from zoo_whisper.run import Run
from zoo_whisper.segments import segments_of, window_to
from zoo_whisper.words import Alignment, segments_with_words


@torch.inference_mode()
def together(run: Run, speech: Sequence[Span], batch_size: int, state: Mapping[str, Any] | None) -> Iterator[Window]:
    """Windows cut between spans of speech, several at once."""
    places = pack(speech, run.mel.frames)
    done: int = state["done"] if state else 0
    language: str | None = state["language"] if state else run.rules.language
    for begin in range(done, len(places), batch_size):
        batch = places[begin : begin + batch_size]
        heard = run.hear(batch)
        if run.known.multilingual and language is None:
            language = run.spoken(heard)
        rules = replace(run.rules, language=language)
        results = run.decode(heard, rules, run.prompt, [first for first, _ in batch])
        for number, ((first, size), result) in enumerate(zip(batch, results, strict=True)):
            segments: list[Segment] = []
            if not run.ladder.skips(result):
                segments, _ = segments_of(result, run.known, first, size, run.model.vocabulary, to_the_end=True)
                if run.words:
                    aligned = Alignment(run.model, heard.chosen([number]), language, rules.task, size)
                    segments = segments_with_words(aligned, segments, first / FRAMES_PER_SECOND, first / FRAMES_PER_SECOND)
            segments = [segment for segment in segments if segment.text.strip()]
            state_after = {"done": begin + number + 1, "language": language}
            yield window_to(segments, first + size, language, state_after)


def pack(speech: Sequence[Span], frames: int) -> list[tuple[int, int]]:
    """Spans of speech in seconds -> windows of at most 30 s, (first frame, how many): as many neighbours together as fit.

    A span that is longer than a window is cut where the window ends.
    """
    windows_: list[tuple[int, int]] = []
    start = end = None
    for begins, stops in speech:
        first, last = round(begins * FRAMES_PER_SECOND), min(round(stops * FRAMES_PER_SECOND), frames)
        if start is not None and end is not None and last - start <= WINDOW_FRAMES:
            end = last
            continue
        if start is not None and end is not None:
            windows_.append((start, end - start))
        while last - first > WINDOW_FRAMES:
            windows_.append((first, WINDOW_FRAMES))
            first += WINDOW_FRAMES
        start, end = first, last
    if start is not None and end is not None:
        windows_.append((start, end - start))
    return [window for window in windows_ if window[1] > 0]
