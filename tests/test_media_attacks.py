"""Media that were made to do harm, or are merely odd: each is read right or refused by name, soon, in little memory, and alone."""

import contextlib
import io
import json
import logging
import os
import random
import re
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
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

RATE_HZ = 16_000
SLOW = os.environ.get("ZOO_SLOW_TESTS") == "1"
MUTANTS = 2_000 if SLOW else 300


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


def plain_png(side: int, bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A whole square of one colour in a few thousand bytes, with any number of bits and kind of channels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + (side * {0: 1, 2: 3, 4: 2, 6: 4}[kind] * bits + 7) // 8)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    given = [(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in given)


def exif_loop() -> bytes:
    """EXIF whose directory names itself as the next one, and as the one of the camera."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 8))


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", **options)
    return buffer.getvalue()


def flac(samples: np.ndarray, rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="FLAC")
    return buffer.getvalue()


@cache
def ten_hours() -> bytes:
    """Silence of 144 MB in some hundred kilobytes."""
    return flac(np.zeros(36_000_000, np.int16), 1_000)


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
    **{
        f"16 megapixels of {name}": (partial(plain_png, 4_000, bits, kind, *chunks), READ)
        for name, bits, kind, chunks in (
            ("one bit", 1, 0, ()),
            ("grey", 8, 0, ()),
            ("wide grey", 16, 0, ()),
            ("RGB", 8, 2, ()),
            ("wide RGB", 16, 2, ()),
            ("RGB and alpha", 8, 6, ()),
            ("wide grey and alpha", 16, 4, ()),
            ("grey with a clear one", 8, 0, ((b"tRNS", bytes(2)),)),
            ("wide RGB with a clear one", 16, 2, ((b"tRNS", bytes(6)),)),
        )
    },
    "a JPEG that ends early": (lambda: saved(photo(size=(400, 300)), "JPEG")[:-2_000], REFUSED),
    "a GIF that moves, cut off": (lambda: saved(photo(), "GIF")[:200], REFUSED),
    "bytes": (lambda: bytes(range(1, 200)), REFUSED),
    "nothing": (lambda: b"", REFUSED),
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
    "nothing": (lambda: b"", REFUSED),
    "a FLAC that ends early": (lambda: flac(TONE)[:2_000], REFUSED),
    "a FLAC that promises a day": (lambda: patched(flac(TONE), 21, b"\xf0" + struct.pack(">I", 86_400 * RATE_HZ)), REFUSED),
    "a WAV that ends early": (lambda: wav(TONE)[:9_000], READ),
    "no channel": (lambda: patched(wav(TONE), 22, b"\0\0"), REFUSED),
    "65,535 channels": (lambda: patched(wav(TONE), 22, b"\xff\xff"), REFUSED),
    "ten hours of nothing": (ten_hours, REFUSED),
    "AU": (lambda: b".snd" + struct.pack(">5I", 24, 0xFFFF_FFFF, 3, RATE_HZ, 1) + bytes(99), REFUSED),
}


@contextlib.contextmanager
def little_memory(most_mb: int = 200) -> Iterator[None]:
    """Whatever this process has held before: the mark of its highest memory is set back, which Linux alone can."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return

    def marked(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1])  # type: ignore[index]  # it is there

    Path("/proc/self/clear_refs").write_text("5")
    before = marked("VmRSS")
    yield
    assert marked("VmHWM") - before < most_mb * 1_000


def attempted(read: Callable[[bytes], object], content: bytes, *, good: bool) -> None:
    """Right in little memory and time; an error that speaks of the file and of no object."""
    begun = time.perf_counter()
    with little_memory():
        _attempted(read, content, good=good)
    assert time.perf_counter() - begun < 2


def _attempted(read: Callable[[bytes], object], content: bytes, *, good: bool) -> None:
    if good:
        read(content)
    else:
        with pytest.raises(MediaError) as refused:
            read(content)
        said = str(refused.value)
        assert "0x" not in said
        assert "object at" not in said
        assert "\n" not in said


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.covers("M1", "A15", "A17")
@pytest.mark.parametrize("name", IMAGES)
def test_hostile_images(name: str) -> None:
    make, good = IMAGES[name]
    attempted(open_image, make(), good=good)


