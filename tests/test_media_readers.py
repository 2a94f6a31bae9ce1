"""The table of media readers: what a plugin adds reads its own suffixes, and the limits of the core hold for what it gives."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from zoo.data.inputs import Item
from zoo.data.item_content import load
from zoo.errors import MediaError, UsageError
from zoo.media import audio, readers
from zoo.media.audio import Sound
from zoo.media.readers import READERS, MediaReader, open_media
from zoo.registry.modality import AUDIO, IMAGE

RATE_HZ = 8_000


def read_pixels(path: Path) -> Image.Image:
    """Width and height, two bytes each, and the pixels."""
    data = path.read_bytes()
    return Image.frombytes("RGB", struct.unpack("<HH", data[:4]), data[4:])


def read_samples(path: Path) -> Sound:
    """The rate, four bytes, and samples of 16 bits."""
    data = path.read_bytes()
    return Sound(np.frombuffer(data[4:], "<i2").astype(np.float32) / 32768, *struct.unpack("<I", data[:4]))


def refuse(_: Path) -> Any:
    raise AssertionError("a plugin was asked before the core")


PIXELS = MediaReader("raw image", IMAGE, (".pxl",), read_pixels)
SAMPLES = MediaReader("raw sound", AUDIO, (".smp",), read_samples)
BOTH = (PIXELS, SAMPLES)


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    path = tmp_path / "a.PXL"
    path.write_bytes(struct.pack("<HH", 2, 1) + bytes([1, 2, 3, 4, 5, 6]))
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "a.smp"
    path.write_bytes(struct.pack("<I", RATE_HZ) + np.arange(RATE_HZ, dtype="<i2").tobytes())
    return path


def test_the_core_has_one_reader_for_images_and_one_for_sounds() -> None:
    assert [(reader.name, reader.modality) for reader in READERS] == [("image", IMAGE), ("sound", AUDIO)]


def test_an_image_of_an_extra_format_is_read(pixels: Path) -> None:
    for source in (pixels, str(pixels)):
        image = load(Item(str(pixels), source), allow_urls=False, extra=BOTH)
        assert isinstance(image, Image.Image)
        assert np.asarray(image).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_a_sound_of_an_extra_format_is_read_at_the_rate_that_was_asked(samples: Path) -> None:
    sound = load(Item("a", samples, AUDIO), allow_urls=False, extra=BOTH)
    assert isinstance(sound, Sound)
    assert (sound.sample_rate_hz, len(sound.samples)) == (RATE_HZ, RATE_HZ)
    assert np.array_equal(sound.samples, np.arange(RATE_HZ, dtype=np.float32) / 32768)
    faster = load(Item("a", samples, AUDIO), allow_urls=False, sample_rate_hz=2 * RATE_HZ, extra=BOTH)
    assert isinstance(faster, Sound)
    assert (faster.sample_rate_hz, len(faster.samples)) == (2 * RATE_HZ, 2 * RATE_HZ)


def test_without_it_the_core_says_that_it_cannot_read_them(pixels: Path, samples: Path) -> None:
    with pytest.raises(MediaError, match="not an image that can be read"):
        load(Item("a", pixels), allow_urls=False, extra=[SAMPLES])
    with pytest.raises(MediaError, match="not a sound that can be read"):
        load(Item("a", samples, AUDIO), allow_urls=False, extra=[PIXELS])


def test_what_the_core_reads_is_never_asked_of_a_plugin(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), "red").save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.zeros(100, np.float32), RATE_HZ)
    (tmp_path / "a.png").with_name("a.other").write_bytes((tmp_path / "a.png").read_bytes())
    greedy = (
        MediaReader("greedy image", IMAGE, (".png", ".wav", ".mp4"), refuse),
        MediaReader("greedy sound", AUDIO, (".wav", ".png", ".mp4"), refuse),
    )
    assert open_media(tmp_path / "a.png", IMAGE, extra=greedy).size == (2, 2)  # type: ignore[union-attr]
    assert len(open_media(tmp_path / "a.wav", AUDIO, extra=greedy).samples) == 100  # type: ignore[union-attr]
    assert open_media(tmp_path / "a.other", IMAGE, extra=greedy).size == (2, 2)  # type: ignore[union-attr]
    assert open_media((tmp_path / "a.png").read_bytes(), IMAGE, extra=greedy).size == (2, 2)  # type: ignore[union-attr]


def test_a_suffix_that_two_claim_is_refused_by_name_of_both(pixels: Path) -> None:
    rival = MediaReader("rival image", IMAGE, (".pxl",), read_pixels)
    with pytest.raises(MediaError, match=r"a\.PXL: \.pxl is claimed as a raw image and as a rival image: leave out"):
        open_media(pixels, IMAGE, extra=[PIXELS, rival])


def test_limits_of_images_hold_for_what_it_gives(pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MediaError, match=r"a\.PXL: 2 x 1 is 2 pixels, more than the limit of 1"):
        open_media(pixels, IMAGE, extra=BOTH, max_pixels=1)
    monkeypatch.setitem(readers._MAX_BYTES, IMAGE, 9)
    with pytest.raises(MediaError, match=r"a\.PXL: 10 bytes, more than the limit of 9"):
        open_media(pixels, IMAGE, extra=[MediaReader("raw image", IMAGE, (".pxl",), refuse)])


def test_limits_of_sounds_hold_for_what_it_gives(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MediaError, match=r"a\.smp: 1 s of sound or more, the limit is 0 s"):
        open_media(samples, AUDIO, extra=BOTH, max_duration_s=0.5)
    with monkeypatch.context() as patched:
        patched.setattr(audio, "MAX_SAMPLES", RATE_HZ - 1)
        with pytest.raises(MediaError, match=r"a\.smp: more than 7,999 samples at 8,000 Hz"):
            open_media(samples, AUDIO, extra=BOTH)
    monkeypatch.setitem(readers._MAX_BYTES, AUDIO, 100)
    with pytest.raises(MediaError, match=r"a\.smp: 16,004 bytes, more than the limit of 100"):
        open_media(samples, AUDIO, extra=[MediaReader("raw sound", AUDIO, (".smp",), refuse)])


def test_an_image_that_is_not_rgb_becomes_so(pixels: Path) -> None:
    clear = MediaReader("clear image", IMAGE, (".pxl",), lambda _: Image.new("RGBA", (1, 1), (255, 0, 0, 0)))
    assert np.asarray(open_media(pixels, IMAGE, extra=[clear])).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda _: 1 // 0, r"^scan: cannot be read as a raw image \(integer division"),
        (lambda _: np.zeros((2, 2, 3), np.uint8), r"^scan: read as a raw image it must be a PIL.Image.Image, got ndarray"),
        (lambda _: Sound(np.zeros(9, np.float32), RATE_HZ), r"must be a PIL.Image.Image, got Sound"),
        (lambda _: Image.open(io.BytesIO(b"")), r"^scan: cannot be read as a raw image \("),
    ],
)
def test_what_goes_wrong_in_it_is_an_error_of_the_file(pixels: Path, read: Any, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        open_media(pixels, IMAGE, extra=[MediaReader("raw image", IMAGE, (".pxl",), read)], label="scan")


def test_an_error_that_is_none_of_a_file_costs_that_file_alone(pixels: Path) -> None:
    def misused(_: Path) -> Any:
        raise UsageError("one option too many")

    with pytest.raises(MediaError, match=r"one option too many"):
        open_media(pixels, IMAGE, extra=[MediaReader("raw image", IMAGE, (".pxl",), misused)])


@pytest.mark.parametrize("place", ["missing.pxl", "empty.pxl", "folder.pxl", "/dev/zero"])
def test_it_is_given_regular_files_alone(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty.pxl").touch()
    (tmp_path / "folder.pxl").mkdir()
    greedy = MediaReader("raw image", IMAGE, (".pxl", ""), refuse)
    with pytest.raises(MediaError, match="there is no such file|the file is empty|expected a raw image|not a regular file"):
        open_media(tmp_path / place, IMAGE, extra=[greedy])
