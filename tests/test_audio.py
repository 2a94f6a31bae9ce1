"""The gate of sounds: what it reads, what it refuses, and that its blocks change nothing."""

import logging
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import MediaError, UsageError
from zoo.media import audio_decoding
from zoo.media.audio import Sound, open_audio, open_reader, to_waveforms
from zoo.media.resampling import resample

RATE_HZ = 16_000


def tone(duration_s=1.0, rate_hz=RATE_HZ):
    return (0.3 * np.sin(np.arange(int(duration_s * rate_hz)) * 0.1)).astype(np.float32)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(), RATE_HZ)
    return path


def changed(path, place, packed):
    data = bytearray(path.read_bytes())
    data[place : place + len(packed)] = packed
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {"subtype": "PCM_U8"}),
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "PCM_32"}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "DOUBLE"}),
        ("a.wav", {"subtype": "ULAW"}),
        ("a.flac", {}),
        ("a.aiff", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
    ],
)
def test_every_format_is_read(tmp_path, name, options) -> None:
    soundfile.write(tmp_path / name, tone(), RATE_HZ, **options)
    sound = open_audio(tmp_path / name)
    assert (sound.sample_rate_hz, len(sound.samples)) == (RATE_HZ, RATE_HZ)
    lossy = name.endswith((".ogg", ".opus", ".mp3")) or options.get("subtype") in ("PCM_U8", "ULAW")
    middle = slice(4_000, 12_000)
    assert np.abs(sound.samples[middle] - tone()[middle]).max() < (0.06 if lossy else 1e-4)
    assert np.array_equal(open_audio((tmp_path / name).read_bytes()).samples, sound.samples)


@pytest.mark.parametrize("channels", [1, 2, 6, 32])
def test_channels_are_averaged(tmp_path, channels) -> None:
    generator = np.random.default_rng(0)
    samples = generator.uniform(-0.5, 0.5, (RATE_HZ, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT")
    assert np.allclose(open_audio(tmp_path / "a.wav").samples, samples.mean(1), atol=1e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000, 44_101])
def test_blocks_are_resampled_as_the_whole(monkeypatch, rate_hz) -> None:
    samples = np.random.default_rng(0).standard_normal(2 * rate_hz + 13).astype(np.float32) * 0.1
    whole = resample(torch.from_numpy(samples), rate_hz, RATE_HZ).numpy()
    monkeypatch.setattr(audio_decoding, "BLOCK_NUMBERS", 5_003)
    pieces = open_audio(Sound(samples, rate_hz), sample_rate_hz=RATE_HZ).samples
    assert pieces.shape == whole.shape
    assert abs(len(whole) / RATE_HZ - len(samples) / rate_hz) < 1e-3
    assert np.abs(pieces - whole).max() < 1e-6


def test_a_tone_keeps_its_pitch_when_it_is_resampled() -> None:
    times = np.arange(44_100) / 44_100
    sound = Sound(np.sin(2 * np.pi * 1_000 * times).astype(np.float32), 44_100)
    spectrum = np.abs(np.fft.rfft(open_audio(sound, sample_rate_hz=RATE_HZ).samples))
    assert spectrum.argmax() == 1_000
    assert spectrum[1_500:].max() < 0.01 * spectrum.max()  # nothing is mirrored from above


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 20_000)), min_size=1, max_size=6))
def test_any_piece_can_be_read(places) -> None:
    samples = np.random.default_rng(1).standard_normal(30_011).astype(np.float32)
    before, audio_decoding.BLOCK_NUMBERS = audio_decoding.BLOCK_NUMBERS, 1_009
    try:
        with open_reader(Sound(samples, RATE_HZ)) as reader:
            for start, count in places:
                assert np.array_equal(reader.read(start, count), samples[start : start + count])
    finally:
        audio_decoding.BLOCK_NUMBERS = before


