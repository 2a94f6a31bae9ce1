"""`zoo transcribe` and what stands behind it: files, options, formats, interruptions, voices."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

import zoo as library
from zoo.data.subtitles import plain, srt, tsv, vtt
from zoo.errors import UsageError, WeightsMissingError
from zoo.media.audio import Sound, open_audio, open_reader
from zoo.models.build import ModelSpec, open_model
from zoo.models.transcript import Segment, TranscriptionOptions
from zoo.tasks.transcription import BATCHES_IGNORE, RunOptions, open_transcriber, transcribe
from zoo.tasks.voice_activity import _cut, _hysteresis, _widened, speech_spans

RATE_HZ = 16_000
SEED = 0  # of the random model: one that writes something, and ends
READER = Path(library.__file__).parent / "cli" / "demo" / "sounds" / "sense_and_sensibility.flac"
SENTENCE = "and mr john dashwood had then leisure to consider how much there might be prudently in his power to do for them"


@pytest.fixture(scope="module")
def random():
    """A tiny model with weights that are drawn: what it writes means nothing, and it writes it fast."""
    torch.manual_seed(SEED)
    return open_model("whisper/random", weights=None)


@pytest.fixture(scope="module")
def base():
    try:
        return open_transcriber("whisper/base")  # as the command runs it
    except WeightsMissingError as missing:
        pytest.skip(f"needs the published weights: {str(missing).splitlines()[0][:80]} (zoo fetch whisper/base)")


@pytest.fixture
def noise():
    return Sound((0.1 * np.random.default_rng(0).standard_normal(100 * RATE_HZ)).astype(np.float32), RATE_HZ)


STORED = [  # the first is a telephone's, of two channels
    (8_000, 2, "ULAW"), (11_025, 1, "PCM_16"), (22_050, 2, "FLOAT"), (44_100, 2, "PCM_16"), (48_000, 1, "PCM_24"), (48_000, 6, "PCM_32"),
    (96_000, 2, "DOUBLE"), (16_000, 1, "PCM_U8"),
]  # fmt: skip


def words(text):
    return "".join(character for character in text.lower() if character.isalpha() or character in " -").split()


QUICK = {
    "language": "en",
    "temperature": 0.0,
    "condition_on_previous_text": False,
    "logprob_threshold": None,
    "no_speech_threshold": None,
    "without_timestamps": True,
    "suppress_tokens": (*range(256, 50_257), *range(50_363, 51_865)),  # the tiny model has text for bytes alone
}


def test_a_recording_is_written_down(base) -> None:
    heard = transcribe(READER, model=base)
    (result,) = heard.results
    assert words(result.text) == words(SENTENCE)
    assert result.language == "en"
    assert result.duration_s == pytest.approx(7.1, abs=0.1)
    assert result.segments[-1].end_s <= 7.2
    assert heard.provenance.model == "whisper/base.ct2"
    assert heard.provenance.kernel == "float32"
    assert not heard.provenance.random_weights
    assert len(heard.provenance.weights["whisper/base.ct2"]["model"]) == 64


@pytest.mark.covers("M6")
def test_a_recording_is_written_alike_however_it_is_stored(base, tmp_path, figure) -> None:
    """Other rates, channels and numbers than those of the file that ships. All of them with ZOO_SLOW_TESTS=1."""
    samples = open_audio(READER, sample_rate_hz=RATE_HZ).samples.astype(np.float64)
    files = []
    for rate_hz, channels, subtype in STORED if os.environ.get("ZOO_SLOW_TESTS") == "1" else STORED[:1]:
        resampled = resample_poly(samples, rate_hz // 25, RATE_HZ // 25)
        files.append(tmp_path / f"{rate_hz}-{channels}-{subtype}.wav")
        soundfile.write(files[-1], np.stack([resampled] * channels, 1), rate_hz, subtype=subtype)
    for result in transcribe(files, model=base, language="en", temperature=0.0, run=RunOptions()).results:
        assert (words(result.text), result.error) == (words(SENTENCE), None), result.input
    figure(f"{len(files)} ways to store a sentence, the same words")


def test_the_command_writes_every_format(zoo, base, tmp_path) -> None:
    out = tmp_path / "said.srt"
    run = zoo("transcribe", str(READER), "--out", str(out), "--language", "english")
    assert run.returncode == 0, run.stderr
    assert out.read_text().startswith("1\n00:00:00,000 --> 00:00:0")
    assert not list(tmp_path.glob("*.part"))
    run = zoo("transcribe", str(READER), "--json", "--word-timestamps", "--kernel", "int8", "--vad")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["kernel"] == "int8"
    assert document["settings"]["vad"] is True
    (result,) = document["results"]
    spoken = [word for segment in result["segments"] for word in segment["words"]]
    assert words(" ".join(word["text"] for word in spoken)) == words(SENTENCE)
    assert all(before["end_s"] <= after["start_s"] + 0.01 for before, after in pairwise(spoken))


def test_what_the_model_refuses_is_said_before_voices_are_looked_for(random, noise, monkeypatch) -> None:
    from zoo.tasks import transcription

    monkeypatch.setattr(transcription, "speech_spans", lambda *_: pytest.fail("voices were looked for"))
    for options, message in (
        ({"hallucination_silence_threshold": 2.0}, "set word_timestamps, too"),
        ({"batch_size": 2, "carry_initial_prompt": True}, "carry_initial_prompt goes from one window to the next"),
        ({"temperature": "warm"}, "temperature takes numbers, got 'warm'"),
    ):
        with pytest.raises(UsageError, match=message):
            transcribe(noise, model=random, vad=True, **options)


def test_long_work_goes_on_where_it_stopped(random, noise, tmp_path) -> None:
    whole = transcribe(noise, model=random, **QUICK).results[0]
    assert len(whole.segments) == 4
    journal = tmp_path / "said.json.part"
    seen = []

    def stop_after_two(_, window) -> None:
        seen.append(window)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="what was done is kept in .*said.json.part; the same command goes on"):
        transcribe(noise, model=random, run=RunOptions(journal=journal, on_window=stop_after_two), **QUICK)
    assert journal.exists()
    with pytest.raises(UsageError, match="what was begun there is of another sound, model or other options"):
        transcribe(noise, model=random, run=RunOptions(journal=journal), **{**QUICK, "temperature": 0.2})
    fresh = []
    again = transcribe(
        noise, model=random, run=RunOptions(journal=journal, on_window=lambda _, window: fresh.append(window)), **QUICK
    ).results[0]
    assert again == whole
    assert fresh[:2] == seen
    assert not journal.exists()


def test_memory_does_not_follow_the_length(random) -> None:
    """A reader that holds one window and a block, however long the sound is."""
    own = {name: value for name, value in QUICK.items() if name != "language"}
    with open_reader(Sound(np.zeros(200 * RATE_HZ, np.float32), RATE_HZ)) as reader:
        held = []
        for window in random.module.windows(reader, TranscriptionOptions(language="en", own=own)):
            held.append(len(reader._held))
            assert window.reached_s <= 200
        assert max(held) <= 2 * (1 << 20) + 31 * RATE_HZ


def test_batches_say_what_they_leave_out(base) -> None:
    speech = open_audio(READER, sample_rate_hz=RATE_HZ).samples
    twice = Sound(np.concatenate((speech, np.zeros(25 * RATE_HZ, np.float32), speech)), RATE_HZ)
    together = transcribe(twice, model=base, batch_size=4, language="en")
    assert together.note == BATCHES_IGNORE
    assert words(together.results[0].text) == 2 * words(SENTENCE)
    assert together.results[0].segments[-1].start_s == pytest.approx(32.2, abs=1)
    with pytest.raises(UsageError, match="carry_initial_prompt goes from one window to the next, and batch_size=4 decodes"):
        transcribe(twice, model=base, batch_size=4, carry_initial_prompt=True)


def test_silence_and_noise_say_nothing_where_voices_are_looked_for(base) -> None:
    silence = Sound(np.zeros(40 * RATE_HZ, np.float32), RATE_HZ)
    hiss = Sound((0.01 * np.random.default_rng(1).standard_normal(40 * RATE_HZ)).astype(np.float32), RATE_HZ)
    for sound in (silence, hiss):
        (result,) = transcribe(sound, model=base, vad=True).results
        assert (result.text, result.segments, result.error) == ("", (), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_sise": 3}, "whisper/random has no option beam_sise; did you mean beam_size?"),
        ({"task": "summarise"}, "task is transcribe or translate, got 'summarise'"),
        ({"language": "germn"}, "germn"),
        ({"batch_size": 0}, "batch_size is at least 1, got 0"),
        ({"patience": 2.0}, "patience"),
        ({"hallucination_silence_threshold": 2.0}, "looks at words: set word_timestamps, too"),
        ({"suppress_tokens": "1.5"}, "suppress_tokens takes whole numbers, got '1.5'"),
        ({"suppress_tokens": (99_999,)}, "suppress_tokens are -1 and ids from 0 to 51864, got 99999"),
        ({"temperature": (-1.0,)}, "temperature is one number or several, none below 0"),
        ({"clip_timestamps": (5.0, 2.0)}, "clip_timestamps are start, end, start, ... in seconds and never go back"),
        ({"clip_timestamps": "5,nan"}, "clip_timestamps takes finite numbers"),
        ({"temperature": float("inf")}, "temperature takes finite numbers"),
        ({"beam_size": "3"}, "beam_size is a whole number of at least 1 and at most 256, got '3'"),
        ({"max_initial_timestamp": -1.0}, "max_initial_timestamp is a second of the window, 0 to 30, got -1.0"),
        ({"vad_filter": True}, "whisper/random has no option vad_filter"),
        ({"state": {}}, "whisper/random has no option state"),
        ({"kernel": "int8"}, "whisper/random has no option kernel"),
    ],
)
def test_options_that_make_no_sense_are_refused(random, options, message) -> None:
    sound = Sound(np.zeros(RATE_HZ, np.float32), RATE_HZ)
    with pytest.raises(UsageError, match=message.replace("?", r"\?").replace("(", r"\(")):
        transcribe(sound, model=random, **{"temperature": 0.0, **options})


def test_no_recording_is_overwritten_and_no_work_lost(zoo, tmp_path) -> None:
    recording = tmp_path / "a.wav"
    soundfile.write(recording, np.zeros(RATE_HZ, np.float32), RATE_HZ)
    before = recording.read_bytes()
    model = ("--model", "whisper/random", "--weights", "none", "--temperature", "0", "--language", "en")
    run = zoo("transcribe", str(recording), "--out", str(recording), "--format", "txt", *model)
    assert run.returncode == 2
    assert "a.wav: it is one of the sounds, and would be lost: give another name" in run.stderr
    assert recording.read_bytes() == before
    (tmp_path / "out" / "a.wav.txt").mkdir(parents=True)
    assert (
        "a folder, where a transcript is to be written"
        in zoo("transcribe", str(recording), "--out", str(tmp_path / "out"), *model).stderr
    )
    soundfile.write(tmp_path / "b.wav", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    several = zoo("transcribe", str(recording), str(tmp_path / "b.wav"), "--format", "vtt", *model)
    assert "2 transcripts as vtt are as many files: name a folder for them (--out DIR)" in several.stderr
    both = zoo("transcribe", str(recording), "--out", str(tmp_path / "c.srt"), "--json", *model)
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)["kernel"] == "float32"
    assert "{" not in (tmp_path / "c.srt").read_text()


def test_what_is_written_is_not_done_again_nor_lost(zoo, tmp_path) -> None:
    for name in ("a/x.wav", "b/x.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / "in" / name, np.zeros(RATE_HZ, np.float32), RATE_HZ)
    model = ("--model", "whisper/random", "--weights", "none", "--temperature", "0", "--language", "en")
    first = zoo("transcribe", str(tmp_path / "in"), "--out", f"{tmp_path}/out/", "--format", "srt", *model)
    assert first.returncode == 0, first.stderr
    written = [tmp_path / "out" / name / "x.wav.srt" for name in "ab"]
    assert all(path.exists() for path in written)
    written[0].write_text("by hand")
    again = zoo("transcribe", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--format", "srt", *model)
    assert again.returncode == 0
    assert again.stderr.count("is there already, and left as it is (--overwrite writes it anew)") == 2
    assert written[0].read_text() == "by hand"
    sound = str(tmp_path / "in" / "a" / "x.wav")
    single = zoo("transcribe", sound, "--out", str(written[0]), *model)
    assert single.returncode == 2
    assert "it is there already: give another name, or --overwrite" in single.stderr
    assert zoo("transcribe", sound, "--out", str(written[0]), "--overwrite", *model).returncode == 0
    assert written[0].read_text() != "by hand"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.docx"], "expected a name ending in .txt, .srt, .vtt, .tsv, .json, or --format beside it"),
        (["--out", "a.srt", "--format", "vtt"], "--out a.srt ends in .srt, and --format says vtt: leave one of them out"),
        (["--word-timestamps"], "--word-timestamps are written in json, and txt has no place for them: add --format json"),
        (["--out", "gone/a.txt"], "there is no folder gone"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(zoo, arguments, message) -> None:
    run = zoo("transcribe", str(READER), *arguments)
    assert run.returncode == 2
    assert message in run.stderr


def test_what_is_no_sound_is_no_list_of_sounds(random) -> None:
    for wrong in (np.zeros(100, np.float32), [np.zeros(100, np.float32)], (np.zeros(100), RATE_HZ), 3):
        with pytest.raises(UsageError, match="an array says nothing of its rate"):
            transcribe(wrong, model=random)
    with pytest.raises(UsageError, match="no sound given: name audio files, folders or patterns"):
        transcribe([], model=random)
    outcome = transcribe(str(READER.parent / "*.flac"), model=random, **QUICK)
    assert [Path(result.input) for result in outcome.results] == [READER]


def test_a_journal_of_another_kernel_is_not_gone_on_with(noise, tmp_path) -> None:
    journal = tmp_path / "said.part"

    def stop(*_) -> None:
        raise KeyboardInterrupt

    models = [
        open_transcriber(ModelSpec(name="whisper/random", weights=None, kernel=kernel)) for kernel in ("int8", "float32")
    ]
    assert [
        transcribe(Sound(np.zeros(100, np.float32), RATE_HZ), model=model, **QUICK).provenance.kernel for model in models
    ] == [
        "int8",
        "float32",
    ]
    with pytest.raises(KeyboardInterrupt):
        transcribe(noise, model=models[0], run=RunOptions(journal=journal, on_window=stop), **QUICK)
    with pytest.raises(UsageError, match="what was begun there is of another sound, model or other options"):
        transcribe(noise, model=models[1], run=RunOptions(journal=journal), **QUICK)


def test_the_journal_stays_until_the_transcript_is_safe(random, noise, tmp_path) -> None:
    journal = tmp_path / "said.part"

    def full_disk(_) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        transcribe(noise, model=random, run=RunOptions(journal=journal, on_done=full_disk), **QUICK)
    windows = []
    transcribe(noise, model=random, run=RunOptions(journal=journal, on_window=lambda *_: windows.append(1)), **QUICK)
    assert windows
    assert not journal.exists()


def test_bad_files_are_named_and_cost_the_others_nothing(zoo, tmp_path) -> None:
    good = np.zeros(RATE_HZ, np.float32)
    names = {name: tmp_path / name for name in ("-dash.wav", 'quo\'te "x".wav', "new\nline.wav", "$(touch owned).wav")}
    for path in names.values():
        soundfile.write(path, good, RATE_HZ)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is a text\n" * 50)
    whole = names["-dash.wav"].read_bytes()
    (tmp_path / "header.wav").write_bytes(whole[:44])
    (tmp_path / "cut.flac").write_bytes(READER.read_bytes()[:40])
    (tmp_path / "m4a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), RATE_HZ, subtype="FLOAT")
    run = zoo("transcribe", str(tmp_path), "--model", "whisper/random", "--weights", "none", "--json", "--temperature", "0",
              "--language", "en")  # fmt: skip
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    results = {Path(result["input"]).name: result for result in json.loads(run.stdout)["results"]}
    assert len(results) == 10
    for name in names:
        assert "error" not in results[name]
    for name, message in {
        "empty.wav": "the file is empty",
        "text.wav": "not a sound that can be read (it holds text)",
        "header.wav": "it holds no sample",
        "cut.flac": "not a sound that can be read",
        "m4a.m4a": "m4a is read with ffmpeg" if shutil.which("ffmpeg") is None else "a damaged sound",
        "nan.wav": "sample 0 (0.00 s) is nan",
    }.items():
        assert message in results[name].get("error", ""), results[name]
    assert not list(tmp_path.glob("owned*"))


def test_subtitles_hold_any_text() -> None:
    segments = [
        Segment(start_s=0.0, end_s=1.25, text=" a --> b\n\nc & <i>d</i>"),
        Segment(start_s=3723.25, end_s=3724.0, text=" "),
        Segment(start_s=3725.0004, end_s=3725.9999, text="e\tf"),
    ]
    assert plain(segments) == "a --> b c & <i>d</i>\ne f\n"
    assert srt(segments) == (
        "1\n00:00:00,000 --> 00:00:01,250\na -> b c & <i>d</i>\n\n2\n01:02:05,000 --> 01:02:06,000\ne f\n\n"
    )
    assert vtt(segments).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.250\na --&gt; b c &amp; &lt;i&gt;d&lt;/i&gt;\n\n")
    assert tsv(segments) == "start\tend\ttext\n0\t1250\ta --> b c & <i>d</i>\n3725000\t3726000\te f\n"


def test_speech_begins_and_ends_with_a_hysteresis() -> None:
    probabilities = [0.1, 0.6, 0.4, 0.4, 0.2, 0.2, 0.2, 0.9, 0.36, 0.1]
    assert _hysteresis(probabilities, 0.5, 2) == [(1, 4), (7, 9)]
    assert _hysteresis(probabilities, 0.5, 5) == [(1, 9)]
    assert _hysteresis([0.1] * 5, 0.5, 2) == []
    assert _cut((0, 10), [0.9] * 7 + [0.1] + [0.9] * 2, 8) == [(0, 7), (7, 10)]
    assert _widened([(1.0, 2.0), (2.2, 3.0)], 0.5, 3.2) == [(0.5, 2.1), (2.1, 3.2)]


def test_a_threshold_is_a_probability(base) -> None:
    from zoo.tasks.voice_activity import open_detector

    detector = open_detector()
    with (
        open_reader(READER, sample_rate_hz=8_000) as reader,
        pytest.raises(UsageError, match="hears 16,000 Hz, the sound is read at 8,000"),
    ):
        speech_spans(reader, detector)
    with (
        open_reader(READER, sample_rate_hz=RATE_HZ) as reader,
        pytest.raises(UsageError, match="threshold is a probability above 0.15"),
    ):
        speech_spans(reader, detector, threshold=0.1)
    with pytest.raises(UsageError, match="says of no moment whether somebody speaks"):
        open_detector(open_model("whisper/random-encoder", weights=None))
