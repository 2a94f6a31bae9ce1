"""Casting a module to a 16-bit format without losing what such a format cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def cast(module: nn.Module, dtype: torch.dtype, keep_float32: Sequence[str] = ()) -> nn.Module:
    """Cast parameters and buffers in place to `dtype`; returns the module.

    keep_float32: names of submodules that stay in float32 with all they hold, because their error spreads furthest (the
        first layers of a CNN, say). Values are cast where they enter a layer of the other format.
    Running statistics of batch normalisation stay in float32 as well: 8 bits of mantissa cannot hold a variance.
    """
    if not keep_float32:
        module = module.to(dtype)
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.float()
        return module
    for name, layer in module.named_modules():
        kept = any(f"{name}.".startswith(f"{prefix}.") for prefix in keep_float32)
        if kept or isinstance(layer, _BatchNorm):
            continue
        for parameter in layer.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for key, buffer in layer.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(layer, key, buffer.to(dtype))
    for layer in module.modules():
        if isinstance(getattr(layer, "weight", None), nn.Parameter) and not isinstance(layer, (_BatchNorm, nn.Embedding)):
            layer.register_forward_pre_hook(_enter)
    return module


def _enter(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The layer's inputs in the format of its weight."""
    weight: Any = layer.weight
    return tuple(
        value.to(weight.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in arguments
    )
