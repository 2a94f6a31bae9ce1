"""A recording of any length -> segments: windows of 30 s, one after another, each decoded until it is good enough.

The algorithm is openai-whisper's `transcribe`, step by step: where a window begins follows from the last moment of the one before,
what was written there is its prompt, a window that repeats itself or is improbable is tried again at higher temperatures, and one
without speech is skipped. One thing differs: the language is asked of the first window as it is decoded, not of the first 30 s of the
file, computed once more with other padding. That shows where a sound is shorter than a window, or where the first window is elsewhere
(clips, voices).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from zoo.api import AudioReader, Segment, TranscriptionOptions, UsageError, Window
from zoo_whisper.log_mel import LogMel
from zoo_whisper.one_by_one import Follow, Place, clips_of, one_by_one
from zoo_whisper.openai_engine import openai_windows
from zoo_whisper.openai_package import normalised
from zoo_whisper.options import WhisperOptions, check_together, ladder_of, numbers, rules_of
from zoo_whisper.run import Run
from zoo_whisper.together import together
from zoo_whisper.tokens import Controls, language_code


def windows(
    model: Any, reader: AudioReader, asked: TranscriptionOptions, /, *, state: Mapping[str, Any] | None = None
) -> Iterator[Window]:
    """Segments of a sound, window by window, in order.

    asked: its `own` are the fields of `zoo_whisper.options.WhisperOptions`. batch_size above 1 needs `speech`, by which windows are cut,
        and each is then on its own: none is told what another wrote. That changes words where a sentence spans two windows.
    state: of a Window that was given before: goes on after it.
    Raises UsageError for options that contradict each other or the model, MediaError where a clip starts after the sound's end.
    """
    own = WhisperOptions(**asked.own)
    language = _language(model, asked)
    if own.hallucination_silence_threshold is not None and not asked.word_timestamps:
        raise UsageError("hallucination_silence_threshold looks at words: set word_timestamps, too")
    check_together(asked, own)
    ladder, clip_points_s = ladder_of(own), numbers("clip_timestamps", own.clip_timestamps)
    rules = rules_of(own, model, language=language, task=asked.task)
    prompt = model.vocabulary.encode(f" {own.initial_prompt.strip()}") if own.initial_prompt else []
    if asked.speech is not None:  # somebody speaks there: what is improbable is tried again, and not taken for silence
        ladder = replace(ladder, no_speech_threshold=None)
    if model.engine == "openai":
        return _shown(openai_windows(model, reader, asked, language, state), own, asked.task)
    run = Run(model, LogMel(reader, model.encoder.bands), rules, ladder, own.seed, prompt, asked.word_timestamps)
    if asked.batch_size > 1:
        return _shown(together(run, asked.speech or (), asked.batch_size, state), own, asked.task)
    clips = clips_of(clip_points_s, asked.speech, run.mel.frames, reader.label)
    follow = Follow(
        conditioned=own.condition_on_previous_text is not False,
        carried=own.carry_initial_prompt,
        hallucination_silence_s=own.hallucination_silence_threshold,
        speech=asked.speech or (),
    )
    place = Place(**state) if state else Place(seek=clips[0][0] if clips else 0)
    return _shown(one_by_one(run, clips, follow, place), own, asked.task)


def _shown(found: Iterator[Window], own: WhisperOptions, task: str) -> Iterator[Window]:
    """The windows, with the text of each segment normalised where that is asked for; one of which nothing is left goes."""
    if not own.normalise:
        return found
    return (replace(one, segments=_normalised(one, "en" if task == "translate" else one.language)) for one in found)


def _normalised(window: Window, language: str | None) -> tuple[Segment, ...]:
    texts = [(segment, normalised(segment.text, language)) for segment in window.segments]
    return tuple(replace(segment, text=f" {text}") for segment, text in texts if text)


def _language(model: Any, asked: TranscriptionOptions) -> str | None:
    """The code of the language that was asked for; None where the model is to hear which, and where it knows but one."""
    known: Controls = model.controls
    code = None if asked.language is None else language_code(asked.language, known.languages or {"en": 0})
    if asked.task == "translate" and not known.multilingual:
        raise UsageError("this model knows English alone and cannot translate: take one without .en in its name")
    return code if known.multilingual else None
