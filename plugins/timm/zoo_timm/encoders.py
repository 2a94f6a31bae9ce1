"""Any timm architecture as an encoder: patch tokens, a pooled vector and, where it was trained with one, a classifier."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models.coat import CoaT
from timm.models.crossvit import CrossVit
from timm.models.efficientvim import EfficientViM
from timm.models.volo import VOLO
from torch import nn

from zoo.api import Encoded, UsageError, to_pixels

SEVERAL_MAPS = (CrossVit, CoaT, EfficientViM)
CLASS_TOKEN_UNSAID = (CrossVit, CoaT, VOLO)  # a class token stands first, and their num_prefix_tokens does not say so


def image_encoder(*, arch: str, preprocess: Mapping[str, Any] | None = None, num_classes: int | None = None) -> nn.Module:
    """Build `arch` (a name of `timm.list_models()`) with random weights.

    preprocess: size, crop, interpolation, mean, std, as in `zoo.api.to_pixels`; None where those cannot say how timm prepares its images:
        then pixels are for the caller to make.
    num_classes: outputs of the classifier; timm's own number when None, no classifier when 0.
    """
    overrides: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    return ImageEncoder(timm.create_model(arch, pretrained=False, **overrides), preprocess)


class ImageEncoder(nn.Module):
    """A timm model behind the encoder contract. Its state dict is timm's own."""

    def __init__(self, backbone: Any, preprocess: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.preprocess_numbers = None if preprocess is None else dict(preprocess)
        self.labels = list(_labels(backbone.num_classes))

    @property
    def classifier(self) -> nn.Module:
        """The last layer: pooled features float[B, D] -> logits float[B, C]."""
        classifier: nn.Module = self.backbone.get_classifier()
        return classifier

    def preprocess(self, items: Sequence[Image.Image]) -> torch.Tensor:
        """RGB images -> float[B, 3, size, size]. Raises UsageError for an architecture whose images are made in another way."""
        if self.preprocess_numbers is None:
            raise UsageError(
                "timm pads the images of this architecture, or makes them longer than wide, which is not done here: make the pixels with "
                "timm.data.create_transform and give them to forward"
            )
        return to_pixels(items, self.preprocess_numbers)

    def forward(self, pixels: torch.Tensor) -> Encoded:
        """float[B, 3, size, size] -> tokens float[B, T, D] (one per patch or cell), pooled float[B, D].

        Of an architecture with several maps the tokens are those of the last, and the pooled vector is what its head reads of all of them.
        That of one without a head is the mean of its tokens.
        """
        features = self.backbone.forward_features(self._cast(pixels))
        tokens_BTD = self._tokens(features)
        mask_BT = torch.ones(tokens_BTD.shape[:2], dtype=torch.bool, device=tokens_BTD.device)
        return Encoded(tokens_BTD, mask_BT, self._pooled(features, tokens_BTD))

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """float[B, 3, size, size] -> float[B, C]."""
        logits_BC: torch.Tensor = self.backbone(self._cast(pixels))
        return logits_BC

    def _cast(self, pixels: torch.Tensor) -> torch.Tensor:
        """To the number format of the weights."""
        return pixels.to(next(self.parameters()).dtype)

    def _tokens(self, features: Any) -> torch.Tensor:
        """Feature map or token sequence -> patch tokens float[B, T, D], without class and register tokens; of several maps the last."""
        last = features[-1] if isinstance(features, (list, tuple)) and isinstance(self.backbone, SEVERAL_MAPS) else features
        if not isinstance(last, torch.Tensor):
            raise UsageError(f"{type(self.backbone).__name__} has features of type {type(last).__name__}, not known here")
        if isinstance(self.backbone, EfficientViM):  # float[B, D, T]
            return last.transpose(1, 2)
        if isinstance(self.backbone, CLASS_TOKEN_UNSAID):
            return last[:, 1:]
        return self._of_one_map(last)

    def _of_one_map(self, features: torch.Tensor) -> torch.Tensor:
        if features.ndim == 3:
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def _pooled(self, features: Any, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """What the head reads, float[B, D]; the mean of the tokens where there is no head."""
        if "pre_logits" in signature(self.backbone.forward_head).parameters:
            try:
                pooled_BD: torch.Tensor = self.backbone.forward_head(features, pre_logits=True)
            except NotImplementedError:  # how timm's encoders of language models say that they have none
                return tokens_BTD.mean(1)
            return pooled_BD
        return tokens_BTD.mean(1)


@cache
def _labels(num_classes: int) -> tuple[str, ...]:
    """Distinct class names where timm knows them (its ImageNet subsets), else the class numbers.

    A class is called by the first of its WordNet lemmas; by all of them, or with its number, where that is not distinct.
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return tuple(str(number) for number in range(num_classes))
    descriptions = list(ImageNetInfo(subset).label_descriptions())
    firsts = Counter(description.partition(",")[0] for description in descriptions)
    names = [
        description if firsts[description.partition(",")[0]] > 1 else description.partition(",")[0]
        for description in descriptions
    ]
    repeats = Counter(names)
    return tuple(f"{name} (class {number})" if repeats[name] > 1 else name for number, name in enumerate(names))
