"""Nothing that voice activity marks as speech is passed over, and no time lies outside the sound: scripted tokens, and real weights."""

from collections import defaultdict

import numpy as np
import pytest
import soundfile
import torch
from sounds import RATE_HZ, noise, speech
from zoo_whisper.decoding import Decoded
from zoo_whisper.openai_package import tokenizer
from zoo_whisper.run import Run
from zoo_whisper.speech_left import left_after, left_out, trimmed

import zoo
from zoo.errors import WeightsMissingError
from zoo.media.audio import Sound, open_reader
from zoo.models.transcript import Segment, TranscriptionOptions

MOMENT = 50_364
SPEECH = [(0.0, 4.0), (10.0, 15.0), (21.0, 26.0)]


def piece(start_s, end_s, text=" a"):
    return Segment(start_s=start_s, end_s=end_s, text=text)


@pytest.fixture(scope="module")
def random():
    torch.manual_seed(0)
    return zoo.build("whisper/random", weights=None)


def written(*parts):
    """Seconds and texts -> tokens."""
    encode = tokenizer(True, 99, None).encode
    return [token for part in parts for token in (encode(part) if isinstance(part, str) else [MOMENT + round(50 * part)])]


def scripted(monkeypatch, script):
    """The decoder writes what the script says about a window that begins at a second; what was asked is returned."""
    asked = []

    def decode(_, heard, rules, prompt, frames):
        del heard, rules, prompt
        asked.append([frame / 100 for frame in frames])
        return [
            Decoded(
                tokens=script[frame / 100],
                text="",
                average_log_probability=-0.1,
                no_speech_probability=0.9,
                temperature=0.0,
                compression_ratio=1.0,
            )
            for frame in frames
        ]

    monkeypatch.setattr(Run, "decode", decode)
    return asked


def heard(model, batch_size, duration_s=30, spans=SPEECH):
    asked = TranscriptionOptions(language="en", batch_size=batch_size, speech=spans)
    with open_reader(Sound(noise(duration_s), RATE_HZ)) as reader:
        windows = list(model.windows(reader, asked))
    return [(one.text, one.start_s, one.end_s) for window in windows for one in window.segments]


@pytest.mark.parametrize(
    "first",
    [
        written(0, "one", 10.4, 10.4, "two", 21.2),  # its last moment stands alone: nothing is said to follow
        written(0, "one", 10.4, 10.4, "two", 21.2, 21.2),
        written(0, "one", 10.4, 10.4, "two", 21.2, 21.2, "thr"),  # and what it began is not finished
    ],
)
def test_a_batch_decodes_the_rest_of_a_window_again(monkeypatch, random, first) -> None:
    asked = scripted(monkeypatch, {0.0: first, 21.0: written(0, "three", 4.6)})
    assert heard(random, 4) == [("one", 0.0, 4.0), ("two", 10.4, 15.0), ("three", 21.0, 25.6)]
    assert asked == [[0.0], [21.0]]


def test_a_batch_decodes_a_hole_between_two_segments_again(monkeypatch, random) -> None:
    scripted(monkeypatch, {0.0: written(0, "one", 4, 21, "three", 26), 10.0: written(0, "two", 5)})
    assert heard(random, 4) == [("one", 0.0, 4.0), ("two", 10.0, 15.0), ("three", 21.0, 26.0)]


def test_a_text_of_one_moment_does_not_hide_what_follows(monkeypatch, random) -> None:
    scripted(monkeypatch, {0.0: written(0, "one", 4.1), 10.0: written(0, "two", 5.0), 21.0: written(0, "three", 5.0)})
    script = {0.0: written(0, "one", 4.1), 10.0: written(0, "two", 5.0, 11, "three", 16)}
    scripted(monkeypatch, script)
    assert [text for text, _, _ in heard(random, 4)] == ["one", "two", "three"]


def test_one_after_another_goes_on_inside_a_span_of_voices(monkeypatch, random) -> None:
    asked = scripted(monkeypatch, {2.0: written(0, "one", 4.0), 6.0: written(0, "two", 6.0)})
    assert heard(random, 1, spans=[(2.0, 12.0)]) == [("one", 2.0, 6.0), ("two", 6.0, 12.0)]
    assert asked == [[2.0], [6.0]]