def test_what_is_no_sound_is_refused(tmp_path, wav) -> None:
    def refused(content, message, name="a.wav"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(MediaError, match=message):
            open_audio(path)

    whole = wav.read_bytes()
    refused(b"", "the file is empty")
    refused(whole[:44], "it holds no sample")
    refused(b"this is text\n" * 9, r"not a sound that can be read \(it holds text\); expected wav, flac, ogg, opus, mp3")
    refused(b"\x00\x01\x02\x03" * 99, "it begins with 00 01 02 03")
    refused(b"\0\0\0\x20ftypM4A " + b"\0" * 99, "m4a is read with ffmpeg|damaged sound")
    with pytest.raises(MediaError, match="there is no such file"):
        open_audio(tmp_path / "missing.wav")
    with pytest.raises(MediaError, match="a folder, expected an audio file"):
        open_audio(tmp_path)
    with pytest.raises(MediaError, match="not a regular file"):
        open_audio("/dev/zero")
    with pytest.raises(MediaError, match="there are no bytes"):
        open_audio(b"")
    with pytest.raises(MediaError, match="an array says nothing of its rate"):
        open_audio(tone())
    with pytest.raises(UsageError, match="sample_rate_hz is from 1,000 to 768,000, got 5"):
        open_audio(wav, sample_rate_hz=5)


def test_headers_that_lie_are_refused_or_said(tmp_path, wav, caplog) -> None:
    whole = wav.read_bytes()
    with pytest.raises(MediaError, match="not a sound that can be read"):
        open_audio(changed(wav, 22, b"\0\0"))  # no channel
    wav.write_bytes(whole)
    with pytest.raises(MediaError, match="the header says 1 samples a second, expected 1,000 to 768,000"):
        open_audio(changed(wav, 24, struct.pack("<I", 1)))
    wav.write_bytes(whole)
    with pytest.raises(MediaError, match="not a sound that can be read|samples a second"):
        open_audio(changed(wav, 24, struct.pack("<I", 4_000_000_000)))
    wav.write_bytes(whole)
    ten_hours = 2 * RATE_HZ * 36_000
    changed(wav, 4, struct.pack("<I", ten_hours + 36))
    with caplog.at_level(logging.WARNING):
        assert len(open_audio(changed(wav, 40, struct.pack("<I", ten_hours))).samples) == RATE_HZ
    assert "the header speaks of 1,152,000,044 bytes, the file has 32,044; what is there is used" in caplog.text
    caplog.clear()
    wav.write_bytes(whole[:9_000])
    with caplog.at_level(logging.WARNING):
        assert len(open_audio(wav).samples) == (9_000 - 44) // 2
    assert "what is there is used" in caplog.text


def test_damaged_flac_is_refused_and_a_wrong_suffix_is_not(tmp_path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(), RATE_HZ)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "half.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="a damaged sound"):
        open_audio(tmp_path / "half.flac")
    (tmp_path / "flac.wav").write_bytes(whole)
    assert len(open_audio(tmp_path / "flac.wav").samples) == RATE_HZ
    claimed = bytearray(whole)
    claimed[22:26] = struct.pack(">I", RATE_HZ * 36_000)  # ten hours, in the first block
    (tmp_path / "long.flac").write_bytes(claimed)
    with pytest.raises(MediaError, match=r"36,000 s of sound or more, the limit is 600 s; cut it, or raise max_duration_s"):
        open_audio(tmp_path / "long.flac")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_with_their_place(tmp_path, value) -> None:
    samples = tone()
    samples[5_000] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"sample 5,000 \(0.31 s\) is (nan|-?inf)"):
        open_audio(tmp_path / "a.wav")
    with pytest.raises(MediaError, match=r"sample 5,000"):
        Sound(samples, RATE_HZ)


def test_a_sound_says_what_it_is() -> None:
    with pytest.raises(MediaError, match=r"a sound is float\[N\], mono, full scale at 1, got int16\[3\]"):
        Sound(np.zeros(3, np.int16), RATE_HZ)
    with pytest.raises(MediaError, match=r"got float32\[2, 3\]: mix its channels"):
        Sound(np.zeros((2, 3), np.float32), RATE_HZ)
    with pytest.raises(MediaError, match="a sample rate is a whole number from 1,000 to 768,000 Hz, got 16"):
        Sound(np.zeros(3, np.float32), 16)
    assert Sound(np.zeros(RATE_HZ, np.float64), RATE_HZ).duration_s == 1.0


