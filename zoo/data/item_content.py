"""One item read: its pixels or samples, its bytes as they are, and the hash that says what it holds."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from zoo.data.inputs import Item, is_url, printable
from zoo.data.lines import MAX_TEXT_BYTES, read_text
from zoo.errors import MediaError, UsageError
from zoo.media.audio import Sound
from zoo.media.audio_decoding import MAX_BYTES as MAX_AUDIO_BYTES
from zoo.media.file import check_file, expanded
from zoo.media.image import MAX_BYTES, MAX_PIXELS, open_image, read_file
from zoo.media.readers import MediaReader, open_media, read_as
from zoo.registry.modality import AUDIO, IMAGE, TEXT
from zoo.registry.settings import offline

TIMEOUT_S = 30


def load(
    item: Item, *, allow_urls: bool, sample_rate_hz: int | None = None, extra: Sequence[MediaReader] | None = None
) -> Image.Image | Sound:
    """The RGB pixels of an item, or its samples at the rate. extra: as `open_media` takes it. Raises MediaError."""
    if item.modality == AUDIO:
        return open_media(item.source, AUDIO, extra=extra, sample_rate_hz=sample_rate_hz, label=printable(item.label))
    if is_url(item.source):
        return load_image(item, allow_urls=allow_urls)
    return open_media(item.source, IMAGE, extra=extra)


def load_image(item: Item, *, allow_urls: bool, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB pixels of an item. Raises MediaError; an address is only followed if `allow_urls` says so."""
    if is_url(item.source):
        return open_image(read_source(item, allow_urls=allow_urls), max_pixels=max_pixels)  # type: ignore[arg-type]  # an address gives bytes
    return cast("Image.Image", open_media(item.source, IMAGE, max_pixels=max_pixels))


def read_source(item: Item, *, allow_urls: bool) -> bytes | Image.Image | Sound | Path:
    """The bytes of an item that is a file, an address or bytes, or the RGB pixels of one that is an image. Raises MediaError.

    A sound is passed on as it is, and its file as a path: it may be larger than memory.
    """
    if isinstance(item.source, (bytes, Sound)):
        return item.source
    if item.modality == TEXT:
        return text_of(Path(str(item.source))).encode()
    if item.modality == AUDIO and isinstance(item.source, (str, Path)):
        path = expanded(item.source)
        check_file(path, "an audio file", max_bytes=MAX_AUDIO_BYTES)
        return path
    if isinstance(item.source, (Image.Image, np.ndarray)):
        return open_image(item.source)
    if is_url(item.source):
        if not allow_urls:
            raise MediaError(f"{item.source}: addresses are not followed unless you say so (--allow-urls, allow_urls=True)")
        return _download(str(item.source))
    return read_file(Path(item.source))


def text_of(path: Path) -> str:
    """What a text file holds. Raises MediaError where that is no text, or nothing."""
    check_file(path, "a text file", max_bytes=MAX_TEXT_BYTES)
    try:
        text = read_text(path)
    except UsageError as error:  # it costs itself alone
        raise MediaError(str(error)) from None
    if not text.strip():
        raise MediaError(f"{path}: the file holds no text")
    return text


def sha256_of_source(data: bytes | Image.Image | Sound | Path) -> str:
    """Hex sha256 of a file's bytes, or of the size and pixels, or rate and samples, of what came from no file."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(data, Sound):
        return hashlib.sha256(f"{data.sample_rate_hz} Hz\n".encode() + data.samples.tobytes()).hexdigest()
    return hashlib.sha256(f"{data.width}x{data.height} RGB\n".encode() + data.tobytes()).hexdigest()


def sha256_of_item(item: Item, content: bytes | Image.Image | Sound | Path) -> str:
    """As `sha256_of_source`, of what an item means: for a file that a plugin reads, which reader it is counts as its bytes do."""
    sha256 = sha256_of_source(content)
    added = read_as(item.source, item.modality) if isinstance(item.source, Path) else ""
    return hashlib.sha256(f"{sha256} {added}".encode()).hexdigest() if added else sha256


def _opener() -> urllib.request.OpenerDirector:
    """What follows addresses of http and https, and no redirection to another scheme: urllib's own would go on by ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _download(url: str) -> bytes:
    if offline():
        raise MediaError(f"{url}: the network is switched off (ZOO_OFFLINE or HF_HUB_OFFLINE)")
    try:
        with _opener().open(url, timeout=TIMEOUT_S) as response:
            data: bytes = response.read(MAX_BYTES + 1)
            expected = int(response.headers.get("Content-Length") or len(data))
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise MediaError(f"{url}: could not be fetched ({error or type(error).__name__})") from error
    if len(data) < min(expected, MAX_BYTES):
        raise MediaError(f"{url}: broke off after {len(data):,} of {expected:,} bytes")
    if len(data) > MAX_BYTES:
        raise MediaError(f"{url}: more than the limit of {MAX_BYTES:,} bytes")
    return data
