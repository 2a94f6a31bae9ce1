"""Files that hold one image or one sound in many ways give one embedding; and of sixteen items one that is damaged costs itself alone."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from scipy.signal import resample_poly

import zoo as library
from zoo.data.tables import read_vectors
from zoo.media.audio import Sound
from zoo.models.build import Built
from zoo.tasks.classify import classify

LABELS = ["cat", "dog"]
RATE_HZ = 16_000
IMAGES = ("--model", "clip/tiny", "--weights", "none", "--threads", "1")
SOUNDS = ("--model", "audio/wav2vec2-tiny", "--weights", "none", "--threads", "1")


def vectors(main, out: Path, files: list[Path], *model: str) -> np.ndarray:
    """float32[files, E], as the command embeds them."""
    out.unlink(missing_ok=True)
    run = main("embed", *map(str, files), "--out", str(out), *model)
    assert run.returncode == 0, run.stderr
    return np.stack([np.frombuffer(vector, "<f4") for vector in read_vectors(out)])


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bits(pixels_HW3: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write: each value of 8 bits as both of its bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels_HW3.shape[:2]
    rows = (pixels_HW3.astype(np.uint16) * 257).astype(">u2")
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def oriented(image: Image.Image, kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, kind, exif=exif, **options)


UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation -> the transposition that undoes it


def image_twins(photo: Image.Image) -> dict[str, tuple[bytes, Image.Image]]:
    """A file and the plain RGB image that it stands for."""
    grey, palette = photo.convert("L"), photo.quantize(64)
    bilevel, cmyk = photo.convert("1"), saved(photo.convert("CMYK"), "JPEG", quality=95)
    on_white, clear = photo.copy(), photo.convert("RGBA")
    on_white.paste("white", (10, 10, 40, 30))
    clear.paste((90, 0, 200, 0), (10, 10, 40, 30))
    grey_white, grey_clear = grey.copy(), grey.convert("LA")
    grey_white.paste(255, (10, 10, 40, 30))
    grey_clear.paste((7, 0), (10, 10, 40, 30))
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    jpeg = saved(photo, "JPEG", quality=95)
    twins = {
        "palette": (saved(palette, "PNG"), palette),
        "palette of a gif": (saved(palette, "GIF"), palette),
        "grey": (saved(grey, "PNG"), grey),
        "grey JPEG": (saved(grey, "JPEG", quality=95), Image.open(io.BytesIO(saved(grey, "JPEG", quality=95)))),
        "grey of 16 bits": (saved(wide, "PNG"), grey),
        "RGB of 16 bits": (sixteen_bits(np.asarray(photo)), photo),
        "one bit": (saved(bilevel, "PNG"), bilevel),
        "CMYK": (cmyk, Image.open(io.BytesIO(cmyk))),
        "alpha": (saved(clear, "PNG"), on_white),
        "alpha of WebP": (saved(clear, "WEBP", lossless=True, exact=True), on_white),
        "grey and alpha": (saved(grey_clear, "PNG"), grey_white),
        "a JPEG on its side": (
            oriented(photo, "JPEG", 6, quality=95), Image.open(io.BytesIO(jpeg)).transpose(Image.Transpose.ROTATE_270)
        ),
    }  # fmt: skip
    for orientation in range(1, 9):
        turned = photo.transpose(Image.Transpose(UNDO[orientation])) if orientation in UNDO else photo
        twins[f"orientation {orientation}"] = (oriented(turned, "PNG", orientation), photo)
    return {name: (content, twin.convert("RGB")) for name, (content, twin) in twins.items()}


@pytest.mark.covers("M5")
def test_an_image_has_the_embedding_of_its_plain_twin(
    main, photos: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    photo = Image.open(photos / "chelsea.jpg").convert("RGB").resize((96, 64))
    twins = image_twins(photo)
    files, plain = [], []
    for number, (content, twin) in enumerate(twins.values()):
        files.append(tmp_path / f"{number}.img.png")
        files[-1].write_bytes(content)
        plain.append(tmp_path / f"{number}.twin.png")
        plain[-1].write_bytes(saved(twin, "PNG"))
    given, expected = (vectors(main, tmp_path / "e.npz", paths, *IMAGES) for paths in (files, plain))
    differences = np.abs(given - expected).max(1)
    assert dict(zip(twins, differences, strict=True)) == pytest.approx(dict.fromkeys(twins, 0), abs=1e-5)
    (original,) = vectors(main, tmp_path / "e.npz", [plain[list(twins).index("orientation 1")]], *IMAGES)
    cmyk = given[list(twins).index("CMYK")]
    assert original @ cmyk > 0.99, "what a printer's colours stand for is the photo, and not its negative"
    assert min(np.abs(expected[0] - other).max() for other in expected[2:7]) > 1e-3, "other images have other embeddings"
    figure(f"{len(twins)} files, at most {differences.max():.0e} from their twins")


def band(rate_hz: int, duration_s: float = 1.0) -> np.ndarray:
    """float64[N]: sounds below 3 kHz, the same ones at every rate."""
    times = np.arange(int(rate_hz * duration_s)) / rate_hz
    generator = np.random.default_rng(0)
    pitches, phases = generator.uniform(100, 3_000, 40), generator.uniform(0, 2 * np.pi, 40)
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * times / duration_s)  # silent at both ends, where resampling sees an edge
    return 0.02 * swell * np.sin(2 * np.pi * pitches[:, None] * times + phases[:, None]).sum(0)


SOUND_FILES = [
    *((rate_hz, channels, "WAV", "PCM_16") for rate_hz in (8_000, 11_025, 22_050, 44_100, 48_000, 96_000) for channels in (1, 2)),
    *((RATE_HZ, channels, "WAV", subtype) for channels in (1, 2, 6) for subtype in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    (RATE_HZ, 1, "FLAC", "PCM_24"), (44_100, 2, "FLAC", "PCM_16"), (48_000, 2, "AIFF", "PCM_24"), (48_000, 1, "RF64", "FLOAT"),
]  # fmt: skip


@pytest.mark.covers("M6")
def test_a_sound_has_the_embedding_of_its_plain_twin(main, tmp_path: Path, figure: Callable[[str], None]) -> None:
    """The twin is mono, of 16 kHz and floats; resampled by nobody."""
    soundfile.write(tmp_path / "twin.wav", band(RATE_HZ), RATE_HZ, subtype="FLOAT")
    files = [tmp_path / "twin.wav"]
    for number, (rate_hz, channels, kind, subtype) in enumerate(SOUND_FILES):
        files.append(tmp_path / f"{number}.{'flac' if kind == 'FLAC' else 'wav'}")
        soundfile.write(files[-1], np.stack([band(rate_hz)] * channels, 1), rate_hz, format=kind, subtype=subtype)
    soundfile.write(tmp_path / "other.wav", band(RATE_HZ)[::-1], RATE_HZ, subtype="FLOAT")
    embedded = vectors(main, tmp_path / "e.npz", [*files, tmp_path / "other.wav"], *SOUNDS)
    twin, given, other = embedded[0], embedded[1:-1], embedded[-1]
    farthest = np.linalg.norm(given - twin, axis=1).max() / np.linalg.norm(twin)
    assert farthest < 2e-3
    assert np.linalg.norm(other - twin) / np.linalg.norm(twin) > 10 * farthest
    figure(f"{len(given)} files, at most {farthest:.0e} of its length from their twin")


@pytest.mark.covers("M6")
def test_resampling_is_that_of_another_library() -> None:
    """Of what is below the lower half of both rates; above it libraries roll off in ways of their own."""
    noise = resample_poly(np.random.default_rng(0).standard_normal(24_000), 1, 4)  # nothing above an eighth of the rate
    for rate_hz in (8_000, 22_050, 44_100, 48_000):
        slow = resample_poly(noise, rate_hz, 6_000).astype(np.float32)[:rate_hz]
        theirs = resample_poly(slow.astype(np.float64), RATE_HZ, rate_hz)
        ours = library.open_audio(Sound(slow, rate_hz), sample_rate_hz=RATE_HZ).samples
        middle = slice(1_000, min(len(ours), len(theirs)) - 1_000)
        assert np.abs(ours[middle] - theirs[middle]).max() < 0.02 * np.abs(theirs).max(), rate_hz


# One damaged item among sixteen.


@pytest.fixture(scope="module")
def model() -> Built:
    torch.manual_seed(0)
    return library.open_model("clip/tiny", weights=None)


def pixels(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images_alone(model: Built) -> list[dict[str, float]]:
    return [classify(pixels(seed), LABELS, model=model).results[0].scores for seed in range(16)]


@pytest.mark.covers("M4")
@pytest.mark.parametrize("poison", ["text.png", "empty.png", "absent.png", "cut.jpg", "huge.png", "nan"])
def test_one_damaged_image_among_sixteen_costs_itself_alone(
    model: Built, images_alone: list[dict[str, float]], poison: str, tmp_path: Path
) -> None:
    """At every place, in batches in which it stands first, last and between."""
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.jpg").write_bytes(saved(pixels(0).resize((400, 300)), "JPEG")[:-2_000])
    (tmp_path / "huge.png").write_bytes(saved(Image.new("1", (9_000, 9_000)), "PNG"))
    damaged: object = np.full((4, 4), np.nan) if poison == "nan" else tmp_path / poison
    good: list[object] = [pixels(seed) for seed in range(16)]
    for place in range(16):
        items = [*good[:place], damaged, *good[place + 1 :]]
        results = list(classify(items, LABELS, model=model, batch_size=(16, 4, 5)[place % 3]).results)
        broken = results.pop(place)
        assert broken.error
        assert "\n" not in broken.error
        assert not broken.scores
        assert [result.error for result in results] == [None] * 15
        for result, expected in zip(results, [*images_alone[:place], *images_alone[place + 1 :]], strict=True):
            assert result.scores == pytest.approx(expected, abs=1e-5)


def melody(seed: int) -> Sound:
    return Sound((0.1 * np.random.default_rng(seed).standard_normal(4_000 + 100 * seed)).astype(np.float32), RATE_HZ)


@pytest.fixture(scope="module")
def hearing() -> Built:
    torch.manual_seed(0)
    return library.open_model("audio/wav2vec2-tiny", weights=None)


@pytest.mark.covers("M4")
def test_one_damaged_sound_among_sixteen_costs_itself_alone(hearing: Built, tmp_path: Path) -> None:
    out = tmp_path / "e.npz"
    good = [melody(seed) for seed in range(16)]
    library.embed(good, out=out, model=hearing, batch_size=1)
    alone = [np.frombuffer(vector, "<f4") for vector in read_vectors(out)]
    (tmp_path / "cut.flac").write_bytes(b"fLaC" + bytes(40))
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "nan.wav", np.full(99, np.nan, np.float32), RATE_HZ, subtype="FLOAT")
    poisons = [tmp_path / name for name in ("cut.flac", "empty.wav", "nan.wav", "absent.wav")]
    for place in range(16):
        items = [*good[:place], poisons[place % 4], *good[place + 1 :]]
        outcome = library.embed(items, out=out, model=hearing, batch_size=(16, 4, 5)[place % 3], overwrite=True)
        assert [number for number, result in enumerate(outcome.results) if result.error] == [place]
        given = [np.frombuffer(vector, "<f4") for vector in read_vectors(out)]
        assert np.abs(np.stack(given) - np.stack(alone[:place] + alone[place + 1 :])).max() < 1e-4
