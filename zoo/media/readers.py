"""The table of media readers: which of them opens a file, and the limits that hold for what it gives.

The core tells formats apart by content, and reads every file whose suffix is its own or nobody's. A plugin's reader is asked for
its own suffixes alone, and never for one of the core's: one that is broken would stop everybody's images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image

from zoo.errors import MediaError
from zoo.media import audio, audio_decoding, image
from zoo.media.audio import Sound
from zoo.media.audio_reader import AudioReader
from zoo.media.file import check_file, expanded
from zoo.registry.activation import resolve
from zoo.registry.lookup import USABLE, Registry, default_registry
from zoo.registry.modality import AUDIO, IMAGE, SUFFIXES
from zoo.registry.offers import Reader
from zoo.registry.plugin import Plugin, code_sha256, describe


@dataclass(frozen=True, slots=True)
class MediaReader:
    """Files of one format -> a medium in memory.

    name: what messages call such a file, behind "a".
    modality: image or audio.
    suffixes: of its files, in lower case and with the dot.
    open: it is given a path: a regular file with something in it, of no more bytes than the core reads of the modality. It
        returns an RGB `PIL.Image.Image` for an image and a `zoo.Sound` for a sound, as it was recorded; the limits
        on pixels, seconds and samples are held against that once more. It trusts no number in the file, looks at sizes before it
        makes room for them, and raises MediaError, with the path, for what cannot be read.
    """

    name: str
    modality: str
    suffixes: tuple[str, ...]
    open: Callable[..., Any]


# Theirs is the last word on every medium: they take what another reader returned as well as a path, and options beside it.
READERS = (
    MediaReader("image", IMAGE, SUFFIXES[IMAGE], image.open_image),
    MediaReader("sound", AUDIO, SUFFIXES[AUDIO], audio.open_audio),
)
_OWN = {reader.modality: reader for reader in READERS}
_MAX_BYTES = {IMAGE: image.MAX_BYTES, AUDIO: audio_decoding.MAX_BYTES}
_RESULTS = {IMAGE: Image.Image, AUDIO: Sound}


def installed_readers(registry: Registry | None = None) -> tuple[MediaReader, ...]:
    """The readers of the installed plugins, as rows of their manifests; none is imported before it reads."""
    registry = registry or default_registry()
    return tuple(
        MediaReader(
            f"{'/'.join(row.suffixes)} file of {describe(plugin)}",
            row.modality,
            row.suffixes,
            partial(_call, registry, plugin, row),
        )
        for plugin in registry.plugins
        if plugin.state in USABLE
        for row in plugin.offers.readers
    )


def read_as(path: str | Path, modality: str) -> str:
    """What a plugin's reader adds to the meaning of a file's bytes: which it is, and its code. Empty for what the core reads.

    Where results are kept under the content of a file, this belongs to the key: another reader, or a mended one, makes other pixels.
    """
    suffix = Path(path).suffix.lower()
    if any(suffix in suffixes for suffixes in SUFFIXES.values()):
        return ""
    claims = [
        plugin
        for plugin in default_registry().plugins
        if plugin.state in USABLE
        and any(suffix in row.suffixes and row.modality == modality for row in plugin.offers.readers)
    ]
    return " ".join(f"{suffix} {plugin.distribution} {plugin.version} {_code(plugin)}" for plugin in claims)


_codes: dict[tuple[str, str, Path | None], str | None] = {}  # what a process has imported does not change under it


def _code(plugin: Plugin) -> str | None:
    key = (plugin.distribution, plugin.version, plugin.location)
    if key not in _codes:
        _codes[key] = code_sha256(plugin)
    return _codes[key]


def suffixes_of(modality: str) -> tuple[str, ...]:
    """Of the files of a modality: those that the core reads, then those of the installed plugins."""
    rows = (row for plugin in default_registry().plugins if plugin.state in USABLE for row in plugin.offers.readers)
    brought = (suffix for row in rows if row.modality == modality for suffix in row.suffixes)
    return tuple(dict.fromkeys((*SUFFIXES[modality], *brought)))


def _call(registry: Registry, plugin: Plugin, row: Reader, path: Path) -> Any:
    return resolve(plugin, row.read, registry.manager)(path)


def open_media(
    source: Any,
    modality: str,
    *,
    extra: Sequence[MediaReader] | None = None,
    path: Path | None = None,
    **options: Any,
) -> Image.Image | Sound:
    """What is an image -> RGB image; what is a sound -> Sound.

    source: what `open_image` or `open_audio` takes. A path goes to the reader of its suffix, anything else to the core's own.
    extra: readers of plugins, which are never asked for a suffix of the core; those that are installed when None.
    path: the file that bytes were read from, which a plugin's reader opens by itself.
    options: those of `open_image` or `open_audio`; the limits among them hold whoever reads the file.
    Raises MediaError: what was given, why it cannot be read, what was expected; for a suffix that two of `extra` claim, too.
    """
    own = _OWN[modality]
    file = source if isinstance(source, (str, Path)) else path
    reader = own if file is None else _reader_of(file, modality, extra)
    if reader is own:
        opened: Image.Image | Sound = own.open(source, **options)
        return opened
    label = options.pop("label", None) or str(file)
    checked: Image.Image | Sound = own.open(_read(reader, expanded(str(file)), label), label=label, **options)
    return checked


def open_image(source: Any, *, max_pixels: int = image.MAX_PIXELS, label: str | None = None) -> Image.Image:
    """As `zoo.media.image.open_image`, for files of plugins' readers, too."""
    return cast("Image.Image", open_media(source, IMAGE, max_pixels=max_pixels, label=label))


