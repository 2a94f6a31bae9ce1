"""Published key names -> the names of our modules.

A dual encoder holds `image_tower`, `text_tower` and `temperature`; a single tower is called `tower`. None of these names occurs
in a file of open_clip, so that every such file passes through here. What is left out is named; an unknown key stays, for the
strict load to show.
"""

from collections.abc import Iterator, Mapping

import torch

# Where the text tower's tensors lie in a file of the plain CLIP class, which has no module for that tower.
_FLAT_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final", "cls_emb")
_TEMPERATURE = {"logit_scale": "log_scale", "logit_bias": "bias"}
_LEFT_OUT = {
    "input_resolution",  # numbers that OpenAI's files carry among the tensors
    "context_length",
    "vocab_size",
    "attn_mask",  # not trained: computed when a model is built
    "text.attn_mask",
    "text.transformer.embeddings.position_ids",  # the numbers 0, 1, 2, ...
}
_DECODER = "text_decoder."  # CoCa's captioner: a dual encoder has no use for it


def dual_encoder(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of an open_clip checkpoint -> those of `zoo_clip.dual.ClipEncoder`."""
    renamed = {}
    for tower, key, tensor in _sorted_out(state):
        if tower == "temperature":
            renamed[f"temperature.{_TEMPERATURE[key]}"] = tensor.reshape(())  # some files hold one number in a list
        else:
            renamed[f"{tower}_tower.{key}" if tower else key] = tensor
    return renamed


def image_tower(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of an open_clip checkpoint -> those of `zoo_clip.towers.ImageTower`."""
    return _one_tower(state, "image")


def text_tower(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of an open_clip checkpoint -> those of `zoo_clip.towers.TextTower`."""
    return _one_tower(state, "text")


def _one_tower(state: Mapping[str, torch.Tensor], wanted: str) -> dict[str, torch.Tensor]:
    return {f"tower.{key}" if tower else key: tensor for tower, key, tensor in _sorted_out(state) if tower in (wanted, "")}


def _sorted_out(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(tower, key inside it, tensor) for each tensor that a model needs; the tower is empty for a key nobody knows."""
    for name, tensor in state.items():
        key = name.removeprefix("module.")  # left by training on several devices
        if key in _LEFT_OUT or key.startswith(_DECODER):
            continue
        if key in _TEMPERATURE:
            yield "temperature", key, tensor
        elif key.startswith("visual."):
            yield "image", key.removeprefix("visual."), tensor
        elif key.startswith("text."):
            yield "text", key.removeprefix("text."), tensor
        elif key.partition(".")[0] in _FLAT_TEXT:
            yield "text", key, tensor
        else:
            yield "", key, tensor
