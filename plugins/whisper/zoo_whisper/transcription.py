"""A recording of any length -> segments: windows of 30 s, one after another, each decoded until it is good enough.

The algorithm is openai-whisper's `transcribe`, step by step: where a window begins follows from the last moment of the one before,
what was written there is its prompt, a window that repeats itself or is improbable is tried again at higher temperatures, and one
without speech is skipped. One thing differs: the language is asked of the first window as it is decoded, not of the first 30 s of the
file, computed once more with other padding. That shows where a sound is shorter than a window, or where the first window is elsewhere
(clips, voices).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from zoo.api import AudioReader, Segment, UsageError, Window
from zoo_whisper.decoding import Decoded, Rules, decode
from zoo_whisper.hearing import Heard, Writing, hear
from zoo_whisper.ladder import TEMPERATURES, Ladder
from zoo_whisper.log_mel import FRAMES_PER_SECOND, WINDOW_FRAMES, LogMel
from zoo_whisper.tokens import SECONDS_PER_MOMENT, Controls, language_code
from zoo_whisper.words import Alignment, segments_with_words, skip_hallucinations, speech_end_s

FRAMES_PER_MOMENT = 2
HOT = 0.5  # what was written at a higher temperature is no prompt for what follows
Span = tuple[float, float]


@dataclass(slots=True, kw_only=True)
class _Place:
    """Where a transcription stands: all that the next window depends on."""

    seek: int = 0
    clip: int = 0
    language: str | None = None
    before: list[int] = field(default_factory=list)  # tokens since the last reset, as many as a prompt can hold
    was_reset: bool = False
    last_speech_s: float = 0.0

    def to_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def windows(
    model: Any,
    reader: AudioReader,
    /,
    *,
    language: str | None = None,
    task: str = "transcribe",
    word_timestamps: bool = False,
    temperature: float | Sequence[float] = TEMPERATURES,
    beam_size: int | None = None,
    patience: float | None = None,
    best_of: int | None = None,
    length_penalty: float | None = None,
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool | None = None,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    suppress_tokens: str | Sequence[int] | None = (-1,),
    without_timestamps: bool = False,
    max_initial_timestamp: float | None = 1.0,
    hallucination_silence_threshold: float | None = None,
    clip_timestamps: str | Sequence[float] = (),
    batch_size: int = 1,
    speech: Sequence[Span] | None = None,
    seed: int | None = 0,
    state: Mapping[str, Any] | None = None,
) -> Iterator[Window]:
    """Segments of a sound, window by window, in order; the arguments mean what they mean in openai-whisper.

    language: a code or a name; None: as the first window sounds. task: "translate" writes English.
    temperature: the ladder; a single number is a ladder of one step. beam_size and patience count at temperature 0, best_of elsewhere.
    condition_on_previous_text: whether a window is told what was written before it: True when None, and never in batches.
    suppress_tokens: ids that are never written; -1 stands for all that nobody speaks (brackets, notes, ...).
    clip_timestamps: start, end, start, ... in seconds: only there is listened to; the last end may be left out.
    batch_size: windows decoded together. More than 1 needs `speech`, by which they are cut, and each is then on its own: none is told
        what another wrote. That changes words where a sentence spans two windows.
    speech: spans in seconds in which somebody speaks (zoo.tasks.voice_activity); the rest is passed over.
    seed: of the samples, together with the place of a window; None: torch's own state.
    state: of a Window that was given before: goes on after it.
    Raises UsageError for arguments that contradict each other or the model.
    """
    known: Controls = model.controls
    if language is not None:
        language = language_code(language, known.languages or {"en": 0})
    if task == "translate" and not known.multilingual:
        raise UsageError("this model knows English alone and cannot translate: take one without .en in its name")
    if hallucination_silence_threshold is not None and not word_timestamps:
        raise UsageError("hallucination_silence_threshold looks at words: set word_timestamps, too")
    follows_on = {
        "condition_on_previous_text": condition_on_previous_text,
        "carry_initial_prompt": carry_initial_prompt,
        "hallucination_silence_threshold": hallucination_silence_threshold,
        "clip_timestamps": clip_timestamps,
    }
    _check_batches(batch_size, speech, follows_on)
    temperatures = _numbers("temperature", [temperature] if isinstance(temperature, (int, float)) else temperature)
    clip_timestamps = _numbers("clip_timestamps", clip_timestamps)
    if max_initial_timestamp is not None and not 0 <= max_initial_timestamp <= WINDOW_FRAMES / FRAMES_PER_SECOND:
        raise UsageError(f"max_initial_timestamp is a second of the window, 0 to 30, got {max_initial_timestamp}")
    ladder = Ladder(
        temperatures=temperatures,
        compression_ratio_threshold=compression_ratio_threshold,
        logprob_threshold=logprob_threshold,
        no_speech_threshold=no_speech_threshold,
    )
    rules = Rules(
        language=language if known.multilingual else None,
        task=task,
        beam_size=beam_size,
        patience=patience,
        best_of=best_of,
        length_penalty=length_penalty,
        suppressed=_suppressed(suppress_tokens, model),
        without_moments=without_timestamps,
        latest_first_moment_s=max_initial_timestamp or None,  # 0 is no limit there, and here
    )
    prompt = model.vocabulary.encode(f" {initial_prompt.strip()}") if initial_prompt else []
    run = _Run(model, LogMel(reader, model.encoder.bands), rules, ladder, seed, prompt, word_timestamps)
    if batch_size > 1:
        return _together(run, speech or (), batch_size, state)
    clips = _clips(clip_timestamps, speech, run.mel.frames)
    follow = _Follow(
        conditioned=condition_on_previous_text is not False,
        carried=carry_initial_prompt,
        hallucination_silence_s=hallucination_silence_threshold,
    )
    return _one_by_one(run, clips, follow, _Place(**state) if state else _Place(seek=clips[0][0] if clips else 0))


def _check_batches(batch_size: int, speech: Sequence[Span] | None, follows_on: Mapping[str, Any]) -> None:
    """Raise UsageError where windows are to be decoded together and something goes from one to the next."""
    if batch_size < 1:
        raise UsageError(f"batch_size is at least 1, got {batch_size}")
    if batch_size == 1:
        return
    for name, value in follows_on.items():
        if value:
            raise UsageError(f"{name} goes from one window to the next, and batch_size={batch_size} decodes them together")
    if speech is None:
        raise UsageError(f"batch_size={batch_size} needs the spans of speech, by which windows are cut (vad=True)")


def _numbers(name: str, given: str | Sequence[Any]) -> tuple[float, ...]:
    """Numbers as they are given, or between commas. Raises UsageError for what is none, infinity and NaN."""
    parts = [part for part in given.split(",") if part.strip()] if isinstance(given, str) else list(given)
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(f"{name} takes numbers, got {given!r}") from None
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} takes finite numbers, got {given!r}")
    return numbers


def _suppressed(given: str | Sequence[int] | None, model: Any) -> tuple[int, ...]:
    """The ids that are never written, sorted. Raises UsageError for one that the model does not have."""
    tokens = [int(number) for number in _numbers("suppress_tokens", () if given is None else given)]
    named = {token for token in tokens if token != -1}
    wrong = [token for token in named if not 0 <= token < model.decoder.vocabulary]
    if wrong:
        raise UsageError(f"suppress_tokens are -1 and ids from 0 to {model.decoder.vocabulary - 1}, got {wrong[0]}")
    return tuple(sorted(named.union(model.vocabulary.unspoken() if -1 in tokens else ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Follow:
    """What goes from one window to the next."""

    conditioned: bool
    carried: bool
    hallucination_silence_s: float | None


class _Run:
    """One transcription: the model, the sound and the rules, and how a window of it is heard and decoded."""

    def __init__(
        self, model: Any, mel: LogMel, rules: Rules, ladder: Ladder, seed: int | None, prompt: list[int], words: bool
    ) -> None:
        self.model, self.mel, self.rules, self.ladder, self.seed = model, mel, rules, ladder, seed
        self.prompt, self.words = prompt, words
        self.known: Controls = model.controls

    def hear(self, places: Sequence[tuple[int, int]]) -> Heard:
        """Windows, each a first frame and how many -> what the decoder hears of them."""
        mel_BCT = torch.stack([self.mel.padded(first, count) for first, count in places])
        return hear(self.model.decoder, self.model.encoder.features(mel_BCT.to(self.model.encoder.conv1.weight.device)))

    def spoken(self, heard: Heard) -> str:
        """The likeliest language of the first window."""
        writing = Writing(self.model.decoder, heard, rows=heard.windows, capacity=1)
        start = torch.full((heard.windows, 1), self.known.start, device=writing.store.device)
        logits_V = self.model.decoder.logits(writing.read(start)[0, 0])
        codes = list(self.known.languages)
        return codes[int(logits_V[[self.known.languages[code] for code in codes]].argmax())]

    def decode(self, heard: Heard, rules: Rules, prompt: Sequence[int], frames: Sequence[int]) -> list[Decoded]:
        """Every window, each beginning at a frame, at the first temperature that is good enough for it, or at the last there is."""
        results: dict[int, Decoded] = {}
        left = list(range(heard.windows))
        for temperature in self.ladder.temperatures:
            generators = self._generators([frames[window] for window in left], temperature, heard.pairs[0][0].device)
            found = decode(
                self.model, heard.chosen(left), rules, prompt=prompt, temperature=temperature, generators=generators
            )
            results.update(zip(left, found, strict=True))
            left = [window for window in left if self.ladder.fails(results[window])]
            if not left:
                break
        return [results[window] for window in range(heard.windows)]

    def _generators(self, frames: Sequence[int], temperature: float, device: torch.device) -> list[torch.Generator] | None:
        """Samples depend on the seed, the temperature and where a window begins: on nothing that was decoded before or beside it."""
        if self.seed is None or temperature == 0:
            return None
        seeds = [hash((self.seed, frame, round(1000 * temperature))) % 2**63 for frame in frames]
        return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]


def _clips(timestamps: Sequence[float], speech: Sequence[Span] | None, frames: int) -> list[tuple[int, int]]:
    """Where to listen, in frames."""
    if timestamps and speech is not None:
        raise UsageError("clip_timestamps and voice activity both say where to listen: give one of them")
    points = [round(point * FRAMES_PER_SECOND) for point in timestamps] or [0]
    if speech is not None:
        points = [round(point * FRAMES_PER_SECOND) for span in speech for point in span]
    elif len(points) % 2:
        points.append(frames)
    if any(later < earlier for earlier, later in pairwise(points)):
        raise UsageError(f"clip_timestamps are start, end, start, ... in seconds and never go back, got {list(timestamps)}")
    return [(start, min(end, frames)) for start, end in zip(points[::2], points[1::2], strict=True)]


@torch.inference_mode()
def _one_by_one(run: _Run, clips: Sequence[tuple[int, int]], follow: _Follow, place: _Place) -> Iterator[Window]:
    longest = run.model.decoder.context // 2 - 1
    rules = run.rules
    while place.clip < len(clips):
        start, end = clips[place.clip]
        place.seek = max(place.seek, start)
        if place.seek >= end:
            place.clip += 1
            continue
        first, size = place.seek, min(WINDOW_FRAMES, end - place.seek)
        heard = run.hear([(first, size)])
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
            segments, place.seek = _segments(result, run.known, first, size, run.model.vocabulary)
            if run.words:
                with_words = _with_words(run, heard, rules, segments, follow, place, (first, size), result)
                if with_words is None:  # silence before what was made up: as if nothing had been decoded
                    yield _window([], min(place.seek, end), place.language, place.to_state())
                    continue
                segments = with_words
            segments = [segment for segment in segments if segment.text.strip() and segment.start_s != segment.end_s]
            written = [token for segment in segments for token in segment.tokens]
            place.before = (place.before + written)[-longest:]
            if not follow.conditioned or result.temperature > HOT:
                place.before, place.was_reset = [], True
        yield _window(segments, min(place.seek, end), place.language, place.to_state())


def _with_words(
    run: _Run,
    heard: Heard,
    rules: Rules,
    segments: list[Segment],
    follow: _Follow,
    place: _Place,
    window: tuple[int, int],
    result: Decoded,
) -> list[Segment] | None:
    """The segments with their words, which may move the next window and take segments away; None: start anew where that is."""
    first, size = window
    aligned = Alignment(run.model, heard, rules.language, rules.task, size)
    segments = segments_with_words(aligned, segments, first / FRAMES_PER_SECOND, place.last_speech_s)
    known_end = _ends_alone(result.tokens, run.known)
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


@torch.inference_mode()
def _together(run: _Run, speech: Sequence[Span], batch_size: int, state: Mapping[str, Any] | None) -> Iterator[Window]:
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
                segments, _ = _segments(result, run.known, first, size, run.model.vocabulary, to_the_end=True)
                if run.words:
                    aligned = Alignment(run.model, heard.chosen([number]), language, rules.task, size)
                    segments = segments_with_words(aligned, segments, first / FRAMES_PER_SECOND, first / FRAMES_PER_SECOND)
            segments = [segment for segment in segments if segment.text.strip()]
            state_after = {"done": begin + number + 1, "language": language}
            yield _window(segments, first + size, language, state_after)


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


def _window(segments: Sequence[Segment], frame: int, language: str | None, state: Mapping[str, Any]) -> Window:
    return Window(
        segments=tuple(segments),
        reached_s=frame / FRAMES_PER_SECOND,
        language=language,
        state={key: list(value) if isinstance(value, list) else value for key, value in state.items()},
    )


def _ends_alone(tokens: Sequence[int], known: Controls) -> bool:
    """Whether the last moment stands alone: nothing is said after it in this window."""
    moments = [token >= known.first_moment for token in tokens[-2:]]
    return moments == [False, True]


def _segments(
    result: Decoded, known: Controls, first: int, size: int, vocabulary: Any, *, to_the_end: bool = False
) -> tuple[list[Segment], int]:
    """Tokens of a window -> its segments, and where the next window begins.

    Between two moments side by side one segment ends and the next begins. What follows the last such pair is not finished: the
    next window begins there; to_the_end makes a segment of it instead.
    """
    tokens = result.tokens
    offset_s = first / FRAMES_PER_SECOND
    moment = [token >= known.first_moment for token in tokens]
    alone = _ends_alone(tokens, known)
    cuts = [place for place in range(1, len(tokens)) if moment[place - 1] and moment[place]]

    def segment(own: Sequence[int], start_s: float, end_s: float) -> Segment:
        return Segment(
            start_s=start_s,
            end_s=end_s,
            text=vocabulary.decode([token for token in own if token < known.end]),
            tokens=tuple(own),
            average_log_probability=result.average_log_probability,
            no_speech_probability=result.no_speech_probability,
            compression_ratio=result.compression_ratio,
            temperature=result.temperature,
        )

    def time_s(token: int) -> float:
        return (token - known.first_moment) * SECONDS_PER_MOMENT

    window_s = size / FRAMES_PER_SECOND
    if not cuts:
        times = [token for token, is_moment in zip(tokens, moment, strict=True) if is_moment]
        duration_s = time_s(times[-1]) if times and times[-1] != known.first_moment else window_s
        return [segment(tokens, offset_s, offset_s + duration_s)], first + size
    segments = []
    pieces = [*cuts, len(tokens)] if alone or to_the_end else cuts
    last = 0
    for cut in pieces:
        own = tokens[last:cut]
        end_s = time_s(own[-1]) if moment[cut - 1] else window_s
        if to_the_end:  # what the model hears in the silence after a cut belongs to nobody
            end_s = min(end_s, window_s)
        segments.append(segment(own, offset_s + time_s(own[0]), offset_s + end_s))
        last = cut
    if alone or to_the_end:
        return segments, first + size
    return segments, first + (tokens[last - 1] - known.first_moment) * FRAMES_PER_MOMENT
