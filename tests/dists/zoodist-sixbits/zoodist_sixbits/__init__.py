"""Weights in six bits: 64 share a step, and four lie in three bytes. Modules are compiled to what they are, steps are the decoder's own."""

import torch
from torch import nn
from torch.nn.functional import linear

from zoo.api import Kernel, LayerFormat

GROUP, MOST = 64, 31


def quantise(weight_NK):
    groups_NGX = weight_NK.reshape(len(weight_NK), -1, GROUP)
    steps_NG = (groups_NGX.abs().amax(-1) / MOST).clamp(min=1e-30)
    levels = ((groups_NGX / steps_NG[..., None]).round() + MOST).to(torch.int32).reshape(len(weight_NK), -1, 4)
    joined = levels[..., 0] | levels[..., 1] << 6 | levels[..., 2] << 12 | levels[..., 3] << 18
    packed = torch.stack((joined & 255, joined >> 8 & 255, joined >> 16), -1).to(torch.uint8).flatten(1)
    return {"packed": packed, "steps": steps_NG}


def dequantise(tensors):
    threes = tensors["packed"].reshape(len(tensors["packed"]), -1, 3).int()
    joined = threes[..., 0] | threes[..., 1] << 8 | threes[..., 2] << 16
    levels = torch.stack([(joined >> 6 * place & 63) - MOST for place in range(4)], -1)
    groups_NGX = levels.reshape(len(levels), -1, GROUP).float() * tensors["steps"][..., None]
    return groups_NGX.flatten(1)


class SixBits(nn.Module):
    number_format = "int6"
    passes_gradients = True

    def __init__(self, tensors, bias_N):
        super().__init__()
        self.out_features, self.in_features = len(tensors["packed"]), tensors["packed"].shape[1] // 3 * 4
        self.register_buffer("packed", tensors["packed"], persistent=False)
        self.register_buffer("steps", tensors["steps"], persistent=False)
        self.register_buffer("bias", bias_N if bias_N is None else bias_N.detach(), persistent=False)

    def forward(self, input_BTK):
        return linear(input_BTK, dequantise(self.tensors()), self.bias)

    def tensors(self):
        return {"packed": self.packed, "steps": self.steps}


class Step:
    """What the modules do, called with a cache and nothing else."""

    def __init__(self, decoder):
        self.decoder = decoder

    def takes(self, cache, **others):
        return cache is not None and all(value is None for value in others.values()) and self.decoder.step is self

    def __call__(self, tokens_BT, cache, *, mask_BT=None, at_BN=None):
        self.decoder.step = None
        try:
            return self.decoder(tokens_BT, cache=cache, mask_BT=mask_BT, at_BN=at_BN)
        finally:
            self.decoder.step = self


def int6():
    layers = LayerFormat(quantise=quantise, layer=SixBits, dequantise=dequantise, fits=lambda rows, columns: columns % GROUP == 0)
    return Kernel(linear=layers, compile=lambda module, request: module, step=Step)
