"""What a user points at (paths, globs, folders, images, arrays, addresses) -> a list of items to work on, in order."""

from __future__ import annotations

import glob
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.errors import MediaError, UsageError
from zoo.media.image import MAX_BYTES, MAX_PIXELS, SUFFIXES, open_image

TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Item:
    """One input: how to name it in a result, and where its pixels are."""

    label: str
    source: str | Path | Image.Image | np.ndarray[Any, Any]


def image_items(inputs: Iterable[Any] | Any) -> list[Item]:
    """Expand inputs: a folder gives its images (recursively, sorted), a pattern its matches, anything else itself.

    Raises UsageError for an empty list, a folder without images or a pattern without matches. A file that does not exist
    is kept: it becomes an error among the results, and the others are answered.
    """
    single = isinstance(inputs, (str, Path, Image.Image, np.ndarray))
    items = [item for given in ([inputs] if single else inputs) for item in _expand(given)]
    if not items:
        raise UsageError("no image given: name files, folders or patterns such as 'photos/*.jpg'")
    return items


def load_image(item: Item, *, allow_urls: bool, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB pixels of an item. Raises MediaError; an address is only followed if `allow_urls` says so."""
    source = item.source
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if not allow_urls:
            raise MediaError(f"{source}: addresses are not followed unless you say so (--allow-urls, allow_urls=True)")
        return open_image(_download(source), max_pixels=max_pixels)
    return open_image(source, max_pixels=max_pixels)


def _expand(given: Any) -> list[Item]:
    if isinstance(given, Image.Image):
        return [Item(getattr(given, "filename", "") or "PIL image", given)]
    if isinstance(given, np.ndarray):
        return [Item(f"array {list(given.shape)}", given)]
    if not isinstance(given, (str, Path)):
        raise UsageError(f"an image is a path, a PIL image or an array, got {type(given).__name__}")
    text = str(given)
    if text.startswith(("http://", "https://")):
        return [Item(text, text)]
    path = Path(given).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise UsageError(f"{path}: the folder holds no image ({', '.join(SUFFIXES)})")
        return [Item(str(file), file) for file in files]
    if glob.has_magic(text) and not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        if not matches:
            raise UsageError(f"{text}: no file matches the pattern")
        return [item for match in matches for item in _expand(match)]
    return [Item(text, path)]


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 - http(s) only, and only when the user allows addresses
            data: bytes = response.read(MAX_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise MediaError(f"{url}: could not be fetched ({error})") from error
    if len(data) > MAX_BYTES:
        raise MediaError(f"{url}: more than the limit of {MAX_BYTES:,} bytes")
    return data
