"""What a transcriber promises: pieces of speech in order, the same again from the same seed, and work that goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from math import isfinite
from typing import Any

import numpy as np

from zoo.errors import UsageError
from zoo.media.audio import Sound, open_reader
from zoo.models.transcript import Segment, TranscriptionOptions, Window
from zoo.testing.check import CheckFailed, CheckSkipped, Subject, check
from zoo.testing.samples import extreme, ordinary

TRANSCRIBERS = ("transcriber",)
LONG_S = 50  # several windows of any transcriber
MOST_WINDOWS = 3  # of a long sound that a check looks at: untrained models may take small steps


@check("speech", "Segments come in order, lie in the sound, and hold finite numbers.", kinds=TRANSCRIBERS)
def segments_are_in_order(subject: Subject) -> None:
    found = list(islice(_windows(subject, _long()), MOST_WINDOWS))
    if not found:
        raise CheckFailed(f"a sound of {LONG_S} s gives no window: expected at least one, empty where nothing is said")
    for before, after in pairwise(found):
        if after.reached_s < before.reached_s:
            raise CheckFailed(f"reached_s goes back from {before.reached_s} to {after.reached_s}")
    segments = [segment for window in found for segment in window.segments]
    for segment in segments:
        if not 0 <= segment.start_s <= segment.end_s <= LONG_S + 1:
            raise CheckFailed(f"a segment from {segment.start_s} to {segment.end_s} s in a sound of {LONG_S} s")
        numbers = (segment.average_log_probability, segment.no_speech_probability, segment.compression_ratio)
        if not all(number is None or isfinite(number) for number in numbers):
            raise CheckFailed(f"the segment at {segment.start_s} s holds NaN or infinity: {numbers}")
    for first, second in pairwise(segments):
        if second.start_s < first.start_s:
            raise CheckFailed(f"a segment at {second.start_s} s comes after one at {first.start_s} s")


@check(
    "speech", "The same sound gives the same again, and what another sound left behind changes nothing.", kinds=TRANSCRIBERS
)
def same_sound_same_segments(subject: Subject) -> None:
    first = list(islice(_windows(subject, _long()), 2))
    list(_windows(subject, ordinary("audio")[0]))
    if list(islice(_windows(subject, _long()), 2)) != first:
        raise CheckFailed(
            "the second time it writes something else: samples need a seed, and no state may stay in the model"
        )


@check("speech", "It goes on after any window from the window's state, which is plain data.", kinds=TRANSCRIBERS)
def work_goes_on(subject: Subject) -> None:
    found = list(islice(_windows(subject, _long()), 3))
    if len(found) < 2:
        raise CheckSkipped(f"a sound of {LONG_S} s is one window of it")
    try:
        state = json.loads(json.dumps(dict(found[0].state)))
    except TypeError as error:
        raise CheckFailed(f"the state of a window is no plain data: {error}") from None
    again = list(islice(_windows(subject, _long(), state=state), len(found) - 1))
    if [window.segments for window in again] != [window.segments for window in found[1:]]:
        raise CheckFailed("from the state of the first window it writes something else than without stopping")


@check("speech", "Extreme but legal sounds are transcribed, silence and a single sample too.", kinds=TRANSCRIBERS)
def extreme_sounds_are_heard(subject: Subject) -> None:
    for name, sound in extreme("audio"):
        for window in islice(_windows(subject, sound), MOST_WINDOWS):
            if not all(isinstance(segment, Segment) for segment in window.segments):
                raise CheckFailed(f"{name}: segments must be zoo.api.Segment")


@check("speech", "A language or a task that it does not know is refused.", kinds=TRANSCRIBERS)
def unknown_languages_are_refused(subject: Subject) -> None:
    for name, value in (("language", "klingon"), ("task", "sing")):
        asked = {name: value}
        try:
            list(_windows(subject, ordinary("audio")[0], TranscriptionOptions(**{name: value})))  # type: ignore[arg-type]  # texts
        except UsageError as error:
            if value in str(error):
                continue
            raise CheckFailed(f"{asked} is refused without being named: {error}") from None
        except ValueError as error:
            raise CheckFailed(
                f"{asked} raises {type(error).__name__}, expected zoo.api.UsageError with what there is"
            ) from None
        raise CheckFailed(f"{asked} was accepted, expected zoo.api.UsageError with what there is")


def _windows(
    subject: Subject,
    sound: Sound,
    options: TranscriptionOptions = TranscriptionOptions(),  # noqa: B008 - it is frozen
    *,
    state: Mapping[str, Any] | None = None,
) -> Iterator[Window]:
    module: Any = subject.module
    with open_reader(sound, sample_rate_hz=module.sample_rate_hz) as reader:
        for window in module.windows(reader, options, state=state):
            if not isinstance(window, Window):
                raise CheckFailed(f"windows gives {type(window).__name__}, expected zoo.api.Window")
            yield window


def _long() -> Sound:
    """Syllables of noise and tone with pauses."""
    generator = np.random.default_rng(3)
    times = np.arange(LONG_S * 16_000) / 16_000
    loudness = np.clip(np.sin(2 * np.pi * 1.5 * times), 0, 1) * (np.sin(2 * np.pi * times / 11) > -0.5)
    tone = np.sin(2 * np.pi * 180 * times) + 0.4 * generator.standard_normal(len(times))
    return Sound((0.1 * loudness * tone).astype(np.float32), 16_000)
