"""Image files and bytes -> RGB pixels, behind one gate with limits; and the resize-and-crop that most encoders share.

Every image of the zoo passes `open_image`: the command line, Python and benchmarks see the same pixels and the same errors.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.errors import MediaError, UsageError
from zoo.media.file import check_file, describe_content
from zoo.media.transparency import Clear, clear_pixels, on_white

if TYPE_CHECKING:
    import torch

# Few decoders, and none (libtiff) that takes damaged files for whole ones.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 64_000_000  # 256 MB as RGB, as Pillow holds it: a 61-megapixel camera passes, a decompression bomb does not
MAX_BYTES = 256_000_000
PIXELS_AT_ONCE = 1 << 20  # that are converted together
LONG_SIDES = 4
_ORIENTATION = 0x0112  # in EXIF

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def open_image(
    source: str | Path | bytes | Image.Image | np.ndarray[Any, Any],
    *,
    max_pixels: int = MAX_PIXELS,
    label: str | None = None,
) -> Image.Image:
    """Anything that is an image -> `PIL.Image.Image` in mode RGB.

    source: a path, the bytes of a file, a PIL image, or an array: uint8 or float in [0, 1], `[height, width]`,
        `[height, width, 3 or 4]`. EXIF orientation is applied, transparency is laid on white, 16-bit greys are scaled to
        8 bits, CMYK and palettes are converted, and of an animation the first frame is taken.
    label: what errors call it, for bytes that came from somewhere with a name.
    Raises MediaError: what was given, why it cannot be read, what was expected.
    """
    if isinstance(source, Image.Image):
        label = label or "the PIL image"
        _check_size(source, label, max_pixels)
        return _to_rgb(source, label)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    label = label or (str(source) if isinstance(source, (str, Path)) else f"{len(source):,} bytes")
    data = read_file(Path(source)) if isinstance(source, (str, Path)) else source
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise MediaError(
            f"{label}: too many pixels; the limit is {limit:,} (Image.MAX_IMAGE_PIXELS is Pillow's own)"
        ) from error
    except UnidentifiedImageError as error:
        raise MediaError(
            f"{label}: not an image that can be read ({describe_content(data)}); expected {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # decoders raise whatever hostile bytes lead them to
        raise MediaError(f"{label}: a damaged image ({error or type(error).__name__})") from error
    _check_size(image, label, max_pixels)
    return _to_rgb(image, label, ours=True)


def _check_size(image: Image.Image, label: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise MediaError(
            f"{label}: {width} x {height} is {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            f"make it smaller or raise max_pixels"
        )


def crop_and_resize(
    image: Image.Image, *, size: int, crop: float, interpolation: str
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB image -> uint8[size, size, 3]: the short side resized to `size / crop`, then the centre cut out.

    Equal to torchvision's resize and crop, pixel for pixel. An image more than `LONG_SIDES` times as long as wide is
    resized only where the crop will be, so that no aspect ratio costs memory; that is within two grey levels.
    """
    width, height = image.size
    short = math.floor(size / crop)
    resized = (
        (short, max(short, int(short * height / width)))
        if width <= height
        else (max(short, int(short * width / height)), short)
    )
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    method = INTERPOLATIONS[interpolation]
    if max(resized) <= LONG_SIDES * short:
        whole = image if image.size == resized else image.resize(resized, method)
        return np.asarray(whole.crop((left, top, left + size, top + size)))
    scale_x, scale_y = width / resized[0], height / resized[1]
    box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
    return np.asarray(image.resize((size, size), method, box=box))


