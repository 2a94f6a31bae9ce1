"""Windows several at once, cut between spans of speech: each stands by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from zoo.api import Segment, Span, Window
from zoo_whisper.log_mel import FRAMES_PER_SECOND, WINDOW_FRAMES
from zoo_whisper.run import Run
from zoo_whisper.segments import segments_of, window_to
from zoo_whisper.speech_left import left_out, trimmed
from zoo_whisper.words import Alignment, segments_with_words


@dataclass(frozen=True, slots=True)
class Piece:
    """What is decoded at once: a window, or a part of one that is decoded again. `window` counts the windows of a batch."""

    window: int
    first: int
    size: int
    mel_CT: torch.Tensor

    def part(self, first: int, size: int) -> Piece:
        """A part of it, from its own mel: the sound is not read again."""
        return Piece(self.window, first, size, self.mel_CT[:, first - self.first :][:, :size])


@torch.inference_mode()
def together(run: Run, speech: Sequence[Span], batch_size: int, state: Mapping[str, Any] | None) -> Iterator[Window]:
    """Windows cut between spans of speech, several at once. What of a window no segment speaks for is decoded again, at once for all."""
    places = pack(speech, run.mel.frames)
    done: int = state["done"] if state else 0
    language: str | None = state["language"] if state else run.rules.language
    for begin in range(done, len(places), batch_size):
        batch = places[begin : begin + batch_size]
        left = [Piece(number, *place, run.mel.window(*place)) for number, place in enumerate(batch)]
        written: list[list[Segment]] = [[] for _ in batch]
        while left:
            heard = run.hear([piece.mel_CT for piece in left])
            if run.known.multilingual and language is None:
                language = run.spoken(heard)
            rules = replace(run.rules, language=language)
            results = run.decode(heard, rules, run.prompt, [piece.first for piece in left])
            following = []
            for number, (piece, result) in enumerate(zip(left, results, strict=True)):
                segments: list[Segment] = []
                if not run.ladder.skips(result):
                    segments, _ = segments_of(result, run.known, piece.first, piece.size, run.model.vocabulary)
                    if run.words:
                        aligned = Alignment(run.model, heard.chosen([number]), language, rules.task, piece.size)
                        segments = segments_with_words(
                            aligned, segments, piece.first / FRAMES_PER_SECOND, piece.first / FRAMES_PER_SECOND
                        )
                segments = [trimmed(segment, speech) for segment in segments if segment.text.strip()]
                written[piece.window] += segments
                following += [piece.part(*place) for place in left_out(segments, speech, piece.first, piece.size)]
            left = following
        for number, (first, size) in enumerate(batch):
            segments = sorted(written[number], key=lambda segment: segment.start_s)
            yield window_to(segments, first + size, language, {"done": begin + number + 1, "language": language})


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
