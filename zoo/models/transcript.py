"""What a transcriber is asked, and what it gives: the pieces that every format of the command line is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

MAX_DURATION_S = 4 * 3600.0  # of a sound that is transcribed, where nobody says otherwise
SHORTEST_S = 0.1  # of a segment that is moved back into its sound
Span = tuple[float, float]  # begin and end in seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionOptions:
    """What a transcriber is asked to do.

    language: a code or a name; None: as it sounds. task: "transcribe" or "translate" (into English).
    word_timestamps: whether segments have words. batch_size: windows decoded together.
    speech: where somebody speaks, in order; the rest is passed over. None: nobody looked.
    own: options that this model alone has, by name.
    """

    language: str | None = None
    task: str = "transcribe"
    word_timestamps: bool = False
    batch_size: int = 1
    speech: Sequence[Span] | None = None
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word with the space before it. probability: the model's, of its tokens on average."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of speech.

    text: as written, with the space before it where the language has one.
    tokens: of the model's own vocabulary, where it has one.
    average_log_probability, no_speech_probability, compression_ratio, temperature: how sure the model was, and at which try; None
        where it cannot say.
    words: where asked for.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...] = ()
    average_log_probability: float | None = None
    no_speech_probability: float | None = None
    compression_ratio: float | None = None
    temperature: float | None = None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The segments of one step of a transcriber.

    reached_s: up to where the sound is done with. language: code of the language, None where the model knows but one.
    state: plain data (JSON) from which the transcriber can go on after this window, as if it had never stopped.
    """

    segments: tuple[Segment, ...]
    reached_s: float
    language: str | None = None
    state: Mapping[str, Any] = field(default_factory=dict)


def inside(window: Window, duration_s: float) -> Window:
    """The window with no segment and no word after the end of the sound: there a model can only guess. No text is lost.

    A segment that would begin after the end gets the last tenth of a second, and what is before it makes room.
    """
    segments: list[Segment] = []
    limit_s = duration_s
    for segment in reversed(window.segments):
        start_s = segment.start_s if segment.start_s < limit_s else max(0.0, limit_s - SHORTEST_S)
        segments.append(_until(replace(segment, start_s=start_s), limit_s))
        limit_s = duration_s if start_s == segment.start_s else start_s
    return replace(window, segments=tuple(segments[::-1]), reached_s=min(window.reached_s, duration_s))


def _until(segment: Segment, end_s: float) -> Segment:
    words = segment.words and tuple(
        replace(word, start_s=min(word.start_s, end_s), end_s=min(word.end_s, end_s)) for word in segment.words
    )
    return replace(segment, end_s=min(segment.end_s, end_s), words=words)
