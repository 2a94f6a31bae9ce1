"""One tower of a CLIP model as an encoder of its own: every token, and the vector that the dual encoder would normalise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from zoo.api import Encoded, to_pixels
from zoo_clip.architecture import architecture, build_towers, check_image_size
from zoo_clip.image import check_pixels, image_tokens
from zoo_clip.text import check_ids, text_tokens
from zoo_clip.tokenizer import Tokenizer, choose_tokenizer


def image_tower(
    *,
    preprocess: Mapping[str, Any],
    arch: str | None = None,
    embedding_width: int | None = None,
    vision: Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
    trained_quick_gelu: bool | None = None,
) -> nn.Module:
    """Build the image tower of a dual encoder, with random weights; arguments and errors as `zoo_clip.dual.dual_encoder`."""
    design = architecture(
        arch=arch,
        embedding_width=embedding_width,
        vision=vision,
        text=None if arch else {"width": 1},
        quick_gelu=quick_gelu,
        trained_quick_gelu=trained_quick_gelu,
    )
    check_image_size(design, preprocess)
    return ImageTower(build_towers(design, text=False).visual, preprocess)


def text_tower(
    *,
    arch: str | None = None,
    embedding_width: int | None = None,
    text: Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
    trained_quick_gelu: bool | None = None,
    tokenizer: str | None = None,
) -> nn.Module:
    """Build the text tower of a dual encoder, with random weights; arguments and errors as `zoo_clip.dual.dual_encoder`."""
    design = architecture(
        arch=arch,
        embedding_width=embedding_width,
        vision=None if arch else {"width": 1},
        text=text,
        quick_gelu=quick_gelu,
        trained_quick_gelu=trained_quick_gelu,
    )
    reader = choose_tokenizer(arch, dict(design.text), tokenizer)
    return TextTower(build_towers(design, image=False).text, reader)


class ImageTower(nn.Module):
    """Images -> patch tokens and the embedding before it is normalised."""

    def __init__(self, tower: nn.Module, preprocess: Mapping[str, Any]) -> None:
        super().__init__()
        self.tower = tower
        self.preprocess_numbers = dict(preprocess)

    def preprocess(self, items: Sequence[Image.Image]) -> torch.Tensor:
        """RGB images -> float[B, 3, S, S]."""
        return to_pixels(items, self.preprocess_numbers)

    def forward(self, pixels: torch.Tensor) -> Encoded:
        """float[B, 3, S, S] -> tokens float[B, T, D], one for each patch or cell, and pooled float[B, E]."""
        check_pixels(pixels, self.preprocess_numbers["size"])
        tokens_BTD, embedding_BE = image_tokens(self.tower, pixels)
        mask_BT = torch.ones(tokens_BTD.shape[:2], dtype=torch.bool, device=tokens_BTD.device)
        return Encoded(tokens_BTD, mask_BT, embedding_BE)


class TextTower(nn.Module):
    """Texts -> a token for each word piece and the embedding before it is normalised."""

    def __init__(self, tower: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tower = tower
        self.tokenizer = tokenizer

    def preprocess(self, items: Sequence[str]) -> torch.Tensor:
        """Texts -> token ids int[B, context]."""
        return self.tokenizer(items)

    def forward(self, ids_BT: torch.Tensor) -> Encoded:
        """int[B, context] -> tokens float[B, T, D], mask bool[B, T] and pooled float[B, E].

        T is the longest text's length where attention is causal; the mask is True up to the end token, which is real. A
        tower whose attention is not causal was trained to read its padding: T is the context and the mask is all True.
        """
        check_ids(ids_BT, self.tokenizer.context)
        tokens_BTD, mask_BT, embedding_BE = text_tokens(self.tower, ids_BT)
        return Encoded(tokens_BTD, mask_BT, embedding_BE)
