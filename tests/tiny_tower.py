"""An image tower with fused projections, for tests of what stands on them."""

from typing import Any

import open_clip
import torch


def tower(seed: int = 0) -> Any:
    """An image tower of open_clip, tiny, whose attention is `nn.MultiheadAttention`."""
    torch.manual_seed(seed)
    model = open_clip.transformer.VisionTransformer(
        image_size=16, patch_size=8, width=32, layers=2, heads=4, mlp_ratio=2.0, output_dim=24
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
