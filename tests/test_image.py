"""One gate for images: odd files give the right pixels, bad ones a clear error."""

import io
import os
import random
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from zoo.errors import MediaError, UsageError
from zoo.media.image import crop_and_resize, fit_and_pad, open_image, squash, to_pixels


@pytest.fixture
def photo(photos: Path) -> Image.Image:
    return Image.open(photos / "chelsea.jpg").convert("RGB").resize((64, 48))


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def difference(one: Image.Image, other: Image.Image) -> float:
    assert one.mode == other.mode == "RGB"
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max())


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.webp"])
def test_formats(tmp_path: Path, photo: Image.Image, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    limit = 90 if name.endswith("gif") else 0  # a gif has 256 colours
    assert difference(open_image(saved(tmp_path, photo, name, **options)), photo) <= limit


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_damaged_files_raise_nothing_else(photo: Image.Image, kind: str) -> None:
    """Bytes changed and cut at random: pixels or a MediaError, never another exception."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hello"
    buffer = io.BytesIO()
    photo.save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    generator = random.Random(0)
    for _ in range(600):
        mutant = bytearray(buffer.getvalue())
        for _ in range(generator.randint(1, 6)):
            mutant[generator.randrange(min(len(mutant), 400))] = generator.randrange(256)
        if generator.random() < 0.2:
            del mutant[generator.randrange(1, len(mutant)) :]
        try:
            assert open_image(bytes(mutant)).mode == "RGB"
        except MediaError:
            continue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, photo: Image.Image, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    turned = photo.transpose(Image.Transpose(undo[orientation])) if orientation in undo else photo
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, turned, "a.png", exif=exif)
    assert difference(open_image(path), photo) == 0


def test_palette_grey_alpha_and_16_bit(tmp_path: Path, photo: Image.Image) -> None:
    grey = photo.convert("L")
    as_rgb = grey.convert("RGB")
    assert difference(open_image(saved(tmp_path, grey, "grey.png")), as_rgb) == 0
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert difference(open_image(saved(tmp_path, wide, "wide.png")), as_rgb) <= 1
    assert difference(open_image(saved(tmp_path, grey.convert("1"), "bits.png")), grey.convert("1").convert("RGB")) == 0
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE)
    assert difference(open_image(saved(tmp_path, palette, "palette.png")), palette.convert("RGB")) == 0
    clear = photo.convert("RGBA")
    clear.putalpha(0)
    white = Image.new("RGB", photo.size, "white")
    assert difference(open_image(saved(tmp_path, clear, "clear.png")), white) == 0
    see_through = palette.copy()
    see_through.info["transparency"] = see_through.getpixel((0, 0))
    assert open_image(saved(tmp_path, see_through, "see.png")).getpixel((0, 0)) == (255, 255, 255)


def png(depth: int, colour_type: int, row: bytes, *chunks: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """One row of a PNG, two pixels wide, of any depth; Pillow writes none of 2, 4 and 16 bits with a transparent colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, depth, colour_type, 0, 0, interlaced)
    half = len(row) // 2
    packed = b"\0" + row[:half] + b"\0" + row[half:] if interlaced else b"\0" + row
    body = b"".join(
        chunk(*given) for given in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(packed)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def of_two_bytes(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}H", *numbers)


GREY, RGB, PALETTE, WHITE = 0, 2, 3, [255, 255, 255]
TRANSPARENT = [  # bits, kind, a row of two pixels, tRNS, and both pixels on white: the first is always the transparent one
    (1, GREY, b"\x40", of_two_bytes(0), [255, 255]),
    (1, GREY, b"\x80", of_two_bytes(1), [255, 0]),
    (2, GREY, b"\x90", of_two_bytes(2), [255, 85]),
    (4, GREY, b"\x35", of_two_bytes(3), [255, 85]),
    (4, GREY, b"\x03", of_two_bytes(0), [255, 51]),
    (8, GREY, b"\x03\x33", of_two_bytes(3), [255, 51]),
    (16, GREY, of_two_bytes(771, 770), of_two_bytes(771), [255, 3]),
    (8, RGB, bytes([1, 2, 3, 1, 2, 4]), of_two_bytes(1, 2, 3), [WHITE, [1, 2, 4]]),
    (16, RGB, of_two_bytes(257, 514, 771, 257, 514, 772), of_two_bytes(257, 514, 771), [WHITE, [1, 2, 3]]),
    (16, RGB, of_two_bytes(0, 0, 0, 0, 1, 0), of_two_bytes(0, 0, 0), [WHITE, [0, 0, 0]]),
    (4, PALETTE, b"\x10", b"\xff\0", [WHITE, [9, 9, 9]]),
    (8, PALETTE, b"\1\0", b"\xff\0", [WHITE, [9, 9, 9]]),
]


@pytest.mark.parametrize(("depth", "kind", "row", "colour", "pixels"), TRANSPARENT)
@pytest.mark.parametrize("orientation", [None, 1, 2, 3])
def test_a_transparent_colour_is_white(
    depth: int, kind: int, row: bytes, colour: bytes, pixels: list[Any], orientation: int | None
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation or 1
    before = [(b"eXIf", exif.tobytes()[6:])] if orientation else []
    palette = [(b"PLTE", bytes([9, 9, 9, 80, 81, 82]))] if kind == PALETTE else []
    content = png(depth, kind, row, *before, *palette, (b"tRNS", colour))
    expected = [pixel if isinstance(pixel, list) else [pixel] * 3 for pixel in pixels]
    turned = expected[::-1] if orientation in (2, 3) else expected
    assert np.asarray(open_image(content)).tolist() == [turned]
    given = Image.open(io.BytesIO(content))
    assert np.asarray(open_image(given)).tolist() == [turned]


def test_transparency_costs_the_giver_nothing_and_interlacing_changes_nothing() -> None:
    colour = (b"tRNS", of_two_bytes(257, 514, 771))
    row = of_two_bytes(257, 514, 771, 257, 514, 772)
    assert np.asarray(open_image(png(16, RGB, row, colour, interlaced=True))).tolist() == [[WHITE, [1, 2, 3]]]
    given = Image.open(io.BytesIO(png(8, GREY, b"\1\2", (b"tRNS", of_two_bytes(2)))))
    assert np.asarray(open_image(given)).tolist() == [[[1, 1, 1], WHITE]]
    assert (given.mode, given.info["transparency"]) == ("L", 2)
    assert np.asarray(open_image(given)).tolist() == [[[1, 1, 1], WHITE]]  # it was loaded since
    with pytest.raises(MediaError, match="a damaged image"):
        open_image(png(8, GREY, b"\1\2", (b"tRNS", b"\1")))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("P", "RGBA", "LA", "RGB", "L")),
        *(("GIF", mode) for mode in ("P", "RGBA", "L")),
        *(("WEBP", mode) for mode in ("P", "RGBA", "LA")),
    ],
)
def test_what_can_be_looked_through_is_laid_on_white(kind: str, mode: str) -> None:
    """However Pillow writes it: by alpha, by a palette, or by a colour."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (30, 30, 30, 255)
    whole = Image.fromarray(pixels)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if mode in ("RGB", "L", "P"):
        whole = whole.convert("RGB").quantize() if mode == "P" else whole.convert("RGB").convert(mode)
        options["transparency"] = whole.getpixel((0, 3))
        whole.info["transparency"] = options["transparency"]
    else:
        whole = whole.convert(mode)
    buffer = io.BytesIO()
    whole.save(buffer, kind, **options)
    seen = np.asarray(open_image(buffer.getvalue()))
    assert (seen[2:] == 255).all()
    assert (seen[:2] == 30).all()
    assert np.array_equal(np.asarray(open_image(whole)), seen)


def test_the_part_of_a_gif_that_its_first_frame_leaves_free_is_white() -> None:
    buffer = io.BytesIO()
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.putpixel((0, 0), 0)
    image.save(buffer, "GIF", transparency=0)
    content = bytearray(buffer.getvalue())
    content[6:10] = struct.pack("<HH", 3, 2)
    assert np.asarray(open_image(bytes(content)))[0].tolist() == [WHITE, [9, 9, 9], WHITE]


def test_cmyk_and_animation(tmp_path: Path, photo: Image.Image) -> None:
    cmyk = saved(tmp_path, photo.convert("CMYK"), "cmyk.jpg", quality=95)
    assert difference(open_image(cmyk), photo) < 60
    other = Image.new("RGB", photo.size, "red")
    path = saved(tmp_path, photo, "moving.gif", save_all=True, append_images=[other] * 5)
    assert difference(open_image(path), photo) < 90
    assert open_image(path).getpixel((0, 0)) != (255, 0, 0)


def test_bytes_arrays_and_pil_images(photo: Image.Image) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    array = np.asarray(photo)
    for given in (buffer.getvalue(), array, array / 255.0, photo, photo.convert("RGBA")):
        assert difference(open_image(given), photo) == 0
    assert difference(open_image(array[:, :, 0]), Image.fromarray(array[:, :, 0]).convert("RGB")) == 0
    assert difference(open_image(array[:, :, :1]), Image.fromarray(array[:, :, 0]).convert("RGB")) == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"an array of shape \[4, 4, 2\] is not an image"),
        (np.zeros((0, 4), np.uint8), r"an array of shape \[0, 4\] is not an image"),
        (np.zeros((4, 4), np.int64), "an array of int64; expected"),
        (np.full((4, 4), 2.0), r"values outside \[0, 1\]"),
        (np.full((4, 4), np.nan), r"values outside \[0, 1\]"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        open_image(array)


def test_files_that_are_no_images(tmp_path: Path, photo: Image.Image) -> None:
    (tmp_path / "text.jpg").write_text("this is a shopping list\n" * 9)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "noise.png").write_bytes(bytes(range(1, 200)))
    whole = saved(tmp_path, photo, "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    photo.save(tmp_path / "doc.eps")
    (tmp_path / "doc.eps").rename(tmp_path / "eps.png")
    for name, message in (
        ("absent.jpg", "absent.jpg: there is no such file"),
        ("text.jpg", r"text.jpg: not an image that can be read \(it holds text\); expected JPEG, PNG"),
        ("empty.jpg", "empty.jpg: the file is empty"),
        ("noise.png", r"noise.png: not an image that can be read \(it begins with 01 02 03 04\)"),
        ("cut.jpg", "cut.jpg: a damaged image .*truncated"),
        ("eps.png", "eps.png: not an image"),
        (".", "a folder, expected an image file"),
        ("nul\0.jpg", "cannot be read"),
    ):
        with pytest.raises(MediaError, match=message):
            open_image(tmp_path / name)


@pytest.mark.covers("A15")
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_000, 20_000])
def test_a_decompression_bomb_costs_nothing(tmp_path: Path, side: int) -> None:
    """Written without ever holding its pixels: a PNG header and one deflated run of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(data) < 60_000
    (tmp_path / "bomb.png").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(MediaError, match="the limit of 64,000,000|the limit is 64,000,000"):
        open_image(tmp_path / "bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_the_limit_can_be_moved(photo: Image.Image, tmp_path: Path) -> None:
    path = saved(tmp_path, photo, "a.png")
    with pytest.raises(MediaError, match="64 x 48 is 3,072 pixels, more than the limit of 3,000"):
        open_image(path, max_pixels=3000)
    assert open_image(path, max_pixels=3072).size == (64, 48)


@pytest.mark.parametrize("size", [(500, 400), (400, 500), (224, 224), (1, 1), (3000, 1), (1, 3000), (225, 1000)])
@pytest.mark.parametrize(("pixels", "crop"), [(224, 0.875), (240, 0.882), (64, 1.0)])
def test_equal_to_timm(photos: Path, size: tuple[int, int], pixels: int, crop: float) -> None:
    """Bit for bit, but for very long images, of which only the part that survives the crop is resized."""
    image = Image.open(photos / "coffee.jpg").convert("RGB").resize(size)
    numbers = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    transform = create_transform((3, pixels, pixels), interpolation="bicubic", crop_pct=crop, **numbers)
    ours = to_pixels([image], {"size": pixels, "crop": crop, "interpolation": "bicubic", **numbers})
    assert ours.shape == (1, 3, pixels, pixels)
    difference = (ours[0] - transform(image)).abs()
    if max(size) <= 4 * min(size):
        assert difference.max() == 0
    else:
        assert difference.max() <= 2.1 * 1 / 255 / 0.2  # two grey levels


def test_a_thin_image_costs_no_memory() -> None:
    image = Image.new("RGB", (60_000, 1))
    assert crop_and_resize(image, size=224, crop=0.875, interpolation="bicubic").shape == (224, 224, 3)


SQUARE = {"size": 96, "crop": 1.0, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (96, 96), (50, 40), (1, 700)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_squash_is_torchvisions_resize_to_a_square(photos: Path, size: tuple[int, int], interpolation: str) -> None:
    image = open_image(photos / "coffee.jpg").resize(size)
    numbers = {**SQUARE, "interpolation": interpolation}
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize((96, 96), mode), transforms.ToTensor(), transforms.Normalize(SQUARE["mean"], SQUARE["std"])]
    reference = transforms.Compose(steps)(image)
    assert torch.equal(to_pixels([image], {**numbers, "resize": "squash"})[0], reference)


@pytest.mark.parametrize(
    ("size", "box"), [((40, 20), (0, 24, 96, 48)), ((20, 40), (24, 0, 48, 96)), ((9, 8), (0, 5, 96, 85)), ((900, 1), (0, 47, 96, 1))]
)  # fmt: skip
def test_the_longest_side_fits_and_the_rest_is_filled(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    left, top, width, height = box
    pixels = fit_and_pad(Image.new("RGB", size, "white"), size=96, interpolation="bicubic", fill=7)
    assert (pixels[top : top + height, left : left + width] == 255).all()
    pixels[top : top + height, left : left + width] = 7
    assert (pixels == 7).all()


def test_ways_to_become_square(photo: Image.Image) -> None:
    assert torch.equal(to_pixels([photo], {**SQUARE, "resize": "shortest"}), to_pixels([photo], SQUARE))
    assert squash(photo, size=32, interpolation="bicubic").shape == (32, 32, 3)
    dark = to_pixels([photo], {**SQUARE, "resize": "longest"})
    assert torch.equal(dark, to_pixels([photo], {**SQUARE, "resize": "longest", "fill": 0}))
    with pytest.raises(UsageError, match='resize must be "shortest", "squash" or "longest", got \'fit\''):
        to_pixels([photo], {**SQUARE, "resize": "fit"})


def test_rows_depend_on_their_own_image_alone(photos: Path) -> None:
    images = [open_image(path) for path in sorted(photos.glob("*.jpg"))[:4]]
    numbers = {"size": 96, "crop": 0.9, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    together = to_pixels(images, numbers)
    assert torch.equal(together, torch.cat([to_pixels([image], numbers) for image in images]))
    assert together.is_contiguous(memory_format=torch.channels_last)


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(MediaError, match="not a regular file, expected an image file"):
            open_image(path)
