"""What a built module of each kind offers. Structural: a plugin satisfies a contract by having the methods, and imports
nothing from here. Shapes follow the legend in `zoo.modality`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from zoo.batch import Encoded


@runtime_checkable
class Encoder(Protocol):
    """Raw items of one modality -> token features.

    `preprocess` takes a list of raw items (RGB `PIL.Image.Image` for images, `str` for text) and returns what `forward`
    takes: a tensor, or a tuple of tensors, whose first axis is the batch. Each row depends on its own item alone, so rows
    may be prepared one by one and concatenated (after padding, for text). It runs on the CPU and is safe in threads.
    """

    def preprocess(self, items: Sequence[Any], /) -> Any: ...

    def forward(self, inputs: Any, /) -> Encoded:
        """Prepared inputs -> tokens float[B, T, D], mask bool[B, T], pooled float[B, D]."""
        ...


@runtime_checkable
class Classifier(Encoder, Protocol):
    """An encoder with a trained classification layer. `labels[i]` names class `i`; `classifier` maps pooled features to
    logits.
    """

    labels: Sequence[str]
    classifier: torch.nn.Module

    def logits(self, inputs: Any, /) -> torch.Tensor:
        """Prepared inputs -> float[B, C]."""
        ...


@runtime_checkable
class DualEncoder(Protocol):
    """Two modalities into one space.

    `embed` and `encode` return unit vectors float[B, E]; the score of a pair is the dot product, and
    `softmax(logit_scale * scores)` over a set of labels is the model's probability. `encode(modality, inputs)` takes what
    `preprocess(modality, items)` returned; `embed` is one after the other. `features` are what a probe is trained on for
    few-shot work, float[B, D]: the embedding itself where a model has nothing richer. `logit_scale` is a number, or a scalar
    tensor where it is trained.
    """

    logit_scale: float | torch.Tensor

    def preprocess(self, modality: str, items: Sequence[Any], /) -> Any: ...

    def encode(self, modality: str, inputs: Any, /) -> torch.Tensor: ...

    def embed(self, modality: str, items: Sequence[Any], /) -> torch.Tensor: ...

    def features(self, modality: str, inputs: Any, /) -> torch.Tensor: ...
