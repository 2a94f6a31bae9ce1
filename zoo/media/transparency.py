"""Images that can be looked through, laid on white: by an alpha channel, a palette, or one colour that stands for nothing.

That colour is exact in the bits of the file (PNG's tRNS), and Pillow compares it with what it has made of them: of 2 and 4 bits it
finds the wrong greys, of 16 none, and it looks at none in RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ROWS_AT_ONCE = 64
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies the greys of fewer bits with


# Rows from start to end -> bool[rows, W], where they have the colour that stands for nothing.
Clear = Callable[[int, int], np.ndarray[Any, np.dtype[np.bool_]]]


def clear_pixels(image: Image.Image) -> Clear | None:
    """Where a grey or RGB image has the colour that stands for nothing; None where it names none.

    Call it before the image is loaded: only then are its bits known.
    """
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and len(colour) == 3:
        wide = _layout(image) == "RGB;16B"
        low_HW = _equal_low(image, colour) if wide else None  # before the high bytes are loaded
        high = [value >> 8 for value in colour] if wide or max(colour) > 255 else list(colour)

        def clear_rgb(start: int, end: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
            equal_HW = _equal(_rows(image, start, end), high)
            return equal_HW if low_HW is None else equal_HW & low_HW[start:end]

        return clear_rgb
    if image.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L") and isinstance(colour, int):
        shade = colour * _GREY_STEPS.get(_layout(image), 1)
        bits = image.mode == "1"

        def clear_grey(start: int, end: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
            rows = _rows(image, start, end)
            return np.asarray(np.asarray(rows.convert("L") if bits else rows) == shade)

        return clear_grey
    return None


def on_white(image: Image.Image, clear_HW: np.ndarray[Any, np.dtype[np.bool_]] | None) -> Image.Image:
    """An image of 8 bits a channel, in any mode -> RGB. clear_HW: where it has the colour for nothing, of `clear_pixels`."""
    if clear_HW is not None:
        image = image.copy()  # whose colour for nothing is not the giver's
        image.info.pop("transparency", None)
        image = image.convert("RGB")
        image.paste("white", mask=Image.fromarray(clear_HW))
        return image
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _rows(image: Image.Image, start: int, end: int) -> Image.Image:
    return image.crop((0, start, image.width, end))


def _equal(image: Image.Image, colour: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool[H, W], where an RGB image has the colour."""
    pixels_HW3 = np.asarray(image)
    return np.asarray(np.logical_and.reduce([pixels_HW3[..., number] == value for number, value in enumerate(colour)]))


def _layout(image: Image.Image) -> str:
    """How the bits of an image lie that was opened and not loaded, as Pillow calls it; "" where that is not known."""
    tiles: Any = getattr(image, "tile", ())
    return tiles[0].args if len(tiles) == 1 and isinstance(tiles[0].args, str) else ""


def _equal_low(image: Image.Image, colour: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """bool[H, W], where the lower bytes of RGB in 16 bits are the colour's; Pillow keeps the upper ones. None where they are gone."""
    file = getattr(image, "fp", None)
    if file is None:
        return None
    place = file.tell()
    file.seek(0)
    reader: Any = type(image)  # that of PNG, which has passed the gate
    again = reader(file)
    again.tile = [again.tile[0]._replace(args="RGB;16L")]  # as if the other byte came first
    wanted = [value & 255 for value in colour]
    starts = range(0, image.height, ROWS_AT_ONCE)
    rows = [_equal(_rows(again, start, min(image.height, start + ROWS_AT_ONCE)), wanted) for start in starts]
    file.seek(place)
    return np.concatenate(rows)
