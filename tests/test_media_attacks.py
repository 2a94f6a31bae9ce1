"""Media that were made to do harm, or are merely odd: each is read right or refused by name, soon, in little memory, and alone."""

import contextlib
import io
import logging
import os
import random
import resource
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from zoo.data.inputs import Item
from zoo.data.item_content import load
from zoo.errors import MediaError
from zoo.media.audio import open_audio
from zoo.media.image import open_image
from zoo.models.build import Built, ModelSpec, open_model
from zoo.tasks.classify import classify

RATE_HZ = 16_000
LABELS = ["cat", "dog"]
MUTANTS = 2_000 if os.environ.get("ZOO_SLOW_TESTS") == "1" else 100


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def big_png(width: int, height: int) -> bytes:
    """A header that promises millions of pixels, and a few bytes of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
        + chunk(b"IEND", b"")
    )


def exif_loop() -> bytes:
    """EXIF whose directory names itself as the next one, and as the one of the camera."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 8))


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", **options)
    return buffer.getvalue()


def patched(content: bytes, place: int, packed: bytes) -> bytes:
    return content[:place] + packed + content[place + len(packed) :]


TONE = (0.3 * np.sin(np.arange(RATE_HZ) * 0.1)).astype(np.float32)
READ, REFUSED = True, False
IMAGES: dict[str, tuple[Callable[[], bytes], bool]] = {
    "900 megapixels": (lambda: big_png(30_000, 30_000), REFUSED),
    "90 megapixels": (lambda: big_png(9_500, 9_500), REFUSED),
    "cut off": (lambda: big_png(4_000, 4_000), REFUSED),
    "600 frames": (
        lambda: saved(
            photo(size=(8, 8)), "GIF", save_all=True, append_images=[Image.new("P", (8, 8), n % 256) for n in range(599)]
        ),
        READ,
    ),
    "one pixel": (lambda: saved(photo(size=(1, 1)), "PNG"), READ),
    "wide": (lambda: saved(Image.new("RGB", (60_000, 1)), "PNG"), READ),
    "high": (lambda: saved(Image.new("RGB", (1, 60_000)), "PNG"), READ),
    "EXIF in a circle": (exif_loop, READ),
    "no EXIF at all": (lambda: saved(photo(), "JPEG", exif=b"Exif\0\0" + bytes(range(256)) * 200), READ),
    "FITS": (lambda: b"SIMPLE  =                    T".ljust(2_880) * 2, REFUSED),
    "PSD": (lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300), REFUSED),
    "EPS": (lambda: saved(photo(), "EPS"), REFUSED),
    "SPIDER": (lambda: saved(photo().convert("F"), "SPIDER"), REFUSED),
    "TIFF": (lambda: saved(photo(), "TIFF"), REFUSED),
    "ICO": (lambda: saved(photo(), "ICO"), REFUSED),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', REFUSED),
}
SOUNDS: dict[str, tuple[Callable[[], bytes], bool]] = {
    "2^32 frames": (lambda: patched(wav(TONE), 40, b"\xff\xff\xff\xff"), READ),
    "no sample": (lambda: wav(TONE[:0]), REFUSED),
    "not a number": (lambda: wav(np.full(99, np.nan, np.float32), subtype="FLOAT"), REFUSED),
    "without end": (lambda: wav(np.full(99, np.inf, np.float32), subtype="FLOAT"), REFUSED),
    "one sample a second": (lambda: patched(wav(TONE), 24, struct.pack("<I", 1)), REFUSED),
    "four billion a second": (lambda: patched(wav(TONE), 24, struct.pack("<I", 4_000_000_000)), REFUSED),
    "255 channels": (lambda: wav(np.zeros((9, 255), np.float32)), REFUSED),
    "IAMF": (lambda: b"\0\0\0\x18ftypiamf\0\0\0\0iamf" + b"\xf8\6iamf\0\0" + bytes(99), REFUSED),
    "MIDI": (lambda: b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk" + bytes(99), REFUSED),
    "a playlist": (lambda: b"#EXTM3U\nfile:///etc/passwd\nhttp://127.0.0.1/x.mp3\n", REFUSED),
    "AU": (lambda: b".snd" + struct.pack(">5I", 24, 0xFFFF_FFFF, 3, RATE_HZ, 1) + bytes(99), REFUSED),
}


def attempted(read: Callable[[bytes], object], content: bytes, *, good: bool) -> None:
    """Right in little memory and time; an error that speaks of the file and of no object."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if good:
        read(content)
    else:
        with pytest.raises(MediaError) as refused:
            read(content)
        said = str(refused.value)
        assert "0x" not in said
        assert "object at" not in said
        assert "\n" not in said
    assert time.perf_counter() - begun < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("name", IMAGES)
def test_hostile_images(name: str) -> None:
    make, good = IMAGES[name]
    attempted(open_image, make(), good=good)


@pytest.mark.parametrize("name", SOUNDS)
def test_hostile_sounds(name: str) -> None:
    make, good = SOUNDS[name]
    attempted(open_audio, make(), good=good)


def test_a_text_that_stands_for_an_image_is_no_image(tmp_path: Path) -> None:
    """Base64 and addresses of data are what other programs take; here they are names of files, and there is none."""
    for source in ("data:image/png;base64,iVBORw0KGgo=", "iVBORw0KGgo=", "data:image/png;base64," + "A" * 100_000):
        begun = time.perf_counter()
        with pytest.raises(MediaError, match="no such file|cannot be read|File name too long"):
            load(Item(source, source), allow_urls=True)
        assert time.perf_counter() - begun < 1
    (tmp_path / "a.png").write_bytes(wav(TONE))
    (tmp_path / "a.wav").write_bytes(saved(photo(), "PNG"))
    with pytest.raises(MediaError, match="not an image that can be read"):
        open_image(tmp_path / "a.png")
    with pytest.raises(MediaError, match="not a sound that can be read"):
        open_audio(tmp_path / "a.wav")


def test_no_address_is_asked_unless_somebody_said_so() -> None:
    asked: list[str] = []

    class Listener(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.append("somebody")

    with socketserver.TCPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        hosts = ("127.0.0.1", "[::1]", "0x7f000001", "2130706433", "localhost.", "[::ffff:127.0.0.1]", "ok\\@127.0.0.1")
        addresses = [
            f"{scheme}://{host}:{port}/a.png" for host in hosts for scheme in ("http", "https", "HTTP", "ftp", "gopher")
        ]
        for address in [*addresses, "file:///etc/passwd", "//127.0.0.1/a.png"]:
            for modality in ("image", "audio"):
                with pytest.raises(MediaError):
                    load(Item(address, address, modality), allow_urls=False)
        for scheme in ("file:///etc/hostname", f"ftp://127.0.0.1:{port}/a.png", f"gopher://127.0.0.1:{port}/a"):
            with pytest.raises(MediaError):
                load(Item(scheme, scheme), allow_urls=True)
        server.shutdown()
    assert asked == []


@pytest.fixture(scope="module")
def model() -> Built:
    return open_model(ModelSpec(name="clip/tiny", weights="none"))


@pytest.fixture(scope="module")
def alone(model: Built) -> list[dict[str, float]]:
    return [classify(photo(seed), LABELS, model=model).results[0].scores for seed in range(16)]


@pytest.mark.parametrize("place", [0, 5, 16])
@pytest.mark.parametrize("poison", ["text.png", "empty.png", "absent.png", "cut.jpg", "nan"])
def test_one_poison_item_costs_itself_alone(
    model: Built, alone: list[dict[str, float]], place: int, poison: str, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.jpg").write_bytes(saved(photo(size=(400, 300)), "JPEG")[:-2_000])
    items: list[object] = [photo(seed) for seed in range(16)]
    items.insert(place, np.full((4, 4), np.nan) if poison == "nan" else tmp_path / poison)
    results = list(classify(items, LABELS, model=model, batch_size=17).results)
    assert results.pop(place).error
    assert [result.error for result in results] == [None] * 16
    for result, expected in zip(results, alone, strict=True):
        assert result.scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_sound_is_the_same_at_any_rate_and_in_any_numbers(rate_hz: int, channels: int, subtype: str) -> None:
    def melody(rate_hz: int) -> np.ndarray:
        times = np.arange(rate_hz) / rate_hz
        return (0.2 * np.sin(2 * np.pi * 440 * times) + 0.1 * np.sin(2 * np.pi * 1_700 * times)).astype(np.float32)

    content = wav(np.stack([melody(rate_hz)] * channels, 1), rate_hz, subtype=subtype)
    heard = open_audio(content, sample_rate_hz=RATE_HZ).samples
    assert len(heard) == RATE_HZ
    middle = slice(1_000, -1_000)
    assert np.abs(heard[middle] - melody(RATE_HZ)[middle]).max() < 2e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "WAV", "RF64", "AIFF", "FLAC", "OGG", "OPUS", "MP3"])
def test_mutants_raise_nothing_else(kind: str) -> None:
    """Files with bytes changed and cut, two joined for sounds: pixels, samples or a MediaError. ZOO_SLOW_TESTS=1: 20,000 in all."""
    if kind in ("JPEG", "PNG", "WEBP", "GIF"):
        whole, read = saved(photo(size=(64, 48)), kind), open_image
    else:
        buffer = io.BytesIO()
        soundfile.write(
            buffer,
            TONE[:4_000],
            RATE_HZ,
            format="OGG" if kind == "OPUS" else kind,
            subtype=kind if kind == "OPUS" else None,
        )
        whole, read = buffer.getvalue() * 2, open_audio
    logging.disable(logging.WARNING)
    generator = random.Random(0)
    try:
        for _ in range(MUTANTS):
            mutant = bytearray(whole)
            for _ in range(generator.randint(1, 6)):
                mutant[generator.randrange(len(mutant))] = generator.randrange(256)
            if generator.random() < 0.2:
                del mutant[generator.randrange(1, len(mutant)) :]
            with contextlib.suppress(MediaError):
                read(bytes(mutant))
    finally:
        logging.disable(logging.NOTSET)
