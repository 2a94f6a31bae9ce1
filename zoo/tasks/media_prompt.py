"""Texts and media, in any order -> the prompt that a decoder reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.data.walk import listing
from zoo.decoding.prompt import Prompt
from zoo.errors import MediaError, UsageError
from zoo.media.audio import Sound
from zoo.media.image import open_image
from zoo.media.readers import open_media, suffixes_of
from zoo.models.contracts import Tokenizer
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import MOST_ITEMS, Item, Placed, item
from zoo.models.fusion.media_cache import MediaCache
from zoo.registry.modality import AUDIO, IMAGE, SUFFIXES, VIDEO

Part = str | Path | Image.Image | Sound | Item

MOST_FRAMES = 64  # of a folder that is read as a film


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt as it was built: its ids and media, and the same as text, each item as its marker."""

    prompt: Prompt
    text: str


def modality_of(path: Path) -> str | None:
    """What a file's name says it is; a folder is a film. None: no medium."""
    if path.is_dir():
        return VIDEO
    return next((modality for modality in (IMAGE, AUDIO, VIDEO) if path.suffix.lower() in suffixes_of(modality)), None)


def check_senses(decoder: Any, parts: Sequence[Part], model: str) -> None:
    """Raise UsageError, before anything is read, for more items than a prompt holds and for what the model has no sense for."""
    media = [part for part in parts if not isinstance(part, str)]
    if len(media) > MOST_ITEMS:
        raise UsageError(f"a prompt holds at most {MOST_ITEMS} media items, got {len(media):,}")
    for part in media:
        modality = _modality(part)
        if modality is None:
            raise UsageError(
                f"{part} is no medium by its name: {', '.join(suffix for one in SUFFIXES for suffix in suffixes_of(one))}, or a folder of images"
            )
        if not isinstance(decoder, Fused):
            raise UsageError(
                f"{model} reads text alone, and was given {modality} ({_label(part)}): give a composition, --model FOLDER "
                f"(zoo compose --help says how one is made)"
            )
        try:
            decoder.sense_of(modality)
        except UsageError as error:
            raise UsageError(f"{_label(part)}: {error}") from error


def read_media(part: Part) -> str | Item:
    """A part as a prompt takes it: files are read, pictures are hashed. Raises MediaError for what cannot be read."""
    if isinstance(part, (str, Item)):
        return part
    if isinstance(part, Image.Image):
        return item(IMAGE, open_image(part))
    if isinstance(part, Sound):
        return item(AUDIO, part)
    if part.is_dir():
        return item(VIDEO, *(open_media(frame, IMAGE) for frame in _frames(part)))
    modality = modality_of(part)
    if modality == AUDIO:
        return item(AUDIO, open_media(part, AUDIO))
    if modality != IMAGE:
        raise MediaError(f"{part}: {modality} files are not read yet; a folder of images is read as a film")
    return item(IMAGE, open_media(part, IMAGE))


def written(
    decoder: Any, tokenizer: Tokenizer, parts: Sequence[str | Item], *, media_cache: MediaCache | None = None
) -> Written:
    """Parts in their order as one prompt: a line break before each, but not after an item, which belongs to what follows it.

    An item stands as its sense's marker, or as its latents where the sense is spliced. A text may hold markers itself; the items
    stand there then, in their order, and there must be as many. Raises UsageError where there are not.
    """
    markers = _markers(decoder)
    placed_at_markers = _at_markers(decoder, parts, markers)
    ids: list[int] = []
    placed: list[Placed] = []
    words: list[str] = []
    after_item = True
    pending = ""
    for part, joined in placed_at_markers:
        separator = "" if after_item or joined else "\n"
        if isinstance(part, str):
            pending += separator + part
            words.append(separator + part)
            after_item = False
            continue
        pending += separator
        ids += tokenizer.encode(pending) if pending else []
        pending = ""
        sense: Any = decoder.senses[decoder.sense_of(part.modality)]
        own = tokenizer.encode(sense.marker)
        if sense.spliced:
            own = [own[0]] * decoder.latent_count(part, media_cache)  # any id: the latents stand in place of its embedding
        placed.append(Placed(len(ids), len(own), part))
        ids += own
        words.append(separator + sense.marker)
        after_item = True
    ids += tokenizer.encode(pending) if pending else []
    return Written(Prompt(tuple(ids), tuple(placed)), "".join(words))


def _at_markers(decoder: Any, parts: Sequence[str | Item], markers: dict[str, str]) -> list[tuple[str | Item, bool]]:
    """Parts with the items where the texts' markers are; True for what a marker joins to what stands before it."""
    texts = [part for part in parts if isinstance(part, str)]
    if not markers:
        return [(part, False) for part in parts]
    pattern = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))))
    said = [markers[found] for text in texts for found in pattern.findall(text)]
    if not said:
        return [(part, False) for part in parts]
    kinds = [isinstance(part, Item) for part in parts]
    if sum(one != other for one, other in pairwise(kinds)) > 1:
        raise UsageError(
            f"a text says {pattern.findall(' '.join(texts))[0]}, and the items stand between texts already: leave the marker out, or give "
            f"the items together, before the texts or after them"
        )
    waiting: dict[str, list[Item]] = {name: [] for name in markers.values()}
    for part in parts:
        if isinstance(part, Item):
            waiting[decoder.sense_of(part.modality)].append(part)
    for name, marker in ((name, marker) for marker, name in markers.items()):
        if said.count(name) != len(waiting[name]):
            raise UsageError(
                f"the text has {said.count(name)} {marker} and {len(waiting[name])} of {name} were given: one for each, or leave the "
                f"markers out and the items stand where they are given"
            )
    found: list[tuple[str | Item, bool]] = []
    for text in texts:
        joined, end = False, 0
        for match in pattern.finditer(text):
            if match.start() > end or not joined:
                found.append((text[end : match.start()], joined))
                joined = True
            found.append((waiting[markers[match.group()]].pop(0), True))
            end = match.end()
        if end < len(text) or not joined:
            found.append((text[end:], joined))
    return found


def _markers(decoder: Any) -> dict[str, str]:
    """Marker -> name of its sense."""
    senses = decoder.senses.items() if isinstance(decoder, Fused) else ()
    return {str(sense.marker): name for name, sense in senses}


def _modality(part: Any) -> str | None:
    if isinstance(part, Item):
        return part.modality
    if isinstance(part, Sound):
        return AUDIO
    return modality_of(part) if isinstance(part, Path) else IMAGE


def _label(part: Any) -> str:
    return str(part) if isinstance(part, Path) else f"a part of type {type(part).__name__}"


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Names as people count them: 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _frames(folder: Path) -> list[Path]:
    there = listing(folder)
    if there.problem:
        raise MediaError(f"{folder}: {there.problem}")
    files = (folder / name for name in there.files)
    frames = sorted((path for path in files if path.suffix.lower() in suffixes_of(IMAGE)), key=_in_order)
    if not frames:
        raise MediaError(f"{folder} holds no images, so it is no film: expected files {', '.join(suffixes_of(IMAGE))}")
    if len(frames) > MOST_FRAMES:
        raise MediaError(
            f"{folder} holds {len(frames):,} images, and a film has at most {MOST_FRAMES} frames: keep every n-th"
        )
    return frames
