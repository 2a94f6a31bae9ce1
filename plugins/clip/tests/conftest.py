"""open_clip's own answers, to hold ours to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_reference import TEXTS
from PIL import Image
from safetensors.torch import save_file
from torch import nn


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[nn.Module], Path]:
    """Write a model's state dict as a safetensors file."""

    def save(model: nn.Module) -> Path:
        path = tmp_path / "open_clip_model.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
        return path

    return save


@pytest.fixture
def pictures(photos: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))[:5]]


@pytest.fixture
def reference() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """open_clip's unit embeddings of images and texts, by its own transform and tokenizer."""

    @torch.no_grad()
    def embed(
        model: Any, images: list[Image.Image], tokenizer: Any = None, **config: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = model.visual.image_size
        size = size[0] if isinstance(size, tuple) else size
        transform = open_clip.image_transform(size, is_train=False, **config)
        ids = (tokenizer or open_clip.tokenizer._tokenizer)(TEXTS, context_length=model.context_length)
        image_BE = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        return image_BE, model.encode_text(ids, normalize=True)

    return embed
