"""Files that hold more than their first header says: joined sounds, headers of stopped recorders, channels that cancel."""

import io
import json
import logging
import re
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from zoo.errors import MediaError
from zoo.media import audio_decoding, audio_parts, mp3_frames
from zoo.media.audio import open_audio, open_reader
from zoo.media.audio_parts import Part, PartFile

RATE_HZ = 16_000


def encoded(format_, duration_s=1.0, *, rate_hz=RATE_HZ, channels=1, pitch=0.1, **options):
    times = np.arange(int(duration_s * rate_hz))
    samples = (0.3 * np.sin(times * pitch)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([samples] * channels, 1), rate_hz, format=format_, **options)
    return buffer.getvalue()


def without_info(mp3):
    """The frames alone, as a radio sends them or an encoder writes them into a pipe."""
    source = audio_parts.Source(io.BytesIO(mp3), len(mp3), "it")
    frame = mp3_frames._frame_at(source, 0)
    assert mp3_frames._promised(mp3[:64], frame) is not None
    return mp3[frame.size :]


def heard(content):
    return open_audio(content).samples


OPUS = {"subtype": "OPUS"}
KINDS = [("MP3", {}), ("OGG", {}), ("OGG", OPUS), ("FLAC", {}), ("WAV", {}), ("AIFF", {}), ("RF64", {})]