def open_audio(source: Any, *, sample_rate_hz: int | None = None, label: str | None = None, **limits: Any) -> Sound:
    """As `zoo.media.audio.open_audio`, for files of plugins' readers, too."""
    return cast("Sound", open_media(source, AUDIO, sample_rate_hz=sample_rate_hz, label=label, **limits))


@contextmanager
def open_reader(
    source: Any, *, sample_rate_hz: int | None = None, label: str | None = None, **limits: Any
) -> Iterator[AudioReader]:
    """As `zoo.media.audio.open_reader`, for files of plugins' readers, too: those are read whole."""
    if isinstance(source, (str, Path)) and _reader_of(source, AUDIO, None) is not _OWN[AUDIO]:
        source = open_media(source, AUDIO, label=label, **limits)
    with audio.open_reader(source, sample_rate_hz=sample_rate_hz, label=label, **limits) as reader:
        yield reader


def _reader_of(path: str | Path, modality: str, extra: Sequence[MediaReader] | None) -> MediaReader:
    suffix = Path(path).suffix.lower()
    if any(suffix in suffixes for suffixes in SUFFIXES.values()):
        return _OWN[modality]
    extra = installed_readers() if extra is None else extra
    claims = [reader for reader in extra if reader.modality == modality and suffix in reader.suffixes]
    if not claims:
        return _OWN[modality]
    if len(claims) > 1:
        names = " and as ".join(f"a {reader.name}" for reader in claims)
        raise MediaError(f"{path}: {suffix} is claimed as {names}: leave out the plugin that is wrong (zoo disable)")
    return claims[0]


def _read(reader: MediaReader, path: Path, label: str) -> Any:
    """What a plugin's reader makes of a file, if it is a medium of its modality at all."""
    check_file(path, f"a {reader.name}", max_bytes=_MAX_BYTES[reader.modality])
    try:
        opened = reader.open(path)
    except MediaError:
        raise
    except Exception as error:  # decoders raise whatever hostile bytes lead them to
        raise MediaError(f"{label}: cannot be read as a {reader.name} ({error or type(error).__name__})") from error
    expected = _RESULTS[reader.modality]
    if not isinstance(opened, expected):
        what = f"{expected.__module__}.{expected.__name__}"
        raise MediaError(f"{label}: read as a {reader.name} it must be a {what}, got {type(opened).__name__}")
    return opened
