"""The zoo's own engine and openai-whisper's, on the same cards, by one option; and its normalisers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sounds import RATE_HZ, READER, cases, noise, speech
from zoo_whisper.openai_package import normalised

import zoo
from zoo.errors import UsageError, WeightsMissingError
from zoo.media.audio import Sound
from zoo.tasks.transcription import RunOptions, open_transcriber, transcribe

slow = pytest.mark.skipif(os.environ.get("ZOO_SLOW_TESTS") != "1", reason="a minute of the reference: ZOO_SLOW_TESTS=1")
RANDOM = zoo.ModelSpec(name="whisper/random", weights=None)


@pytest.fixture(scope="module")
def engines():
    try:
        return {engine: open_transcriber("whisper/base", engine=engine) for engine in ("zoo", "openai")}
    except WeightsMissingError as missing:
        pytest.skip(f"needs the published weights: {str(missing).splitlines()[0][:80]} (zoo fetch whisper/base)")


@pytest.fixture(scope="module")
def random():
    return open_transcriber(RANDOM, engine="openai")


@pytest.mark.parametrize(
    ("sound", "options"),
    [
        (cases()["speech"], {}),
        pytest.param(cases()["pauses"], {}, marks=slow),
        pytest.param(cases()["8 kHz"], {"word_timestamps": True}, marks=slow),
        pytest.param(cases()["speech"], {"clip_timestamps": (1.0, 4.0), "initial_prompt": "Mr. John Dashwood"}, marks=slow),
        pytest.param(cases()["pauses"], {"vad": True}, marks=slow),
    ],
)
def test_both_engines_write_the_same(engines, sound, options) -> None:
    ours, theirs = (
        transcribe(sound, model=engines[engine], language="en", temperature=0.0, **options) for engine in ("zoo", "openai")
    )
    assert (ours.settings.pop("engine"), theirs.settings.pop("engine")) == ("zoo", "openai")
    assert ours.settings == theirs.settings
    (mine,), (reference,) = ours.results, theirs.results
    assert mine.text == reference.text != ""
    for one, other in zip(mine.segments, reference.segments, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.start_s == pytest.approx(other.start_s, abs=0.021)
        assert one.average_log_probability == pytest.approx(other.average_log_probability, abs=1e-4)
        assert [word.text for word in one.words or ()] == [word.text for word in other.words or ()]


def test_the_command_takes_either_engine(zoo, engines) -> None:
    run = zoo("transcribe", str(READER), "--json", "--engine", "openai", "--normalise", "--language", "en")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["settings"]["engine"] == "openai"
    assert document["results"][0]["text"].startswith("and mister john dashwood had then leisure")
    refused = zoo("transcribe", str(READER), "--engine", "openay", "--model", "whisper/random", "--weights", "none")
    assert refused.returncode == 2
    assert "whisper/random has no engine 'openay': an engine of it is one of zoo, openai" in refused.stderr


def test_what_the_package_does_not_have_is_refused(random) -> None:
    sound = Sound(noise(2), RATE_HZ)
    with pytest.raises(UsageError, match="the engine openai decodes one window after another: leave out batch_size=4"):
        transcribe(sound, model=random, batch_size=4)
    with pytest.raises(UsageError, match="the engine openai computes in float32: leave out kernel kernels/int8"):
        open_transcriber(zoo.ModelSpec(name="whisper/random", weights=None, kernel="int8"), engine="openai")
    with pytest.raises(UsageError, match="whisper/random was opened for engine openai: zoo.open_transcriber"):
        transcribe(sound, model=random, engine="zoo")
    with pytest.raises(UsageError, match="and never go back"):
        transcribe(sound, model=random, clip_timestamps=(2.0, 1.0))
    (late,) = transcribe(sound, model=random, clip_timestamps=(5.0,)).results
    assert "clip_timestamps has a start at 5 s, and the sound ends at 2.00 s" in late.error


def test_a_journal_of_one_engine_is_not_gone_on_with_by_the_other(random, tmp_path) -> None:
    sound, journal = Sound(speech(2), RATE_HZ), tmp_path / "said.part"
    options = {"language": "en", "temperature": 0.0, "logprob_threshold": None, "no_speech_threshold": None}

    def full_disk(_) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        transcribe(sound, model=random, run=RunOptions(journal=journal, on_done=full_disk), **options)
    with pytest.raises(UsageError, match="of another sound, model or other options"):
        transcribe(sound, model=RANDOM, run=RunOptions(journal=journal), **options)
    assert transcribe(sound, model=random, run=RunOptions(journal=journal), **options).results[0].error is None
    assert not Path(journal).exists()


def test_texts_are_normalised_as_word_errors_are_counted() -> None:
    assert normalised(" Mr. Brown's colour, twenty-four ships!", "en") == "mister brown is color 24 ships"
    assert normalised(" Mr. Brown", None) == "mister brown"
    assert normalised(" Das Haus, die Tür!", "de") == "das haus die tür"


def test_a_silent_sound_has_no_segments(engines) -> None:
    silence = Sound(np.zeros(2 * RATE_HZ, np.float32), RATE_HZ)
    (result,) = transcribe(silence, model=engines["openai"], language="en", vad=True).results
    assert (result.text, result.error) == ("", None)