@pytest.mark.covers("M2", "A16", "A17")
@pytest.mark.parametrize("name", SOUNDS)
def test_hostile_sounds(name: str) -> None:
    make, good = SOUNDS[name]
    attempted(open_audio, make(), good=good)


@pytest.mark.covers("M1")
@pytest.mark.skipif(not SLOW, reason="half a gigabyte each: ZOO_SLOW_TESTS=1")
@pytest.mark.parametrize(("bits", "kind", "most_mb"), [(1, 0, 400), (16, 0, 500), (8, 2, 300), (8, 6, 600), (16, 4, 600)])
def test_the_largest_images_that_are_read(bits: int, kind: int, most_mb: int) -> None:
    """Pillow holds a pixel in 4 bytes, and the same image before and after its conversion is in memory: 8 bytes for each."""
    content, begun = plain_png(7_999, bits, kind), time.perf_counter()
    with little_memory(most_mb):
        open_image(content)
    assert time.perf_counter() - begun < 2


@pytest.mark.covers("M1", "A15", "A17")
@pytest.mark.filterwarnings("ignore")
def test_the_command_answers_or_says_one_line_about_each_hostile_image(main, tmp_path: Path) -> None:
    """All under one wrong suffix, in one folder; what can be read is classified, and nothing but the file is named."""
    images = [one for name, one in IMAGES.items() if not name.startswith("16 mega") or name.endswith("one bit")]
    for number, (make, _) in enumerate(images):
        (tmp_path / f"{number:03}.bmp").write_bytes(make())
    words = ("--labels", "cat,dog", "--model", "clip/tiny", "--weights", "none", "--batch-size", "1", "--threads", "1")
    main("classify", str(tmp_path / "005.bmp"), *words)  # what is loaded once
    begun = time.perf_counter()
    run = main("classify", str(tmp_path), *words, "--json")
    assert time.perf_counter() - begun < 2 * len(images)
    results = json.loads(run.stdout)["results"]
    assert [("error" not in one or one["error"] is None) for one in results] == [good for _, good in images]
    assert run.returncode == 1
    for number, result in enumerate(results):
        if not images[number][1]:
            assert result["error"].startswith(str(tmp_path / f"{number:03}.bmp"))
            assert "\n" not in result["error"]
            assert "0x" not in result["error"]
    assert "Traceback" not in run.stderr


