"""Images that were saved as arrays, by `numpy.save`: what preparation pipelines and microscopes' scripts leave behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from zoo.api import MediaError, open_image

MAX_NUMBERS = 64_000_000 * 4  # pixels that the core takes, times four channels


def read(path: Path) -> Image.Image:
    """uint8 or float in [0, 1], `[height, width]` or `[height, width, 3 or 4]` -> RGB image.

    Raises MediaError for another shape or number format, for a file that is cut off, and for pickled objects, which are never loaded.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # the header alone is read yet
    except ValueError as error:
        raise MediaError(f"{path}: not an array of numbers that can be read ({error})") from error
    if array.size > MAX_NUMBERS:
        raise MediaError(f"{path}: an array of {array.size:,} numbers; the limit is {MAX_NUMBERS:,}")
    return open_image(np.asarray(array))
