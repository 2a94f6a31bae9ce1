"""Silero VAD 6 (github.com/snakers4/silero-vad, MIT): how likely somebody speaks, for every 32 ms.

A fixed spectrum of 512 samples and the 64 before them, four convolutions, and an LSTM that remembers. Here the convolutions hear all
pieces of a block at once and the LSTM runs over them in one call; the reference runs piece by piece. The tests hold this one to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, relu

from zoo.api import Encoded, Sound, to_waveforms
from zoo_audio.frontend import masked_mean

PIECE, CONTEXT, MIRRORED = 512, 64, 64
WINDOW, STEP = 256, 128
WIDTH = 128

State = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]  # the last samples, and the LSTM's memory


def silero_vad(*, preprocess: Mapping[str, Any]) -> nn.Module:
    """Build the detector with random weights. preprocess: sample_rate_hz, and max_s for `preprocess` alone."""
    return SileroVad(preprocess)


class SileroVad(nn.Module):
    """An encoder, a token for every 32 ms, that also says whether they are speech."""

    hop_samples = PIECE

    def __init__(self, preprocess: Mapping[str, Any]) -> None:
        super().__init__()
        self.numbers = dict(preprocess)
        self.sample_rate_hz = int(preprocess["sample_rate_hz"])
        self.spectrum = nn.Conv1d(1, WINDOW + 2, WINDOW, stride=STEP, bias=False)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 3, stride=stride, padding=1)
            for before, after, stride in ((WINDOW // 2 + 1, 128, 1), (128, 64, 2), (64, 64, 2), (64, WIDTH, 1))
        )
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.speaks = nn.Linear(WIDTH, 1)

    def preprocess(self, items: Sequence[Sound]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sounds -> samples float[B, N] and mask bool[B, N]. Raises UsageError for what is no Sound, MediaError for a long one."""
        return to_waveforms(items, self.numbers)

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(samples float[B, N], mask bool[B, N]) -> what the LSTM knows after every 32 ms, float[B, T, 128 + 1], and its mean.

        The last number of a token is the logit of speech.
        """
        weight = self.spectrum.weight
        samples_BN, mask_BN = inputs[0].to(weight), inputs[1].to(weight.device)
        tokens_BTD, _ = self._run(samples_BN, None)
        mask_BT = mask_BN[:, ::PIECE]
        return Encoded(tokens_BTD, mask_BT, masked_mean(tokens_BTD, mask_BT))

    def activity(self, samples_N: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """Samples float[N] after those of `state` -> probability of speech for every 512 of them, float[T], and the next state."""
        tokens_1TD, state = self._run(samples_N.to(self.spectrum.weight)[None], state)
        return tokens_1TD[0, :, -1].float().sigmoid(), state

    def _run(self, samples_BN: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch = len(samples_BN)
        before_BC, memory = (samples_BN.new_zeros(batch, CONTEXT), None) if state is None else state
        filled_BN = pad(samples_BN, (0, -samples_BN.shape[1] % PIECE))
        joined_BN = torch.cat((before_BC, filled_BN), 1)
        pieces_BTN = joined_BN.unfold(1, CONTEXT + PIECE, PIECE)
        features = self._features(pieces_BTN.reshape(-1, 1, CONTEXT + PIECE)).view(batch, -1, WIDTH)
        heard_BTD, memory = self.lstm(features, memory)
        tokens_BTD = torch.cat((heard_BTD, self.speaks(relu(heard_BTD))), -1)
        return tokens_BTD, (joined_BN[:, -CONTEXT:], memory)

    def _features(self, pieces_P1N: torch.Tensor) -> torch.Tensor:
        """float[P, 1, 576] -> float[P, 128]."""
        spectrum_PFT = self.spectrum(pad(pieces_P1N, (0, MIRRORED), mode="reflect"))
        real, imaginary = spectrum_PFT.chunk(2, 1)
        maps = (real.square() + imaginary.square() + torch.finfo(real.dtype).tiny).sqrt()  # the root of 0 has no slope
        for convolution in self.convolutions:
            maps = relu(convolution(maps))
        features_PD: torch.Tensor = maps[:, :, 0]
        return features_PD


def from_silero(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the published file -> ours."""
    names = {"stft_conv": "spectrum", "final_conv": "speaks"}
    names |= {f"conv{number + 1}": f"convolutions.{number}" for number in range(4)}
    renamed = {}
    for key, tensor in state.items():
        module, _, parameter = key.partition(".")
        if module == "lstm_cell":
            renamed[f"lstm.{parameter}_l0"] = tensor
        elif key == "final_conv.weight":
            renamed["speaks.weight"] = tensor[:, :, 0]
        else:
            renamed[f"{names.get(module, module)}.{parameter}"] = tensor
    return renamed
