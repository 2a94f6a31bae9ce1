"""Media items as a fused model reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zoo.errors import UsageError
from zoo.media.audio import Sound
from zoo.models.encoded import Encoded

MOST_ITEMS = 256  # media items of one prompt


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One image, film, sound or series.

    frames: what its encoder prepares, one raw item for each frame (`zoo.api.Encoder`); an image or a sound has one.
    key: of the content; equal keys are taken for equal items.
    features: what the encoder made of it, B = 1 and T the tokens of all frames, one after another; None: it is still to be asked.
    """

    modality: str
    frames: tuple[Any, ...]
    key: str
    features: Encoded | None = None

    def __post_init__(self) -> None:
        if not self.frames and self.features is None:
            raise UsageError(f"an item of {self.modality} needs at least one frame, got none")
        if self.features is not None and len(self.features.tokens_BTD) != 1:
            raise UsageError(f"the features of one item have B = 1, got {len(self.features.tokens_BTD)}")


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An item in a prompt: it stands at the token `position` and takes `tokens` of them, its marker's or its own latents'.

    A position counts the real tokens of the call; one below 0 stands before them, in a cache, and may reach into them.
    """

    position: int
    tokens: int
    item: Item

    def moved(self, by: int) -> Placed:
        """The same item, so many tokens later."""
        return Placed(self.position + by, self.tokens, self.item)


def key_of(modality: str, frames: Sequence[Any]) -> str:
    """A hash of the content of raw items: pictures by their pixels, sounds by their samples, arrays by their numbers, texts and bytes
    by themselves.

    Raises UsageError for anything else.
    """
    digest = hashlib.sha256(modality.encode())
    for frame in frames:
        if isinstance(frame, str):
            kind, shape, content = "text", "", frame.encode()
        elif isinstance(frame, bytes):
            kind, shape, content = "bytes", "", frame
        elif isinstance(frame, Sound):
            kind, shape, content = "sound", str(frame.sample_rate_hz), frame.samples.tobytes()
        else:
            if getattr(frame, "mode", None) == "P":  # its pixels are indices into colours that an array does not have
                frame = frame.convert("RGBA")  # noqa: PLW2901 - the same picture
            if isinstance(frame, torch.Tensor):
                frame = (frame.detach().float() if frame.is_floating_point() else frame).cpu().numpy()  # noqa: PLW2901 - as above
            try:
                array = np.ascontiguousarray(frame)
            except Exception as error:
                raise UsageError(
                    f"an item of {modality} must be a picture, a sound or numbers, got {type(frame).__name__}"
                ) from error
            if array.dtype == object:
                raise UsageError(f"an item of {modality} must be a picture, a sound or numbers, got {type(frame).__name__}")
            kind, shape, content = f"{getattr(frame, 'mode', '')}{array.dtype.str}", str(array.shape), array.tobytes()
        digest.update(f"\0{kind}\0{shape}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def item(modality: str, *frames: Any, features: Encoded | None = None, key: str | None = None) -> Item:
    """An item of raw frames, or of features where there are none, with the key of its content."""
    if key is None:
        content = frames if frames or features is None else (features.tokens_BTD, features.mask_BT)
        key = key_of(modality, content)
    return Item(modality, frames, key, features)