@pytest.mark.parametrize(
    "name", ['it\'s a "file".wav', "-dash.wav", "new\nline.wav", "$(touch pwned).wav", " blank .wav", "ü.wav"]
)
def test_no_name_is_special(tmp_path, monkeypatch, wav, name) -> None:
    (tmp_path / name).write_bytes(wav.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(open_audio(name).samples) == RATE_HZ
    assert not (tmp_path / "pwned").exists()


@pytest.mark.covers("A16")
def test_a_day_of_silence_costs_nothing(tmp_path) -> None:
    path = tmp_path / "day.flac"
    with soundfile.SoundFile(path, "w", 1_000, 1, format="FLAC") as file:  # a slow rate, to be written fast
        block = np.zeros(600_000, np.int16)
        for _ in range(144):
            file.write(block)
    assert path.stat().st_size < 5_000_000
    with pytest.raises(MediaError, match="86,400 s of sound or more, the limit is 600 s"):
        open_audio(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_reader(path, max_duration_s=90_000) as reader:
        assert len(reader.read(0, 1_000)) == 1_000
        assert len(reader.read(40_000_000, 1_000)) == 1_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB
    with pytest.raises(MediaError, match="decoding took more than 0.001 s; raise max_decode_s"):
        open_audio(path, max_duration_s=90_000, max_decode_s=0.001)


def test_waveforms_are_padded_and_masked() -> None:
    preprocess = {"sample_rate_hz": RATE_HZ, "max_s": 2}
    samples_BN, mask_BN = to_waveforms([Sound(tone(0.5), RATE_HZ), Sound(tone(1.0, 8_000), 8_000)], preprocess)
    assert samples_BN.shape == mask_BN.shape == (2, RATE_HZ)
    assert mask_BN.sum(1).tolist() == [RATE_HZ // 2, RATE_HZ]
    assert not samples_BN[~mask_BN].any()
    with pytest.raises(MediaError, match=r"a sound of 3.0 s: this encoder takes at most 2 s, cut it first"):
        to_waveforms([Sound(tone(3.0), RATE_HZ)], preprocess)
    with pytest.raises(UsageError, match="an encoder of sounds takes zoo.Sound, item 0 is ndarray"):
        to_waveforms([tone()], preprocess)


def test_sounds_need_their_extra_and_say_so(wav) -> None:
    code = (
        "import sys; sys.modules['soundfile'] = None\n"
        "from zoo.media.audio import open_audio\n"
        "from zoo.errors import ZooError\n"
        "try: open_audio(sys.argv[1])\n"
        "except ZooError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(wav)], capture_output=True, text=True, check=True).stdout
    assert "reading sounds needs soundfile" in said
    assert "pip install 'modalzoo[audio]'" in said


def test_the_gate_needs_no_torch_until_rates_differ(wav) -> None:
    code = "import sys; from zoo.media.audio import open_audio; open_audio(sys.argv[1]); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code, str(wav)], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


def test_a_stream_that_does_not_know_its_length_is_read(tmp_path) -> None:
    path = tmp_path / "stream.flac"
    soundfile.write(path, np.zeros(16_000, np.float32), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the number of samples in STREAMINFO, 36 bits: 0 stands for unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert len(open_audio(path).samples) == 16_000


def test_names_of_any_bytes_are_opened(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (b"caf\xe9.wav", b"~temp.wav", b"-.wav", b"new\nline.wav"):
        path = os.fsdecode(name)
        soundfile.write("plain.wav", np.zeros(100, np.float32), 16_000)
        Path("plain.wav").rename(path)
        assert len(open_audio(path).samples) == 100


def test_wild_samples_are_refused_in_any_type(tmp_path) -> None:
    soundfile.write(tmp_path / "huge.wav", np.full(10, 1e25, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"sample 0 \(0.00 s\) is 1e\+25; full scale is 1"):
        open_audio(tmp_path / "huge.wav")
    with pytest.raises(MediaError, match="is inf; full scale is 1"):
        Sound(np.array([1e300]), 16_000)


def test_reading_begins_anew_after_all_blocks() -> None:
    with open_reader(Sound(np.arange(1_000, dtype=np.float32), 16_000)) as reader:
        assert sum(len(block) for block in reader.blocks()) == 1_000
        assert reader.read(500, 3).tolist() == [500.0, 501.0, 502.0]
        assert reader.duration_s == 1_000 / 16_000


@pytest.mark.parametrize("rate_hz", [16_000.0, "16000", 10])
def test_a_rate_is_a_whole_number(rate_hz) -> None:
    with pytest.raises(MediaError, match="a sample rate is a whole number from 1,000 to 768,000 Hz, got"):
        Sound(np.zeros(10, np.float32), rate_hz)
