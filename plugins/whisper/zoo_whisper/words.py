"""When each word was said: the decoder's attention over the window, matched with the tokens by dynamic time warping.

Answers to openai-whisper's `timing.py`: the heads that follow the speech, scores normalised over the tokens, a median over time,
and the cheapest monotone path (Giorgino 2009, "Computing and Visualizing Dynamic Time Warping Alignments in R").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from zoo.api import Segment, Word
from zoo_whisper.hearing import Heard, Writing
from zoo_whisper.log_mel import FRAMES_PER_SECOND, WINDOW_FRAMES
from zoo_whisper.openai_package import openai_whisper
from zoo_whisper.tokens import SECONDS_PER_MOMENT

MEDIAN_WIDTH = 7
BEFORE_A_WORD = "\"'“¿([{-"
AFTER_A_WORD = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - the signs of Chinese and Japanese are meant
SENTENCE_ENDS = ".。!！?？"  # noqa: RUF001 - as above
LONGEST_MEDIAN_S = 0.7
UNLIKELY, SHORT_S, LONG_S = 0.15, 0.133, 2.0  # of a word that nobody may have said
LOOKED_AT = 8  # words of a segment that say whether it was made up


@dataclass(slots=True)
class _Timing:
    word: str
    tokens: list[int]
    start_s: float
    end_s: float
    probability: float


class Alignment:
    """One window that was heard, to be matched with what was written about it."""

    def __init__(self, model: Any, heard: Heard, language: str | None, task: str, frames: int) -> None:
        self.model, self.heard, self.frames = model, heard, frames
        self.language = language
        self.opening = model.controls.opening(language, task)

    def timings(self, text: Sequence[int]) -> list[_Timing]:
        """Words of these text tokens with their times from the start of the window."""
        if not text:
            return []
        known, decoder = self.model.controls, self.model.decoder
        tokens = [*self.opening, known.no_moments, *text, known.end]
        writing = Writing(decoder, self.heard, rows=1, capacity=len(tokens))
        watched = {layer: torch.empty(0) for layer, _ in self.model.alignment_heads}
        features_TD = writing.read(torch.tensor([tokens], device=writing.store.device), watched=watched)[0]
        start = len(self.opening)
        chosen = torch.tensor(list(text), device=features_TD.device)[:, None]
        logits_TV = decoder.logits(features_TD[start : start + len(text)])[:, : known.end]
        probabilities = logits_TV.float().softmax(-1).gather(1, chosen)[:, 0].tolist()
        scores = torch.stack([watched[layer][0, head] for layer, head in self.model.alignment_heads])
        text_places, moments = cheapest_path(-self._weights(scores)[start:-1].double().cpu().numpy())
        words = self.model.vocabulary.words(text, self.language)
        ends = np.cumsum([len(tokens_) for _, tokens_ in words])
        begins = np.concatenate(([0], ends[:-1]))
        first_moments = moments[np.concatenate(([True], np.diff(text_places) > 0))] * SECONDS_PER_MOMENT
        return [
            _Timing(
                word,
                tokens_,
                float(first_moments[begin]),
                float(first_moments[end]),
                float(np.mean(probabilities[begin:end])),
            )
            for (word, tokens_), begin, end in zip(words, begins.tolist(), ends.tolist(), strict=True)
        ]

    def _weights(self, scores_HTS: torch.Tensor) -> torch.Tensor:
        """Scores of the chosen heads -> how well each token fits each moment, float[T, S]."""
        weights = scores_HTS[:, :, : self.frames // 2].softmax(-1)
        deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, correction=0)
        filtered: torch.Tensor = openai_whisper().timing.median_filter((weights - mean) / deviation, MEDIAN_WIDTH)
        return filtered.mean(0)


def cheapest_path(cost_NM: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The monotone path through a matrix of costs from one corner to the other that costs least: its rows, and its columns.

    Diagonal by diagonal: what lies on one depends on the two before it alone.
    """
    rows, columns = cost_NM.shape
    total = np.full((rows + 1, columns + 1), np.inf, np.float32)
    total[0, 0] = 0
    step = np.zeros((rows + 1, columns + 1), np.int8)  # 0 both, 1 a row back, 2 a column back
    step[0, :], step[:, 0] = 2, 1
    for diagonal in range(2, rows + columns + 1):
        row = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        both, up, left = total[row - 1, column - 1], total[row - 1, column], total[row, column - 1]
        choice = np.where((both < up) & (both < left), 0, np.where((up < both) & (up < left), 1, 2))
        before = np.choose(choice, (both, up, left))
        total[row, column] = cost_NM[row - 1, column - 1] + before
        step[row, column] = choice
    path = []
    row_, column_ = rows, columns
    while row_ > 0 or column_ > 0:
        path.append((row_ - 1, column_ - 1))
        choice_ = step[row_, column_]
        row_ -= int(choice_ != 2)
        column_ -= int(choice_ != 1)
    both_ways = np.array(path[::-1])
    return both_ways[:, 0], both_ways[:, 1]


