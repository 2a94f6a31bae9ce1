"""Photos and words in one space, without image-text training: a frozen ImageNet classifier joined to a sentence encoder.

Two ways to compare a photo with a label nobody trained on, each a dot product of unit vectors:

- ConSE (Norouzi et al. 2014, arXiv:1312.5650): the photo is the average of the embeddings of its most probable classes'
  names, weighted by their probability; the label is its own embedding. Both are centred on the mean name.
- A predicted classifier row: kernel ridge regression from the names' embeddings to the rows of the classifier's last layer,
  applied to the label's embedding. The photo is its pooled features.

The second is the better one for a label near the known classes and knows nothing about one far from them. How near a label is
can be read off the regression itself: `r`, the share of the label's prior variance that the known names explain (the leverage
of a Gaussian process with the same kernel; Rasmussen and Williams 2006, eq. 2.26). A label's vector is
`[sqrt(r) * row, sqrt(1 - r) * embedding]`, which has unit length, so each label moves from one rule to the other by itself.

This is not CLIP: it has never seen a photo with a sentence, and a label far from the 1,000 ImageNet classes is a guess.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from zoo.api import IMAGE, TEXT, Built, UsageError, derived

BATCH = 64  # sentences of mixed length: larger batches are slower on a CPU


def photo_text_encoder(
    *,
    image: Built,
    text: Built,
    kernel_width: float,
    ridge: float,
    classes_averaged: int,
    feature_weight: float,
    logit_scale: float,
) -> nn.Module:
    """Join an image encoder that has an ImageNet classifier to a text encoder.

    kernel_width: g in the kernel `exp((cosine - 1) / g)`. ridge: added to its diagonal. classes_averaged: how many classes
    ConSE averages. feature_weight: share of the image vector that is features, in [0, 1]; the rest is ConSE's.
    logit_scale: what turns scores into honest probabilities.
    """
    names = class_names()
    classifier = getattr(image.module, "classifier", None)
    if not isinstance(classifier, nn.Linear) or classifier.out_features != len(names):
        raise UsageError(
            f"{image.found.name} must end in a linear layer with {len(names)} ImageNet classes to be read as class rows"
        )

    def embed_names() -> dict[str, torch.Tensor]:
        return {"names": _sentence_embeddings(text.module, names)}

    inputs = {"text": text.identity, "names": names}
    names_KD = derived("ImageNet names", inputs, embed_names, keep=not text.random)["names"]
    return PhotoTextEncoder(
        image.module,
        text.module,
        names_KD,
        kernel_width=kernel_width,
        ridge=ridge,
        classes_averaged=classes_averaged,
        feature_weight=feature_weight,
        logit_scale=logit_scale,
    )


def class_names() -> list[str]:
    """One distinct English name for each of the 1,000 ImageNet classes, in class order."""
    return files("zoo_conse").joinpath("imagenet_names.txt").read_text(encoding="utf-8").splitlines()


class PhotoTextEncoder(nn.Module):
    """Dual encoder of images and text; E = 1 + width of the image features + width of the text embeddings."""

    names_KD: torch.Tensor
    mean_name_D: torch.Tensor
    inverse_KK: torch.Tensor

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        names_KD: torch.Tensor,
        *,
        kernel_width: float,
        ridge: float,
        classes_averaged: int,
        feature_weight: float,
        logit_scale: float,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.kernel_width = kernel_width
        self.classes_averaged = classes_averaged
        self.feature_weight = feature_weight
        self.logit_scale = logit_scale
        self.register_buffer("names_KD", names_KD)
        self.register_buffer("mean_name_D", names_KD.mean(0))
        kernel_KK = self._kernel(names_KD) + ridge * torch.eye(len(names_KD), device=names_KD.device)
        self.register_buffer("inverse_KK", torch.linalg.inv(kernel_KK.double()).float())

    def preprocess(self, modality: str, items: Sequence[Any]) -> Any:
        """RGB images -> float[B, 3, size, size]; texts -> what the text encoder takes."""
        encoder: Any = self._part(modality)
        return encoder.preprocess(items)

    def encode(self, modality: str, inputs: Any) -> torch.Tensor:
        """Prepared items -> unit vectors float[B, E]."""
        if modality == IMAGE:
            return self._encode_features(self.features(IMAGE, inputs))
        encoder: Any = self._part(modality)
        return self._encode_sentences(normalize(encoder(inputs).pooled_BD.float(), dim=-1))

    def embed(self, modality: str, items: Sequence[Any]) -> torch.Tensor:
        """Raw items -> unit vectors float[B, E]."""
        return self.encode(modality, self.preprocess(modality, items))

    def features(self, modality: str, inputs: Any) -> torch.Tensor:
        """Prepared items -> the frozen part's pooled vectors float[B, D], what probes are trained on."""
        encoder: Any = self._part(modality)
        pooled_BD: torch.Tensor = encoder(inputs).pooled_BD
        return pooled_BD.float()

    def _encode_features(self, features_BF: torch.Tensor) -> torch.Tensor:
        weight_KF, bias_K = self._classifier()
        probabilities_BK = (features_BF @ weight_KF.T + bias_K).softmax(-1)
        top_BN, index_BN = probabilities_BK.topk(self.classes_averaged, dim=-1)
        centred_KD = normalize(self.names_KD - self.mean_name_D, dim=-1)
        conse_BD = normalize((top_BN[..., None] * centred_KD[index_BN]).sum(1), dim=-1)
        ones_B1 = features_BF.new_ones(features_BF.shape[0], 1)
        features_BF1 = normalize(torch.cat([features_BF, ones_B1], dim=-1), dim=-1)
        rest = (1 - self.feature_weight**2) ** 0.5
        return torch.cat([self.feature_weight * features_BF1, rest * conse_BD], dim=-1)

    def _encode_sentences(self, sentences_BD: torch.Tensor) -> torch.Tensor:
        weight_KF, bias_K = self._classifier()
        rows_KF1 = torch.cat([weight_KF, bias_K[:, None]], dim=-1)
        rows_KF1 = rows_KF1 - rows_KF1.mean(0)  # a shift common to all classes changes no decision
        kernel_BK = self._kernel(sentences_BD)
        smoothed_BK = kernel_BK @ self.inverse_KK
        explained_B1 = (smoothed_BK * kernel_BK).sum(-1, keepdim=True).clamp(0, 1)
        row_BF1 = normalize(smoothed_BK @ rows_KF1, dim=-1)
        sentence_BD = normalize(sentences_BD - self.mean_name_D, dim=-1)
        return torch.cat([explained_B1.sqrt() * row_BF1, (1 - explained_B1).sqrt() * sentence_BD], dim=-1)

    def _kernel(self, sentences_BD: torch.Tensor) -> torch.Tensor:
        """float[B, D] -> float[B, K]: closeness of unit vectors to the class names."""
        return ((sentences_BD @ self.names_KD.T - 1) / self.kernel_width).exp()

    def _classifier(self) -> tuple[torch.Tensor, torch.Tensor]:
        classifier: Any = self.image.classifier
        return classifier.weight.float(), classifier.bias.float()

    def _part(self, modality: str) -> nn.Module:
        if modality not in (IMAGE, TEXT):
            raise UsageError(f"this model joins {IMAGE} and {TEXT}, got {modality!r}")
        return self.image if modality == IMAGE else self.text


def _sentence_embeddings(text: Any, sentences: Sequence[str]) -> torch.Tensor:
    """Unit vectors float[K, D], in batches."""
    with torch.inference_mode():
        pooled = [
            text(text.preprocess(sentences[start : start + BATCH])).pooled_BD for start in range(0, len(sentences), BATCH)
        ]
    return normalize(torch.cat(pooled).float(), dim=-1)
