"""Netpbm images (.pgm, .ppm), in which research code and microscopes leave theirs: grey or RGB, 8 or 16 bits, without compression."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.api import MediaError, open_image

CHANNELS = {b"P5": 1, b"P6": 3}
HEADER = re.compile(
    rb"(P[56])((?:\s+|\s*#[^\n]*\n)+)(\d{1,9})((?:\s+|\s*#[^\n]*\n)+)(\d{1,9})((?:\s+|\s*#[^\n]*\n)+)(\d{1,9})\s"
)
LONGEST_HEADER = 4096
MAX_PIXELS = 64_000_000


def read(path: Path) -> Image.Image:
    """Binary P5 (grey) or P6 (RGB), the first image of a file -> RGB image; 16 bits are scaled to 8.

    Raises MediaError for another kind, a header that makes no sense, too many pixels, and a file that is cut off.
    """
    with path.open("rb") as file:
        head = file.read(LONGEST_HEADER)
        found = HEADER.match(head)
        if found is None:
            raise MediaError(f"{path}: not a binary Netpbm image, P5 or P6 (it begins with {head[:4]!r})")
        width, height, most = (int(found[number]) for number in (3, 5, 7))
        channels = CHANNELS[found[1]]
        if not (width and height and 1 <= most <= 65_535):
            raise MediaError(f"{path}: a damaged Netpbm image of {width} x {height} pixels up to {most}")
        if width * height > MAX_PIXELS:
            raise MediaError(f"{path}: {width * height:,} pixels; the limit is {MAX_PIXELS:,}")
        size_bytes = width * height * channels * (1 if most < 256 else 2)
        file.seek(found.end())
        content = file.read(size_bytes)
    if len(content) < size_bytes:
        raise MediaError(f"{path}: a damaged Netpbm image: {len(content):,} of {size_bytes:,} bytes")
    numbers = np.frombuffer(content, np.uint8 if most < 256 else ">u2").astype(np.float32) / most
    shape = (height, width) if channels == 1 else (height, width, channels)
    return open_image(numbers.clip(0, 1).reshape(shape))
