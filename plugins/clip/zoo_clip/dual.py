"""CLIP models (Radford et al. 2021, arXiv:2103.00020) and their kin: two towers of open_clip and a temperature.

The reference implementation is open_clip 3.3; the tests hold this one to it, on random weights, for every kind of tower.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from zoo.api import IMAGE, TEXT, UsageError, to_pixels
from zoo_clip.architecture import architecture, build_towers, check_image_size
from zoo_clip.image import check_pixels, image_embedding
from zoo_clip.text import check_ids, text_embedding
from zoo_clip.tokenizer import Tokenizer, choose_tokenizer


def dual_encoder(
    *,
    preprocess: Mapping[str, Any],
    arch: str | None = None,
    embedding_width: int | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
    trained_quick_gelu: bool | None = None,
    bias: float | None = None,
    tokenizer: str | None = None,
) -> nn.Module:
    """Build a dual encoder with random weights.

    preprocess: the numbers of `zoo.api.to_pixels`.
    arch: a name of `open_clip.list_models()`. vision, text: open_clip's `vision_cfg` and `text_cfg`, laid over those of
        `arch`. bias: what the trained bias of SigLIP begins at; without one (and without one in `arch`) there is none.
    quick_gelu: the activation; the architecture's own when None. trained_quick_gelu: that of the weights, which decides.
    tokenizer: "clip" for CLIP's byte-pair encoding in place of the architecture's own tokenizer.
    Raises UsageError for numbers that contradict each other, WeightsMissingError for files that only the hub has.
    """
    design = architecture(
        arch=arch,
        embedding_width=embedding_width,
        vision=vision,
        text=text,
        quick_gelu=quick_gelu,
        trained_quick_gelu=trained_quick_gelu,
        bias=bias,
    )
    check_image_size(design, preprocess)
    reader = choose_tokenizer(arch, dict(design.text), tokenizer)
    return ClipEncoder(build_towers(design), preprocess, reader)


class Temperature(nn.Module):
    """The trained scale of the scores, as its logarithm, and SigLIP's bias: single numbers, which stay in float32."""

    bias: nn.Parameter | None

    def __init__(self, log_scale: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.log_scale = log_scale
        self.register_parameter("bias", bias)


class ClipEncoder(nn.Module):
    """Images and texts in one space. Unit vectors are float32 whatever the weights are in."""

    def __init__(self, model: Any, preprocess: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        super().__init__()
        self.image_tower = model.visual
        self.text_tower = model.text
        self.temperature = Temperature(model.logit_scale, model.logit_bias)
        self.preprocess_numbers = dict(preprocess)
        self.tokenizer = tokenizer

    @property
    def logit_scale(self) -> torch.Tensor:
        """float[], what scores are multiplied by."""
        return self.temperature.log_scale.exp()

    @property
    def logit_bias(self) -> torch.Tensor:
        """float[], what SigLIP adds to the scaled scores before its sigmoid; 0 for every other model.

        It is the same for all labels, so that a softmax over labels does not depend on it.
        """
        bias = self.temperature.bias
        return torch.zeros_like(self.temperature.log_scale) if bias is None else bias

    def preprocess(self, modality: str, items: Sequence[Any]) -> torch.Tensor:
        """RGB images -> float[B, 3, S, S]; texts -> token ids int[B, context]."""
        _check_modality(modality)
        return to_pixels(items, self.preprocess_numbers) if modality == IMAGE else self.tokenizer(items)

    def encode(self, modality: str, inputs: torch.Tensor) -> torch.Tensor:
        """Prepared items -> unit vectors float[B, E]."""
        return normalize(self._read(modality, inputs)[1].float(), dim=-1)

    def embed(self, modality: str, items: Sequence[Any]) -> torch.Tensor:
        """Raw items -> unit vectors float[B, E]."""
        return self.encode(modality, self.preprocess(modality, items))

    def features(self, modality: str, inputs: torch.Tensor) -> torch.Tensor:
        """Prepared items -> float[B, D]: what the tower reads before its projection, which CLIP's linear probes are fitted on
        (section 3.2 of its paper); the embedding before it is normalised, where a tower ends in no projection of its own.
        """
        return self._read(modality, inputs)[0].float()

    def _read(self, modality: str, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _check_modality(modality)
        if modality == IMAGE:
            check_pixels(inputs, self.preprocess_numbers["size"])
            return image_embedding(self.image_tower, inputs)
        check_ids(inputs, self.tokenizer.context)
        return text_embedding(self.text_tower, inputs)


def _check_modality(modality: str) -> None:
    if modality not in (IMAGE, TEXT):
        raise UsageError(f"this encoder reads {IMAGE!r} and {TEXT!r}, got {modality!r}")