def segments_with_words(
    aligned: Alignment, segments: Sequence[Segment], offset_s: float, last_speech_s: float
) -> list[Segment]:
    """The segments of a window with the words in them, and their own times moved to those where they are surer.

    offset_s: where the window begins. last_speech_s: where the last word before it ended.
    """
    texts = [[token for token in segment.tokens if token < aligned.model.controls.end] for segment in segments]
    timings = aligned.timings([token for text in texts for token in text])
    durations = [timing.end_s - timing.start_s for timing in timings if timing.end_s != timing.start_s]
    median_s = min(LONGEST_MEDIAN_S, float(np.median(durations))) if durations else 0.0
    if durations:
        _shorten_at_sentence_ends(timings, 2 * median_s)
    openai_whisper().timing.merge_punctuations(timings, BEFORE_A_WORD, AFTER_A_WORD)
    answered, place = [], 0
    for segment, text in zip(segments, texts, strict=True):
        words, counted = [], 0
        while place < len(timings) and counted < len(text):
            timing = timings[place]
            if timing.word:
                start_s, end_s = round(offset_s + timing.start_s, 2), round(offset_s + timing.end_s, 2)
                words.append(Word(text=timing.word, start_s=start_s, end_s=end_s, probability=timing.probability))
            counted += len(timing.tokens)
            place += 1
        if words:
            segment = _fitted(replace(segment, words=tuple(words)), median_s, last_speech_s)  # noqa: PLW2901 - the same segment, fitted
            last_speech_s = segment.end_s
        answered.append(replace(segment, words=segment.words or ()))
    return answered


def skip_hallucinations(
    segments: list[Segment],
    silence_s: float,
    *,
    first: int,
    size: int,
    seek: int,
    frames: int,
    last_speech_s: float,
    ends_alone: bool,
) -> tuple[list[Segment] | None, int]:
    """Segments without those that were probably made up between silences, and where the next window begins; None in place of the
    segments where the first of them is made up after a silence, and all is to be heard again from its end.

    first, size: the window, in frames; seek: where the next would begin otherwise; frames: of the whole sound.
    """
    offset_s, window_end_s = first / FRAMES_PER_SECOND, (first + WINDOW_FRAMES) / FRAMES_PER_SECOND
    end_s = speech_end_s(segments)
    if not ends_alone and end_s is not None and end_s > offset_s:
        seek = round(end_s * FRAMES_PER_SECOND) if window_end_s - end_s > silence_s else first + size
    beginning = next((segment for segment in segments if segment.words), None)
    if beginning is not None and _made_up(beginning):
        gap_s = beginning.start_s - offset_s
        if gap_s > silence_s:
            return None, first + round(gap_s * FRAMES_PER_SECOND)
    before_s = last_speech_s
    for number, segment in enumerate(segments):
        if not segment.words:
            continue
        if _made_up(segment):
            following = next((other for other in segments[number + 1 :] if other.words), None)
            next_s = following.words[0].start_s if following and following.words else offset_s + size / FRAMES_PER_SECOND
            silence_before = (
                segment.start_s - before_s > silence_s or segment.start_s < silence_s or segment.start_s - offset_s < 2.0
            )
            silence_after = (
                next_s - segment.end_s > silence_s
                or (following is not None and _made_up(following))
                or window_end_s - segment.end_s < 2.0
            )
            if silence_before and silence_after:
                seek = round(max(offset_s + 1, segment.start_s) * FRAMES_PER_SECOND)
                if frames / FRAMES_PER_SECOND - segment.end_s < silence_s:
                    seek = frames
                return segments[:number], seek
        before_s = segment.end_s
    return segments, seek


def speech_end_s(segments: Sequence[Segment]) -> float | None:
    """Where the last word ends; without words, the last segment; None for no segments."""
    words = [word for segment in segments for word in segment.words or ()]
    return words[-1].end_s if words else segments[-1].end_s if segments else None


def _made_up(segment: Segment) -> bool:
    """Whether the words of a segment are too unlikely, too short or too long to have been said."""
    words = [word for word in segment.words or () if word.text not in BEFORE_A_WORD + AFTER_A_WORD][:LOOKED_AT]
    if not segment.words:
        return False
    score = 0.0
    for word in words:
        duration_s = word.end_s - word.start_s
        score += float(word.probability < UNLIKELY)
        score += 15 * max(0.0, SHORT_S - duration_s) + max(0.0, duration_s - LONG_S)
    return score >= 3 or score + 0.01 >= len(words)


def _shorten_at_sentence_ends(timings: Sequence[_Timing], longest_s: float) -> None:
    """A word beside the end of a sentence does not fill the pause there."""
    for before, timing in pairwise(timings):
        if timing.end_s - timing.start_s > longest_s:
            if timing.word in SENTENCE_ENDS:
                timing.end_s = timing.start_s + longest_s
            elif before.word in SENTENCE_ENDS:
                timing.start_s = timing.end_s - longest_s


def _fitted(segment: Segment, median_s: float, last_speech_s: float) -> Segment:
    """No word after a pause fills it, and segment and words begin and end together."""
    words = list(segment.words or ())
    longest_s = 2 * median_s
    first = words[0]
    too_long = first.end_s - first.start_s > longest_s or (
        len(words) > 1 and words[1].end_s - first.start_s > 2 * longest_s
    )
    if first.end_s - last_speech_s > 4 * median_s and too_long:
        if len(words) > 1 and words[1].end_s - words[1].start_s > longest_s:
            boundary_s = max(words[1].end_s / 2, words[1].end_s - longest_s)
            first, words[1] = replace(first, end_s=boundary_s), replace(words[1], start_s=boundary_s)
        first = replace(first, start_s=max(0, first.end_s - longest_s))
    start_s, end_s = segment.start_s, segment.end_s
    if start_s < first.end_s and start_s - 0.5 > first.start_s:
        first = replace(first, start_s=max(0, min(first.end_s - median_s, start_s)))
    else:
        start_s = first.start_s
    words[0] = first
    last = words[-1]
    if end_s > last.start_s and end_s + 0.5 < last.end_s:
        words[-1] = replace(last, end_s=max(last.start_s + median_s, end_s))
    else:
        end_s = last.end_s
    return replace(segment, start_s=start_s, end_s=end_s, words=tuple(words))
