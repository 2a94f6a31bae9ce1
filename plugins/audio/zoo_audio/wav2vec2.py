"""wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477) and HuBERT (Hsu et al. 2021, arXiv:2106.07447): samples -> a token for 20 ms.

The model is torchaudio's `wav2vec2_model`; here are the zoo's contract, batches that change nothing, and Hugging Face's names. The
first norm of the "base" models runs over time, so that padding would leak into every sample: the convolutions hear each sound by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from zoo.api import Encoded, Sound, to_waveforms
from zoo_audio.frontend import masked_mean

CONVOLUTIONS = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)  # (channels, kernel, stride) of the published models
EPSILON = 1e-7  # as Hugging Face's Wav2Vec2FeatureExtractor divides
_NORM_AND_DIRECTION = (  # names that torch has given them
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
_DROPPED = re.compile(r"(masked_spec_embed|lm_head\..*|quantizer\..*|project_(q|hid)\..*|label_embs_concat|final_proj\..*)")


def wav2vec2(
    *,
    width: int,
    heads: int,
    layers: int,
    hidden: int,
    convolutions: Sequence[Sequence[int]] = CONVOLUTIONS,
    convolution_bias: bool = False,
    norm: str = "group",
    norm_first: bool = False,
    position_kernel: int = 128,
    position_groups: int = 16,
    preprocess: Mapping[str, Any],
) -> nn.Module:
    """Build a wav2vec 2.0 or HuBERT encoder with random weights; the two differ in how they were trained alone.

    width, heads, layers, hidden: of the transformer, and of its feed-forward. convolutions: (channels, kernel, stride) of each.
    norm: "group" (after the first convolution, over time: the base models) or "layer" (after each: the large ones).
    norm_first: whether blocks norm before they attend. position_kernel, position_groups: of the convolution that tells places.
    preprocess: sample_rate_hz, max_s and normalise, whether each sound is brought to mean 0 and variance 1.
    """
    from torchaudio.models import wav2vec2_model

    model: Any = wav2vec2_model(
        extractor_mode=f"{norm}_norm",
        extractor_conv_layer_config=[(channels, kernel, stride) for channels, kernel, stride in convolutions],
        extractor_conv_bias=convolution_bias,
        encoder_embed_dim=width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=position_kernel,
        encoder_pos_conv_groups=position_groups,
        encoder_num_layers=layers,
        encoder_num_heads=heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=hidden,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=norm_first,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    )
    places = model.encoder.transformer.pos_conv_embed
    places.conv = _without_weight_norm(places.conv)
    return WaveEncoder(model.feature_extractor, model.encoder, convolutions, preprocess)


class WaveEncoder(nn.Module):
    """torchaudio's two halves, and what a batch of sounds of different lengths needs."""

    def __init__(
        self,
        feature_extractor: nn.Module,
        encoder: nn.Module,
        convolutions: Sequence[Sequence[int]],
        preprocess: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.feature_extractor = feature_extractor
        self.encoder = encoder
        self.numbers = dict(preprocess)
        self.shortest = 1  # samples that give one token
        for _, kernel, stride in reversed(convolutions):
            self.shortest = (self.shortest - 1) * stride + kernel

    def preprocess(self, items: Sequence[Sound]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sounds -> samples float[B, N] and mask bool[B, N]. Raises UsageError for what is no Sound, MediaError for a long one."""
        samples_BN, mask_BN = to_waveforms(items, self.numbers)
        if self.numbers.get("normalise"):
            counts_B1 = mask_BN.sum(1, keepdim=True)
            mean_B1 = samples_BN.sum(1, keepdim=True) / counts_B1
            centred_BN = (samples_BN - mean_B1) * mask_BN
            samples_BN = centred_BN / (centred_BN.square().sum(1, keepdim=True) / counts_B1 + EPSILON).sqrt()
        return samples_BN, mask_BN

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(samples float[B, N], mask bool[B, N]) -> tokens float[B, T, D], mask, and the mean of the real tokens."""
        weight = next(self.parameters())
        samples_BN, counts = inputs[0].to(weight), inputs[1].sum(1).tolist()
        heard = [self._hear(samples[:count]) for samples, count in zip(samples_BN, counts, strict=True)]
        lengths_B = torch.tensor([len(features) for features in heard], device=weight.device)
        tokens_BTD: torch.Tensor = self.encoder(pad_sequence(heard, batch_first=True), lengths_B)
        mask_BT = torch.arange(tokens_BTD.shape[1], device=weight.device) < lengths_B[:, None]
        return Encoded(tokens_BTD, mask_BT, masked_mean(tokens_BTD, mask_BT))

    def _hear(self, samples_N: torch.Tensor) -> torch.Tensor:
        """One sound float[N] -> features float[T, C]; one that is too short for a token is filled with silence."""
        filled = nn.functional.pad(samples_N, (0, max(0, self.shortest - len(samples_N))))
        features: torch.Tensor = self.feature_extractor(filled[None], None)[0][0]
        return features


def _without_weight_norm(convolution: Any) -> nn.Conv1d:
    """The same convolution with its weight itself in place of norm and direction, which no other process could be sent."""
    plain = nn.Conv1d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        padding=convolution.padding[0],
        groups=convolution.groups,
    )
    with torch.no_grad():
        plain.weight.copy_(convolution.weight)
        plain.bias.copy_(convolution.bias)  # type: ignore[union-attr]  # it has one
    return plain


def from_hugging_face(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of transformers' Wav2Vec2Model and HubertModel, with any head, -> torchaudio's. Heads and training aids are left out."""
    renamed = {}
    for name, tensor in state.items():
        key = re.sub(r"^(wav2vec2|hubert)\.", "", name)
        if _DROPPED.fullmatch(key):
            continue
        if key.startswith("feature_projection."):
            key = f"encoder.{key}"
        elif key.startswith("encoder."):
            key = f"encoder.transformer.{key.removeprefix('encoder.')}"
        renamed[key] = tensor
    return _with_one_weight(renamed, "encoder.transformer.pos_conv_embed.conv")


def _with_one_weight(state: dict[str, torch.Tensor], module: str) -> dict[str, torch.Tensor]:
    """A weight that is given as norm float[1, 1, K] and direction float[O, I, K] (Salimans and Kingma 2016), as their product."""
    for norm, direction in _NORM_AND_DIRECTION:
        keys = f"{module}.{norm}", f"{module}.{direction}"
        if state.keys() >= set(keys):
            norm_11K, direction_OIK = (state.pop(key) for key in keys)
            length_11K = direction_OIK.square().sum((0, 1), keepdim=True).sqrt()
            state[f"{module}.weight"] = direction_OIK * (norm_11K / length_11K)
    return state
