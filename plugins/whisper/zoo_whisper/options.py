"""What Whisper can be asked, by the names of openai-whisper, and what follows for its decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from zoo.api import TranscriptionOptions, UsageError
from zoo_whisper.ladder import TEMPERATURES, Ladder
from zoo_whisper.log_mel import FRAMES_PER_SECOND, WINDOW_FRAMES
from zoo_whisper.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperOptions:
    """The options that are Whisper's own; they mean what they mean in openai-whisper.

    temperature: the ladder; a single number is a ladder of one step. beam_size and patience count at temperature 0, best_of elsewhere.
    condition_on_previous_text: whether a window is told what was written before it: True when None, and never in batches.
    suppress_tokens: ids that are never written; -1 stands for all that nobody speaks (brackets, notes, ...).
    clip_timestamps: start, end, start, ... in seconds: only there is listened to; the last end may be left out.
    seed: of the samples, together with the place of a window; None: torch's own state.
    no_speech_threshold: has no say where voice activity has heard somebody.
    normalise: texts as openai-whisper's normalisers leave them, on which word errors are counted; words keep their own.
    """

    temperature: float | str | Sequence[float] = TEMPERATURES
    beam_size: int | None = None
    patience: float | None = None
    best_of: int | None = None
    length_penalty: float | None = None
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool | None = None
    initial_prompt: str | None = None
    carry_initial_prompt: bool = False
    suppress_tokens: str | Sequence[int] | None = (-1,)
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    hallucination_silence_threshold: float | None = None
    clip_timestamps: str | Sequence[float] = ()
    seed: int | None = 0
    normalise: bool = False


OPTIONS = frozenset({"word_timestamps", "batch_size", "speech", *(one.name for one in fields(WhisperOptions))})


def check_together(asked: TranscriptionOptions, own: WhisperOptions) -> None:
    """Raise UsageError where windows are to be decoded together and something goes from one to the next."""
    size = asked.batch_size
    if size < 1:
        raise UsageError(f"batch_size is at least 1, got {size}")
    if size == 1:
        return
    for name in (
        "condition_on_previous_text",
        "carry_initial_prompt",
        "hallucination_silence_threshold",
        "clip_timestamps",
    ):
        if getattr(own, name):
            raise UsageError(f"{name} goes from one window to the next, and batch_size={size} decodes them together")
    if asked.speech is None:
        raise UsageError(f"batch_size={size} needs the spans of speech, by which windows are cut (vad=True)")


def ladder_of(own: WhisperOptions) -> Ladder:
    """When a window is good enough. Raises UsageError for what is no temperature, and for thresholds that are no numbers."""
    given = [own.temperature] if isinstance(own.temperature, (int, float)) else own.temperature
    return Ladder(
        temperatures=numbers("temperature", given),
        compression_ratio_threshold=_threshold(own, "compression_ratio_threshold"),
        logprob_threshold=_threshold(own, "logprob_threshold"),
        no_speech_threshold=_threshold(own, "no_speech_threshold"),
    )


def _threshold(own: WhisperOptions, name: str) -> float | None:
    """None is no threshold; NaN would be none, too, and nobody has said so. Raises UsageError."""
    given = getattr(own, name)
    return None if given is None else numbers(name, (given,))[0]


def rules_of(own: WhisperOptions, model: Any, *, language: str | None, task: str) -> Rules:
    """How a window is decoded. Raises UsageError for numbers out of range."""
    latest_s = own.max_initial_timestamp
    if latest_s is not None and not 0 <= latest_s <= WINDOW_FRAMES / FRAMES_PER_SECOND:
        raise UsageError(f"max_initial_timestamp is a second of the window, 0 to 30, got {latest_s}")
    return Rules(
        language=language,
        task=task,
        beam_size=own.beam_size,
        patience=own.patience,
        best_of=own.best_of,
        length_penalty=own.length_penalty,
        suppressed=_suppressed(own.suppress_tokens, model),
        without_moments=own.without_timestamps,
        latest_first_moment_s=latest_s or None,  # 0 is no limit there, and here
    )


def numbers(name: str, given: str | Sequence[Any]) -> tuple[float, ...]:
    """Numbers as they are given, or between commas. Raises UsageError for what is none, infinity and NaN."""
    parts = [part for part in given.split(",") if part.strip()] if isinstance(given, str) else list(given)
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(f"{name} takes numbers, got {given!r}") from None
    if not all(map(math.isfinite, found)):
        raise UsageError(f"{name} takes finite numbers, got {given!r}")
    return found


def token_ids(name: str, given: str | Sequence[int] | None) -> list[int]:
    """Whole numbers as they are given, or between commas; none for None. Raises UsageError for what is no whole number."""
    found = numbers(name, () if given is None else given)
    if not all(number.is_integer() for number in found):
        raise UsageError(f"{name} takes whole numbers, got {given!r}")
    return [int(number) for number in found]


def _suppressed(given: str | Sequence[int] | None, model: Any) -> tuple[int, ...]:
    """The ids that are never written, sorted. Raises UsageError for one that the model does not have."""
    tokens = token_ids("suppress_tokens", given)
    named = {token for token in tokens if token != -1}
    wrong = [token for token in named if not 0 <= token < model.decoder.vocabulary]
    if wrong:
        raise UsageError(f"suppress_tokens are -1 and ids from 0 to {model.decoder.vocabulary - 1}, got {wrong[0]}")
    return tuple(sorted(named.union(model.vocabulary.unspoken() if -1 in tokens else ())))