def test_a_window_of_nothing_is_not_tried_for_ever(monkeypatch, random) -> None:
    scripted(monkeypatch, {0.0: written(0, 0.1)})
    assert heard(random, 4) == []
    scripted(monkeypatch, {0.0: written(0, "a", 0.1)})
    assert heard(random, 4) == [("a", 0.0, 0.1)]


def test_what_is_left_is_cut_from_the_spans() -> None:
    assert left_out([piece(0, 10.4), piece(10.4, 21.2)], SPEECH, 0, 2_600) == [(2_120, 480)]
    assert left_out([piece(0, 4), piece(21, 26)], SPEECH, 0, 2_600) == [(1_000, 500)]
    assert left_out([piece(0, 4)], SPEECH, 0, 2_600) == [(1_000, 1_600)]
    assert left_out([piece(0, 25.6)], SPEECH, 0, 2_600) == []  # a margin
    assert left_out([], SPEECH, 0, 2_600) == []  # it was heard, and found to say nothing
    assert left_after([piece(0, 4), piece(21, 26)], SPEECH, 0, 2_600) == 2_600
    assert left_after([piece(0, 16)], SPEECH, 0, 2_600) == 2_100
    assert left_after([piece(0, 16)], (), 0, 2_600) == 2_600


def test_a_segment_ends_where_its_speech_ends() -> None:
    for given, kept in (((0, 10.4), (0, 4)), ((10.4, 21.3), (10.4, 15)), ((5, 9), (5, 9)), ((1, 14), (1, 14))):
        found = trimmed(piece(*given), SPEECH)
        assert (found.start_s, found.end_s) == kept


@pytest.fixture(scope="module")
def base():
    from zoo.tasks.transcription import open_transcriber

    try:
        return open_transcriber("whisper/base")
    except WeightsMissingError as missing:
        pytest.skip(f"needs the published weights: {str(missing).splitlines()[0][:80]} (zoo fetch whisper/base)")


def test_batches_write_every_sentence_between_pauses(base) -> None:
    pauses = [noise(duration_s, 0.001) for duration_s in (5.0, 4.0, 1.0)]
    parts = [speech(3.3), pauses[0], speech(), pauses[1], speech(3.3), pauses[2]]
    (result,) = zoo.transcribe(Sound(np.concatenate(parts), RATE_HZ), model=base, batch_size=4, language="en").results
    said = result.text.lower()
    assert said.count("john dashwood") == 3, result.text
    assert "power to do for them" in said
    assert all(one.end_s - one.start_s < 8.5 for one in result.segments)


def test_no_time_lies_after_the_end(base) -> None:
    for duration_s, options in ((1.25, {}), (1.25, {"batch_size": 2}), (0.9, {"word_timestamps": True})):
        sound = Sound(speech(duration_s), RATE_HZ)
        (result,) = zoo.transcribe(sound, model=base, language="en", temperature=0.0, **options).results
        for one in result.segments:
            assert one.start_s < one.end_s <= duration_s, (duration_s, options)
            assert all(word.end_s <= duration_s for word in one.words or ())


@pytest.mark.parametrize(
    ("clips", "late_s"), [((50,), "50"), ((50, 60), "50"), ((0.5, 1, 7.2), "7.2"), ((0, 1, 50, 60), "50"), ("1,2,50", "50")]
)
def test_a_clip_after_the_end_costs_its_sound_alone(monkeypatch, tmp_path, clips, late_s) -> None:
    scripted(monkeypatch, defaultdict(lambda: written(0, "a", 0.5)))
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    soundfile.write(short, speech(2.5), RATE_HZ)
    soundfile.write(long, speech(61), RATE_HZ)
    options = {"temperature": 0.0, "language": "en", "without_timestamps": True, "clip_timestamps": clips}
    first, second = zoo.transcribe(
        [short, long], model=zoo.ModelSpec(name="whisper/random", weights=None), **options
    ).results
    assert f"short.wav: clip_timestamps has a start at {late_s} s, and the sound ends at 2.50 s" in first.error
    assert second.error is None
