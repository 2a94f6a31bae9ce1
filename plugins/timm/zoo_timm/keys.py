"""Published key names -> the names of our modules."""

import re
from collections.abc import Mapping

import torch

# Inside a block of EfficientNet-PyTorch, and where timm keeps the same tensor. A block without expansion has no
# _expand_conv and no third norm, and its depthwise convolution comes first.
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def from_timm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Timm's own names -> ours."""
    return {f"backbone.{key}": tensor for key, tensor in state.items()}


def from_efficientnet_lite(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the EfficientNet-Lite checkpoints (flat `_blocks.k`) -> ours (timm's `blocks.stage.repeat`).

    A stage ends where the number of output channels changes, which it does between all stages of this family.
    """
    renamed: dict[str, torch.Tensor] = {}
    places = _stage_and_repeat(state)
    for key, tensor in state.items():
        module, _, parameter = key.rpartition(".")
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", module)
        if block is None:
            renamed[f"{_OUTSIDE.get(module, module)}.{parameter}"] = tensor
            continue
        number = int(block[1])
        names = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in state else _PLAIN
        stage, repeat = places[number]
        renamed[f"blocks.{stage}.{repeat}.{names.get(block[2], block[2])}.{parameter}"] = tensor
    return from_timm(renamed)


def _stage_and_repeat(state: Mapping[str, torch.Tensor]) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []
    channels = 0
    while (project := state.get(f"_blocks.{len(places)}._project_conv.weight")) is not None:
        stage, repeat = places[-1] if places else (-1, -1)
        same = project.shape[0] == channels
        places.append((stage, repeat + 1) if same else (stage + 1, 0))
        channels = project.shape[0]
    return places