def squash(image: Image.Image, *, size: int, interpolation: str, crop: float = 1.0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB image -> uint8[size, size, 3]: the whole image resized to a square of `size / crop`, then the centre cut out.

    Equal to torchvision's resize to a square.
    """
    side = math.floor(size / crop)
    start = round((side - size) / 2)
    whole = image if image.size == (side, side) else image.resize((side, side), INTERPOLATIONS[interpolation])
    return np.asarray(whole.crop((start, start, start + size, start + size)))


def fit_and_pad(image: Image.Image, *, size: int, interpolation: str, fill: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB image -> uint8[size, size, 3]: the long side resized to `size`, the rest filled with the grey `fill` (0 to 255).

    Where the filling cannot be the same on both sides, the right and the lower edge have one pixel more.
    """
    width, height = image.size
    ratio = max(width / size, height / size)
    resized = (max(1, round(width / ratio)), max(1, round(height / ratio)))
    whole = image if image.size == resized else image.resize(resized, INTERPOLATIONS[interpolation])
    canvas = np.full((size, size, 3), fill, np.uint8)
    left, top = (size - resized[0]) // 2, (size - resized[1]) // 2
    canvas[top : top + resized[1], left : left + resized[0]] = np.asarray(whole)
    return canvas


def to_pixels(images: Sequence[Image.Image], preprocess: Mapping[str, Any]) -> torch.Tensor:
    """RGB images -> normalised float[B, 3, size, size], in channels-last memory order.

    preprocess: the card's numbers: size (pixels), interpolation, mean and std (per channel, of pixel values in [0, 1]), and
        how an image becomes square, in `resize`: "shortest" (where there is none; `crop` is the share of the short side that
        is kept), "squash", or "longest" (`fill` is the grey of the rest, 0 when left out).
    Raises UsageError for any other `resize`.
    """
    import torch  # here alone: looking at files needs none of it, and a mistyped path is said at once

    arrays = [_square(image, preprocess) for image in images]
    pixels_BHWC = torch.from_numpy(np.stack(arrays)).float().div_(255)
    pixels_BHWC.sub_(torch.tensor(preprocess["mean"])).div_(torch.tensor(preprocess["std"]))
    return pixels_BHWC.permute(0, 3, 1, 2)


def _square(image: Image.Image, preprocess: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    size, interpolation = preprocess["size"], preprocess["interpolation"]
    mode = preprocess.get("resize", "shortest")
    if mode == "shortest":
        return crop_and_resize(image, size=size, crop=preprocess["crop"], interpolation=interpolation)
    if mode == "squash":
        return squash(image, size=size, interpolation=interpolation, crop=preprocess.get("crop", 1.0))
    if mode == "longest":
        return fit_and_pad(image, size=size, interpolation=interpolation, fill=preprocess.get("fill", 0))
    raise UsageError(f'preprocess: resize must be "shortest", "squash" or "longest", got {mode!r}')


def read_file(path: Path) -> bytes:
    """The bytes of a file that should be an image. Raises MediaError when it cannot be read, is empty or is too large."""
    check_file(path, "an image file", max_bytes=MAX_BYTES)
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error})") from error


def _to_rgb(image: Image.Image, label: str, *, ours: bool = False) -> Image.Image:
    """ours: the image was opened here, and its pixels may go as soon as they are converted."""
    try:
        clear = clear_pixels(image)
        orientation = image.getexif().get(_ORIENTATION, 1)
        if image.mode == "RGB" and orientation == 1 and clear is None:
            image.load()
            return image
        converted = _converted(image, clear)
        if ours:
            image.close()
        converted.getexif()[_ORIENTATION] = orientation
        ImageOps.exif_transpose(converted, in_place=True)
    except Exception as error:  # as above: struct.error from EXIF data, for one
        raise MediaError(f"{label}: a damaged image ({error or type(error).__name__})") from error
    return converted


def _converted(image: Image.Image, clear: Clear | None) -> Image.Image:
    """An image in any mode -> RGB, some rows at a time: on the way numbers take many times the memory of pixels."""
    image.load()
    wide = image.mode.startswith("I;16") or image.mode in ("I", "F")
    top = _top_value(image) if wide else 0.0
    converted = Image.new("RGB", image.size)
    rows = max(1, PIXELS_AT_ONCE // max(1, image.width))
    for start in range(0, image.height, rows):
        end = min(image.height, start + rows)
        part = image.crop((0, start, image.width, end))
        if wide:
            part = _scale_to_8_bits(part, top)
        converted.paste(on_white(part, None if clear is None else clear(start, end)), (0, start))
    return converted


def _top_value(image: Image.Image) -> float:
    """The number that stands for white in an image of wide numbers."""
    highest = image.getextrema()[1] if image.mode in ("I", "F") and image.width and image.height else 0
    if image.mode == "F":
        return 1.0 if highest <= 1 else 255.0  # type: ignore[operator]  # of one channel
    return 255.0 if image.mode == "I" and highest <= 255 else 65535.0  # type: ignore[operator]  # as above


def _scale_to_8_bits(image: Image.Image, top: float) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8))


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    expected = "expected [height, width] or [height, width, 1, 3 or 4] of uint8, or of floats in [0, 1]"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.size == 0:
        raise MediaError(f"an array of shape {list(array.shape)} is not an image; {expected}")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise MediaError(f"a float array with values outside [0, 1]; {expected}")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise MediaError(f"an array of {array.dtype}; {expected}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the array")
