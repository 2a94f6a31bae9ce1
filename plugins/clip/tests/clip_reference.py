"""Random weights that hide nothing, and texts that reach every corner of a tokenizer."""

import torch
from torch import nn

TEXTS = ["a cat", "a photo of the large dog.", "", "Ünïcode & 42 rockets!", "many " * 100, "a diagram"]


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """No tensor stays as it was initialised: norms of weight 1, biases of 0 and dead residual branches would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1, generator=generator)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
        if hasattr(model, "logit_scale"):
            model.logit_scale.fill_(4.6)
    return model.eval()