@pytest.mark.parametrize(("format_", "options"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("count", [2, 3])
def test_joined_files_are_read_to_the_end(format_, options, count, tmp_path) -> None:
    parts = [encoded(format_, 0.5 + number, pitch=0.1 + 0.05 * number, **options) for number in range(count)]
    expected = np.concatenate([soundfile.read(io.BytesIO(part), dtype="float32")[0] for part in parts])
    assert np.abs(heard(b"".join(parts)) - expected).max() < 1e-6  # libmpg123 rounds by where a buffer lies
    (tmp_path / "joined.any").write_bytes(b"".join(parts))
    with open_reader(tmp_path / "joined.any") as reader:
        assert reader.duration_s == pytest.approx(len(expected) / RATE_HZ)  # before anything is decoded
        assert np.allclose(reader.read(len(expected) - 10, 99), expected[-10:], atol=1e-6)
        assert np.allclose(reader.read(3, 10), expected[3:13], atol=1e-6)  # and back to the first part


def test_parts_of_other_rates_and_channels_are_read_too() -> None:
    joined = encoded("FLAC", 1.0) + encoded("FLAC", 1.0, rate_hz=44_100, channels=2) + encoded("FLAC", 0.5, rate_hz=8_000)
    sound = open_audio(joined)
    assert (sound.sample_rate_hz, len(sound.samples)) == (RATE_HZ, 40_000)
    both = open_audio(encoded("MP3", 1.0) + encoded("MP3", 1.0, rate_hz=44_100, channels=2), sample_rate_hz=8_000)
    assert len(both.samples) == pytest.approx(16_000, abs=2)


def test_mp3_frames_are_counted_where_nothing_says_how_many(caplog) -> None:
    """Of variable bit rate, without an Info frame: libmpg123 guesses the length from the first frame."""
    quiet_then_loud = np.concatenate([np.zeros(10 * 44_100), np.random.default_rng(0).uniform(-0.5, 0.5, 10 * 44_100)])
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 44_100, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5) as file:
        file.write(quiet_then_loud)
    frames = without_info(buffer.getvalue())
    assert abs(len(heard(frames)) - 20 * 44_100) < 3 * 1_152
    whole, bare = encoded("MP3", 1.0), without_info(encoded("MP3", 1.0))
    for joined in (
        whole + bare,
        bare + whole,
        bare + bare,
        whole + bytes(5_000) + whole,
        whole + b"TAG" + bytes(125) + whole,
    ):
        assert 31_500 < len(heard(joined)) < 34_500
    tag = b"ID3\4\0\0\0\0\x10\0" + b"\xff\xfb\x90\0" * 512  # as each segment of a stream has one
    assert (
        len(heard(tag + bare + tag + bare + b"APETAGEX" + struct.pack("<IIII8x", 2_000, 64, 0, 1 << 29) + bytes(64)))
        > 31_500
    )
    assert len(heard(b"ID3\4\0\0\0\0\0\0" + bytes(3_000) + bare + whole)) > 31_500
    with pytest.raises(MediaError, match="mp3 frames among too much that is none"):
        heard(bare + b"\xff\xfb\x90\0\xff\xff" * 250_000)


@pytest.mark.parametrize("promised", [10_000_000, 2**32 - 1])
def test_an_mp3_that_promises_far_too_much_is_read_with_a_warning(promised, tmp_path) -> None:
    mp3 = encoded("MP3", 2.0)
    at = mp3_frames._frame(mp3[:4]).info_at + 8
    right = int.from_bytes(mp3[at : at + 4], "big")
    (tmp_path / "long.mp3").write_bytes(mp3[:at] + promised.to_bytes(4, "big") + mp3[at + 4 :])
    with open_reader(tmp_path / "long.mp3") as reader:
        assert reader.duration_s == pytest.approx(2.0, abs=0.2)
        (warning,) = reader.warnings
        assert warning == f"its Info frame promises {promised:,} frames, the file holds {right:,}; what is there is used"


def test_a_hole_in_an_mp3_is_closed_with_a_warning(tmp_path) -> None:
    mp3 = encoded("MP3", 4.0)
    (tmp_path / "hole.mp3").write_bytes(mp3[:2_000] + bytes(1_500) + mp3[3_500:])
    with open_reader(tmp_path / "hole.mp3") as reader:
        assert sum(len(block) for block in reader.blocks()) < 3.5 * RATE_HZ
        warning = reader.warnings[0]
        assert re.fullmatch(r"1,\d{3} bytes among its frames are none: damage, by which sound is missing, or .*", warning)
    for harmless in (mp3 + bytes(3_000), mp3 + b"TAG" + bytes(125)):
        (tmp_path / "whole.mp3").write_bytes(harmless)
        with open_reader(tmp_path / "whole.mp3") as reader:
            assert (sum(len(block) for block in reader.blocks()) > 3.9 * RATE_HZ, list(reader.warnings)) == (True, [])


def test_a_truncated_first_part_does_not_hide_the_second() -> None:
    mp3 = encoded("MP3", 2.0)
    assert len(heard(mp3[: len(mp3) // 2 + 7] + mp3)) > 2.9 * RATE_HZ
    ogg = encoded("OGG", 2.0)
    assert len(heard(ogg[:-200] + ogg)) >= 2 * RATE_HZ
    flac = encoded("FLAC", 2.0)
    with pytest.raises(MediaError, match="a damaged sound"):
        heard(flac[: len(flac) // 2] + flac)


def test_what_follows_and_is_no_sound_is_named(monkeypatch) -> None:
    ogg = encoded("OGG", 0.2)
    with pytest.raises(MediaError, match="sound 2 of 2: not a sound that can be read"):
        heard(ogg + ogg[:40] + bytes(400))
    monkeypatch.setattr(audio_parts, "MAX_PARTS", 3)
    with pytest.raises(MediaError, match="more than 3 sounds in one file; split it"):
        heard(4 * ogg)
    boxes = b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x10mdat" + bytes(8)
    with pytest.raises(MediaError, match="several MPEG-4 files in one, of which only the first can be read; split it"):
        heard(2 * boxes)


def test_limits_hold_for_all_parts_together() -> None:
    with pytest.raises(MediaError, match="2 s of sound or more, the limit is 2 s"):
        open_audio(3 * encoded("FLAC", 0.8), max_duration_s=1.6)


def chunk(name, body, size=None, *, padded=True):
    return struct.pack("<4sI", name, len(body) if size is None else size) + body + bytes(padded and len(body) % 2)


def riff(*chunks, size=None, tag=b"RIFF"):
    body = b"".join(chunks)
    return struct.pack("<4sI4s", tag, len(body) + 4 if size is None else size, b"WAVE") + body


def ds64(riff_bytes, data_bytes):
    return chunk(b"ds64", struct.pack("<QQQI", riff_bytes, data_bytes, 0, 0))


SAMPLES = (0.3 * np.sin(np.arange(RATE_HZ) * 0.1) * 32_767).astype("<i2")
PCM = SAMPLES.tobytes()
FORMAT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16))
NO_SIZE, LONG = 0xFFFF_FFFF, 2**64 - 1
STOPPED = "there is no sample, as a recorder that was stopped leaves it"
ODD = chunk(b"LIST", b"INFOabc")


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (riff(FORMAT, chunk(b"data", PCM, 0), size=0), STOPPED),
        (riff(FORMAT, chunk(b"data", PCM, 0), size=36), STOPPED),
        (riff(FORMAT, chunk(b"data", PCM, 0), size=NO_SIZE), STOPPED),
        (riff(chunk(b"JUNK", bytes(28)), FORMAT, ODD, chunk(b"data", PCM, 0), size=0), STOPPED),
        (riff(FORMAT, chunk(b"data", PCM, NO_SIZE), size=NO_SIZE), ""),
        (riff(FORMAT, chunk(b"data", PCM, NO_SIZE), size=0), ""),
        (riff(FORMAT, chunk(b"data", PCM, 0x7FFF_F000), size=0x7FFF_F024), "what is there is used"),
        (riff(FORMAT, ODD, chunk(b"data", PCM)), ""),
        (riff(FORMAT, chunk(b"LIST", b"INFOabc", padded=False), chunk(b"data", PCM)), ""),
        (riff(FORMAT, chunk(b"data", PCM), ODD), ""),
        (riff(FORMAT, chunk(b"LIST", b"INFOdata", 1 << 31), chunk(b"data", PCM)), "a chunk of its header has a wrong size"),
        (riff(FORMAT, chunk(b"LIST", b"INFOISFT\x08\0\0\0Lavf5.9\0", 0), chunk(b"data", PCM)), "a wrong size"),
        (riff(ds64(len(PCM) + 72, len(PCM)), FORMAT, chunk(b"data", PCM, NO_SIZE), size=NO_SIZE, tag=b"RF64"), ""),
        (riff(ds64(0, 0), FORMAT, chunk(b"data", PCM, NO_SIZE), size=NO_SIZE, tag=b"RF64"), STOPPED),
        (riff(ds64(0, 0), FORMAT, chunk(b"data", PCM, 0), size=0, tag=b"RF64"), STOPPED),
        (riff(ds64(LONG, LONG), FORMAT, chunk(b"data", PCM, NO_SIZE), size=NO_SIZE, tag=b"RF64"), ""),
        (riff(FORMAT, chunk(b"data", PCM, NO_SIZE), size=NO_SIZE, tag=b"RF64"), ""),
        (riff(ds64(99, 2 * len(PCM)), FORMAT, chunk(b"data", PCM, NO_SIZE), tag=b"RF64"), "what is there is used"),
        (riff(ds64(len(PCM) + 72, len(PCM)), FORMAT, chunk(b"data", PCM, NO_SIZE), size=NO_SIZE, tag=b"BW64"), ""),
    ],
)
def test_wav_headers_that_do_not_know(content, warning, caplog) -> None:
    with caplog.at_level(logging.WARNING), open_reader(content) as reader:
        samples = np.concatenate(list(reader.blocks()))
        assert np.array_equal(samples, SAMPLES.astype(np.float32) / 32_768)
        assert len(reader.warnings) == bool(warning)
        assert warning in "".join(reader.warnings)
    assert caplog.text.count("WARNING") == bool(warning)
    assert np.array_equal(heard(content + riff(FORMAT, chunk(b"data", PCM[:8_000])))[: len(SAMPLES)], samples)


def test_an_empty_wav_is_empty_and_what_no_chunk_counts_is_said(caplog) -> None:
    with pytest.raises(MediaError, match="it holds no sample"):
        heard(riff(FORMAT, chunk(b"data", b""), chunk(b"LIST", b"INFOabcd")))
    with caplog.at_level(logging.WARNING):
        assert len(heard(riff(FORMAT, chunk(b"data", PCM, 8_000)))) == 4_000
    assert "24,000 bytes behind the sound that its header counts are not read" in caplog.text


def test_stopped_recordings_can_be_joined_too() -> None:
    stopped = riff(FORMAT, chunk(b"data", PCM, 0), size=0)
    assert np.array_equal(heard(3 * stopped), np.tile(SAMPLES.astype(np.float32) / 32_768, 3))


def stereo(left, right, format_="FLAC"):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], 1), RATE_HZ, format=format_)
    return buffer.getvalue()


