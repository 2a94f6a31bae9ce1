"""Image towers of open_clip: its own ViT, CLIP's ResNet, and any timm model.

`pooled` is what a tower reads from the picture, before its projection into the shared space where it has one; `embedding` is
what open_clip's `encode_image` returns, not yet normalised.
"""

from typing import Any

import torch

from zoo.api import UsageError
from zoo_clip.blocks import first_query, last_block_row
from zoo_clip.library import ModifiedResNet, TimmModel, VisionTransformer


def image_embedding(tower: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float[B, 3, S, S] -> pooled float[B, D] and embedding float[B, E]."""
    pixels = _to_tower(tower, pixels)
    if isinstance(tower, VisionTransformer):
        return _vit_embedding(tower, pixels)
    if isinstance(tower, TimmModel):
        return _timm_head(tower, tower.trunk.forward_features(pixels))
    embedding_BE = tower(pixels)
    return embedding_BE, embedding_BE


def image_tokens(tower: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float[B, 3, S, S] -> patch tokens float[B, T, D] and embedding float[B, E].

    The tokens have passed the tower's last norm, and the class token is not among them. Where attention pools them (CoCa),
    they are the patches as its pooler reads them; where timm's model norms only what it has pooled, they are not normed.
    """
    pixels = _to_tower(tower, pixels)
    if isinstance(tower, VisionTransformer):
        states_BTD = tower.transformer(_vit_input(tower, pixels))
        norm = tower.ln_post if tower.attn_pool is None else tower.attn_pool.ln_k
        return norm(states_BTD[:, 1:]), _vit_project(tower, _vit_pool(tower, states_BTD))
    if isinstance(tower, TimmModel):
        features = tower.trunk.forward_features(pixels)
        return _timm_tokens(tower.trunk, features), _timm_head(tower, features)[1]
    if isinstance(tower, ModifiedResNet):
        map_BCHW = tower.stem(pixels)
        for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            map_BCHW = stage(map_BCHW)
        return map_BCHW.flatten(2).transpose(1, 2), tower.attnpool(map_BCHW)
    raise UsageError(f"expected an image tower of open_clip (ViT, ResNet or timm), got {type(tower).__name__}")


def check_pixels(pixels: torch.Tensor, size: int) -> None:
    """Raise UsageError unless these are float[B, 3, size, size]."""
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size) or not pixels.is_floating_point():
        raise UsageError(
            f"images must be float[B, 3, {size}, {size}] as preprocess returns them, got {pixels.dtype}{list(pixels.shape)}"
        )


def _to_tower(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """To the device and number format of the weights."""
    first = next(tower.parameters())
    return pixels.to(device=first.device, dtype=first.dtype)


def _vit_input(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    embedded_BTD: torch.Tensor = tower._embeds(pixels)  # noqa: SLF001 - patches, class token, positions and the first norm
    return embedded_BTD


def _vit_embedding(tower: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens_BTD = _vit_input(tower, pixels)
    if tower.attn_pool is None and tower.pool_type == "tok":
        rows_B = torch.zeros(tokens_BTD.shape[0], dtype=torch.long, device=tokens_BTD.device)
        pooled_BD = tower.ln_post(last_block_row(tower.transformer, tokens_BTD, rows_B))
    else:
        pooled_BD = _vit_pool(tower, tower.transformer(tokens_BTD))
    return pooled_BD, _vit_project(tower, pooled_BD)


def _vit_pool(tower: Any, states_BTD: torch.Tensor) -> torch.Tensor:
    """float[B, 1 + T, D] -> float[B, D], as the tower was trained to."""
    if tower.attn_pool is not None:
        if tower.attn_pool_contrastive is None and tower.pool_type == "tok":
            pooled_BD: torch.Tensor = tower.ln_post(first_query(tower.attn_pool, states_BTD))
            return pooled_BD
        raise UsageError(
            "this attention pooling of open_clip is not supported: expected attentional_pool=true, pool_type=tok"
        )
    if tower.pool_type not in ("tok", "avg"):
        raise UsageError(f"an image tower pools with 'tok' or 'avg', got pool_type={tower.pool_type!r}")
    if tower.final_ln_after_pool:
        picked_BD = states_BTD[:, 0] if tower.pool_type == "tok" else states_BTD[:, 1:].mean(dim=1)
        pooled_BD = tower.ln_post(picked_BD)
    else:
        normed_BTD = tower.ln_post(states_BTD)
        pooled_BD = normed_BTD[:, 0] if tower.pool_type == "tok" else normed_BTD[:, 1:].mean(dim=1)
    return pooled_BD


def _vit_project(tower: Any, pooled_BD: torch.Tensor) -> torch.Tensor:
    return pooled_BD if tower.proj is None else pooled_BD @ tower.proj


def _timm_head(tower: Any, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pooled = tower.trunk.forward_head(features)
    embedding_BE = tower.head(pooled)
    return (pooled if pooled.ndim == 2 else embedding_BE), embedding_BE  # a pooling head takes a whole map


def _timm_tokens(trunk: Any, features: torch.Tensor) -> torch.Tensor:
    if features.ndim == 3:
        return features[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)