@pytest.mark.covers("M2", "A16", "A17")
def test_the_command_answers_or_says_one_line_about_each_hostile_sound(main, tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number, (make, _) in enumerate(SOUNDS.values()):
        (folder / f"{number:03}.flac").write_bytes(make())
    os.mkfifo(folder / "998.wav")  # which nobody writes to
    (folder / "999.wav").symlink_to("/dev/zero")
    words = ("embed", str(folder / "*"), "--model", "audio/wav2vec2-tiny", "--weights", "none", "--threads", "1")
    begun = time.perf_counter()
    with little_memory():
        run = main(*words, "--out", str(tmp_path / "e.npz"), "--json")
    assert time.perf_counter() - begun < 2 * len(SOUNDS)
    results = json.loads(run.stdout)["results"]
    expected = [*(good for _, good in SOUNDS.values()), REFUSED, REFUSED]
    assert [one.get("error") is None for one in results] == expected, results
    for good, result in zip(expected, results, strict=True):
        if not good:
            assert str(folder) in result["error"]
            assert "\n" not in result["error"]
            assert "0x" not in result["error"]
    assert "Traceback" not in run.stderr


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


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what was said to it. Whoever asks by http is sent on to ftp."""
    asked: list[bytes] = []

    class Listener(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(0.2)
            with contextlib.suppress(OSError):
                asked.append(self.request.recv(4_096))
                self.request.sendall(
                    b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1:%d/a.png\r\nContent-Length: 0\r\n\r\n" % port
                )

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Listener) as server:
        server.daemon_threads = True
        port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield port, asked
        server.shutdown()
        thread.join()


def addresses(port: int) -> list[str]:
    hosts = (
        "127.0.0.1",
        "[::1]",
        "0x7f000001",
        "2130706433",
        "localhost",
        "localhost.",
        "[::ffff:127.0.0.1]",
        "ok\\@127.0.0.1",
    )
    schemes = ("http", "https", "HTTP", "ftp", "gopher")
    return [
        *(f"{scheme}://{host}:{port}/a.png" for host in hosts for scheme in schemes),
        "file:///etc/passwd",
        f"//127.0.0.1:{port}/a.png",
    ]


@pytest.mark.covers("M9", "A12")
def test_no_address_is_asked_unless_somebody_said_so(listener: tuple[int, list[bytes]]) -> None:
    port, asked = listener
    for address in addresses(port):
        for modality in ("image", "audio"):
            with pytest.raises(MediaError):
                load(Item(address, address, modality), allow_urls=False)
    for address in ("file:///etc/hostname", f"ftp://127.0.0.1:{port}/a.png", f"gopher://127.0.0.1:{port}/a"):
        with pytest.raises(MediaError):
            load(Item(address, address), allow_urls=True)
    assert asked == []
    with pytest.raises(MediaError, match="could not be fetched"):
        load(Item("a", f"http://127.0.0.1:{port}/a.png"), allow_urls=True)
    assert [said[:16] for said in asked] == [b"GET /a.png HTTP/"], "and nobody is sent on to another scheme"


@pytest.mark.covers("M9", "A12")
def test_no_command_asks_an_address_that_stands_for_a_medium(
    main, tmp_path: Path, listener: tuple[int, list[bytes]]
) -> None:
    port, asked = listener
    (tmp_path / "folder").mkdir()
    photo(size=(8, 8)).save(tmp_path / "folder" / "a.png")
    folder, out = str(tmp_path / "folder"), str(tmp_path / "e.npz")
    dual, language = ("--model", "clip/tiny", "--weights", "none"), ("--model", "smollm/tiny", "--weights", "none")
    for address in (f"http://127.0.0.1:{port}/a.png", "file:///etc/passwd"):
        for words in (
            ("classify", address, "--labels", "a,b", *dual),
            ("classify", folder, "--labels-file", address, *dual),
            ("classify", folder, "--shots", address, *dual),
            ("classify", folder, "--labels", "a,b", "--model", "clip/tiny", "--weights", address),
            ("embed", address, "--out", out, *dual),
            ("embed", "--list", address, "--out", out, *dual),
            ("search", address, "a cat", *dual),
            ("search", folder, "--query-image", address, *dual),
            ("filter", address, "--out", out, "--threshold", "0", *dual),
            ("transcribe", address, "--model", "whisper/random", "--weights", "none"),
            ("generate", address, "--max-tokens", "1", *language),
            ("adapt", "train", address, "--out", str(tmp_path / "a.safetensors"), *language),
            ("compose", address),
        ):
            run = main(*words)
            assert "Traceback" not in run.stderr
            assert "root:" not in run.stdout + run.stderr
            is_text = address.startswith("file:") and words[:2] in (("embed", address), ("generate", address))
            assert is_text or run.returncode in (1, 2), words
    assert (
        main("transcribe", f"https://localhost:{port}/a.wav", "--model", "whisper/random", "--weights", "none").returncode
        == 2
    )
    assert asked == []


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


@pytest.mark.covers("M3")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "WAV", "RF64", "AIFF", "FLAC", "OGG", "OPUS", "MP3"])
def test_mutants_raise_nothing_else(kind: str, figure: Callable[[str], None]) -> None:
    """Files with bytes changed and cut, two joined for sounds: pixels, samples or a MediaError. ZOO_SLOW_TESTS=1: 24,000 in all."""
    refused = 0
    if kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
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
            try:
                read(bytes(mutant))
            except MediaError:
                refused += 1
    finally:
        logging.disable(logging.NOTSET)
    figure(f"{kind}: {MUTANTS:,}, {refused:,} refused")
