"""Where in a sound somebody speaks: spans in seconds, from a model's probability for each 32 ms or so.

The rule is a hysteresis: speech begins where the probability reaches `threshold` and ends where it falls below `threshold` - 0.15 for
`silence_s`. Spans are widened by `margin_s`, and one that is longer than `longest_s` is cut at the quietest place in its second half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoo.errors import PluginError, UsageError
from zoo.media.audio_reader import AudioReader
from zoo.models.build import Built, ModelSpec
from zoo.models.contracts import VoiceActivity
from zoo.models.transcript import Span
from zoo.registry.modality import AUDIO
from zoo.registry.plugin import describe
from zoo.tasks.encoding import open_for, plugin_errors

TASK = "voice-activity"
BLOCK_S = 30
HYSTERESIS = 0.15


def open_detector(model: str | ModelSpec | Built | None = None) -> Built:
    """The named detector of voices, or the installed default. Raises UsageError for a model that is none."""
    built = open_for(TASK, model, kinds=("encoder",), modalities=(AUDIO,))
    if not isinstance(built.module, VoiceActivity):
        raise UsageError(f"{built.name} says of no moment whether somebody speaks: it is an encoder without `activity`")
    return built


def speech_spans(
    reader: AudioReader,
    detector: Built,
    *,
    threshold: float = 0.5,
    shortest_s: float = 0.25,
    silence_s: float = 0.5,
    margin_s: float = 0.2,
    longest_s: float = 29.0,
) -> list[Span]:
    """(start, end) in seconds of what is spoken, in order and apart. Reads the sound from its start to its end.

    threshold: probability at which speech begins. shortest_s: shorter spans are noise. silence_s: pause that ends a span.
    margin_s: added on both sides. longest_s: longer spans are cut.
    Raises UsageError unless the reader has the detector's rate, PluginError for what is no probability.
    """
    module: Any = detector.module
    if reader.sample_rate_hz != module.sample_rate_hz:
        raise UsageError(
            f"{detector.name} hears {module.sample_rate_hz:,} Hz, the sound is read at {reader.sample_rate_hz:,}"
        )
    if not HYSTERESIS < threshold < 1:
        raise UsageError(f"threshold is a probability above {HYSTERESIS}, got {threshold}")
    probabilities, samples = _probabilities(reader, detector)
    hop_s = module.hop_samples / module.sample_rate_hz
    spans = _hysteresis(probabilities, threshold, round(silence_s / hop_s))
    spans = [(start, end) for start, end in spans if (end - start) * hop_s >= shortest_s]
    longest = max(2, int(longest_s / hop_s))
    pieces = [piece for span in spans for piece in _cut(span, probabilities, longest)]
    return _widened([(start * hop_s, end * hop_s) for start, end in pieces], margin_s, samples / module.sample_rate_hz)


@torch.inference_mode()
def _probabilities(reader: AudioReader, detector: Built) -> tuple[list[float], int]:
    module: Any = detector.module
    block = BLOCK_S * module.sample_rate_hz // module.hop_samples * module.hop_samples
    probabilities: list[float] = []
    start, state = 0, None
    while len(samples := reader.read(start, block)):
        with plugin_errors(detector):
            found, state = module.activity(torch.from_numpy(samples), state)
        if not bool((found.isfinite() & (found >= 0) & (found <= 1)).all()):
            raise PluginError(
                f"{describe(detector.found.card.provider)}: {detector.name} gave what is no probability at {start:,}"
            )
        probabilities += found.tolist()
        start += len(samples)
    return probabilities, start


def _hysteresis(probabilities: Sequence[float], threshold: float, silence: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start: int | None = None
    last_loud = 0
    for number, probability in enumerate(probabilities):
        if probability >= threshold and start is None:
            start = number
        if start is not None and probability >= threshold - HYSTERESIS:
            last_loud = number + 1
        if start is not None and number + 1 - last_loud >= max(1, silence):
            spans.append((start, last_loud))
            start = None
    return [*spans, (start, last_loud)] if start is not None else spans


def _cut(span: tuple[int, int], probabilities: Sequence[float], longest: int) -> list[tuple[int, int]]:
    start, end = span
    pieces = []
    while end - start > longest:
        second_half = range(start + longest // 2, start + longest)
        quietest = min(second_half, key=lambda number: (probabilities[number], -number))
        pieces.append((start, quietest))
        start = quietest
    return [*pieces, (start, end)]


def _widened(spans: Sequence[Span], margin_s: float, duration_s: float) -> list[Span]:
    """Margins on both sides, at most up to the middle between two spans."""
    widened = []
    for number, (start, end) in enumerate(spans):
        before = (spans[number - 1][1] + start) / 2 if number else 0.0
        after = (end + spans[number + 1][0]) / 2 if number + 1 < len(spans) else duration_s
        widened.append((max(before, start - margin_s), min(after, end + margin_s)))
    return widened
