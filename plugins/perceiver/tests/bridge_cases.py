"""Small bridges of every kind, features for them, and how far two sets of gradients lie apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from zoo_perceiver import projector, qformer, resampler, video_qformer

from zoo.models.encoded import Encoded

WIDTH, MOST_FRAMES = 12, 3
SMALL: dict[str, Any] = {"input_width": WIDTH, "queries": 5, "layers": 3, "width": 16, "heads": 2, "hidden": 24}
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "resampler": lambda: resampler.resampler(input_width=WIDTH, latents=5, layers=2, heads=2, head_width=8),
    "resampler, timed": lambda: resampler.resampler(
        input_width=WIDTH,
        output_width=10,
        latents=5,
        layers=2,
        heads=2,
        head_width=8,
        activation="squared_relu",
        bias=True,
        most_frames=MOST_FRAMES,
    ),
    "linear": lambda: projector.linear(input_width=WIDTH, output_width=10),
    "mlp": lambda: projector.mlp(input_width=WIDTH),
    "qformer": lambda: qformer.qformer(**SMALL),
    "qformer, projected": lambda: qformer.qformer(**SMALL, output_width=10),
    "video_qformer": lambda: video_qformer.video_qformer(
        **SMALL, output_width=10, video_queries=4, most_frames=MOST_FRAMES
    ),
}


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """No tensor stays as it was initialised: norms of weight 1 and biases of 0 would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return module.eval()


def bridge(name: str) -> Any:
    torch.manual_seed(1)
    return shaken(BUILDERS[name]())


def features(tokens_BTD: torch.Tensor, mask_BT: torch.Tensor | None = None) -> Encoded:
    batch, count, width = tokens_BTD.shape
    mask_BT = torch.ones(batch, count, dtype=torch.bool) if mask_BT is None else mask_BT
    return Encoded(tokens_BTD, mask_BT, tokens_BTD.new_zeros(batch, width))


def gradient_difference(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> float:
    """The greatest difference, over the greatest gradient of its tensor.

    Where that is under a hundredth of the greatest of all (the bias of a key has none, but for rounding), over that.
    """
    assert theirs.keys() == ours.keys()
    floor = max(tensor.abs().max().item() for tensor in theirs.values()) / 100
    return max(
        (ours[key] - tensor).abs().max().item() / max(tensor.abs().max().item(), floor) for key, tensor in theirs.items()
    )


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return found
