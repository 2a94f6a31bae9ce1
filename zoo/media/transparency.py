"""Images that can be looked through, laid on white: by an alpha channel, a palette, or one colour that stands for nothing.

That colour is exact in the bits of the file (PNG's tRNS), and Pillow compares it with what it has made of them: of 2 and 4 bits it
finds the wrong greys, of 16 none, and it looks at none in RGB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies the greys of fewer bits with


def clear_pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """bool[H, W], where a grey or RGB image has the colour that stands for nothing; None where it names none.

    Call it before the image is loaded: only then are its bits known.
    """
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and len(colour) == 3:
        wide = _layout(image) == "RGB;16B"
        low = _low_bytes(image) if wide else None  # before the high ones are loaded
        high = np.array(colour) >> 8 if wide or max(colour) > 255 else np.array(colour)
        clear_HW = (np.asarray(image) == high).all(2)
        return np.asarray(clear_HW if low is None else clear_HW & (low == np.array(colour) & 255).all(2))
    if image.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L") and isinstance(colour, int):
        colour *= _GREY_STEPS.get(_layout(image), 1)
        return np.asarray(np.asarray(image.convert("L") if image.mode == "1" else image) == colour)
    return None


def on_white(image: Image.Image, clear_HW: np.ndarray[Any, np.dtype[np.bool_]] | None) -> Image.Image:
    """An image of 8 bits a channel, in any mode -> RGB. clear_HW: what `clear_pixels` found."""
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


def _layout(image: Image.Image) -> str:
    """How the bits of an image lie that was opened and not loaded, as Pillow calls it; "" where that is not known."""
    tiles: Any = getattr(image, "tile", ())
    return tiles[0].args if len(tiles) == 1 and isinstance(tiles[0].args, str) else ""


def _low_bytes(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """uint8[H, W, 3], the lower half of RGB in 16 bits, of which Pillow keeps the upper; None where it is gone."""
    file = getattr(image, "fp", None)
    if file is None:
        return None
    place = file.tell()
    file.seek(0)
    reader: Any = type(image)  # that of PNG, which has passed the gate
    again = reader(file)
    again.tile = [again.tile[0]._replace(args="RGB;16L")]  # as if the other byte came first
    low = np.asarray(again)
    file.seek(place)
    return low