def test_of_channels_that_cancel_the_louder_is_taken(caplog, monkeypatch) -> None:
    speech = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE_HZ).astype(np.float32)
    with caplog.at_level(logging.WARNING), open_reader(stereo(0.8 * speech, -speech)) as reader:
        samples = np.concatenate(list(reader.blocks()))
        reader.rewind()
        assert np.abs(np.concatenate(list(reader.blocks())) - samples).max() == 0
        assert len(reader.warnings) == 1
    assert np.abs(samples + speech).max() < 1e-4
    assert caplog.text.count("cancel each other when they are averaged, from 0.0 s on") == 1
    assert "channel 2, the louder, is taken" in caplog.text
    later = stereo(speech, np.concatenate([speech[: 2 * RATE_HZ], -speech[2 * RATE_HZ :]]))
    caplog.clear()
    expected = heard(later)
    assert "from 2.0 s on" in caplog.text
    assert np.abs(expected - speech).max() < 1e-4  # the channel stays the same, as often as the second changes
    monkeypatch.setattr(audio_decoding, "BLOCK_NUMBERS", 3 * RATE_HZ)
    assert np.array_equal(heard(later), expected)
    for lossy in ("OGG", "MP3"):
        assert np.sqrt((heard(stereo(speech, -speech, lossy)) ** 2).mean()) > 0.2


def test_other_channels_are_averaged_without_a_word(caplog) -> None:
    generator = np.random.default_rng(0)
    one, other = generator.uniform(-0.5, 0.5, (2, RATE_HZ)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        for left, right in ((one, other), (one, 0 * one), (one, one), (one, -0.3 * one), (1e-5 * one, -1e-5 * one)):
            assert np.abs(heard(stereo(left, right, "WAV")) - (left + right) / 2).max() < 1e-4
        surround = np.zeros((RATE_HZ, 32), np.float32)
        surround[:, 2] = one
        buffer = io.BytesIO()
        soundfile.write(buffer, surround, RATE_HZ, format="WAV", subtype="FLOAT")
        assert np.abs(heard(buffer.getvalue()) - one / 32).max() < 1e-6
    assert caplog.text == ""


@given(
    st.lists(st.one_of(st.binary(max_size=9), st.tuples(st.integers(0, 50), st.integers(0, 50)))),
    st.lists(st.tuples(st.integers(0, 400), st.integers(-1, 99))),
)
@example([b"", (5, 5), b"ab", (3, 9)], [(0, -1), (1, 3)])
def test_a_part_reads_as_its_pieces_joined(pieces, reads) -> None:
    content = bytes(range(50))
    ordered = tuple(piece if isinstance(piece, bytes) else (min(piece), max(piece)) for piece in pieces)
    whole = b"".join(piece if isinstance(piece, bytes) else content[slice(*piece)] for piece in ordered)
    file = PartFile(io.BytesIO(content), Part(ordered))
    assert file.seek(0, 2) == len(whole)
    for start, count in reads:
        file.seek(start)
        assert file.read(count) == (whole[start:] if count < 0 else whole[start : start + count])


@pytest.mark.parametrize("edge", range(0, 70, 3))
def test_no_beginning_is_missed_between_two_reads(edge, monkeypatch) -> None:
    monkeypatch.setattr(audio_parts, "_READ_BYTES", 200)
    mark = b"fLaC\0\0\0\x22"
    content = (bytes(170 + edge) + mark) * 9
    source = audio_parts.Source(io.BytesIO(content), len(content), "it")
    found = list(audio_parts.occurrences(source, audio_parts._FLAC_BEGINS))
    assert found == [170 + edge + number * (178 + edge) for number in range(9)]


def test_the_command_warns_once_on_stderr_and_in_its_document(zoo, tmp_path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE_HZ).astype(np.float32)
    (tmp_path / "wired.flac").write_bytes(stereo(noise, -noise))
    (tmp_path / "stopped.wav").write_bytes(riff(FORMAT, chunk(b"data", PCM, 0), size=0))
    (tmp_path / "joined.mp3").write_bytes(2 * encoded("MP3"))
    run = zoo("transcribe", str(tmp_path), "--model", "whisper/random", "--weights", "none", "--json", "--temperature", "0",
               "--language", "en")  # fmt: skip
    results = {row["input"].rsplit("/", 1)[-1]: row for row in json.loads(run.stdout)["results"]}
    assert {name: row["duration_s"] for name, row in results.items()} == {
        "joined.mp3": 2,
        "stopped.wav": 1,
        "wired.flac": 2,
    }
    assert results["joined.mp3"]["warnings"] == []
    for name, warning in {"wired.flac": "cancel each other", "stopped.wav": STOPPED}.items():
        assert [warning in told for told in results[name]["warnings"]] == [True]
        assert run.stderr.count(warning) == 1
