"""Whisper (Radford et al. 2022, arXiv:2212.04356): two convolutions and a transformer over a log-mel of 30 s, and a decoder that
reads what they made of it by cross-attention.

The reference implementation is openai-whisper's `model.py`; the tests hold this one to it, forward and backward, on shared weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu

from zoo.api import (
    AudioReader,
    Encoded,
    Sound,
    TranscriptionOptions,
    UsageError,
    Window,
    to_waveforms,
)
from zoo.nn import Attention, Block, Decoder, Dense, Stack, multiplies_in_bfloat16, sinusoids
from zoo_whisper.log_mel import HOP, SAMPLE_RATE_HZ, WINDOW_FRAMES, log_mel
from zoo_whisper.openai_package import named_alignment_heads
from zoo_whisper.options import OPTIONS
from zoo_whisper.tokens import controls, languages
from zoo_whisper.transcription import windows
from zoo_whisper.vocabulary import Vocabulary

POSITIONS = WINDOW_FRAMES // 2  # the second convolution halves the time
SAMPLES_PER_POSITION = 2 * HOP
BF16, INT8 = "kernels/bf16", "kernels/int8"


def whisper(
    *,
    bands: int,
    width: int,
    heads: int,
    layers: int,
    vocabulary: int,
    decoder_layers: int | None = None,
    context: int = 448,
    alignment_heads: str | Sequence[Sequence[int]] = (),
    preprocess: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a Whisper with random weights.

    bands: of the log-mel. width, heads, layers: of both sides; decoder_layers: where it has another number of them.
    context: the most tokens that it reads and writes together.
    alignment_heads: (layer, head) of the cross-attention that follows the words, or the name by which OpenAI's package has them; without any,
        all of the upper half do.
    Raises UsageError for numbers that contradict each other.
    """
    del preprocess  # its numbers are part of the architecture
    deep = layers if decoder_layers is None else decoder_layers
    return Whisper(
        encoder=AudioEncoder(bands=bands, width=width, heads=heads, layers=layers),
        decoder=Decoder(
            embedding=nn.Embedding(vocabulary, width),
            position_embedding=nn.Embedding(context, width),
            stack=Stack([_block(width, heads, reads=True) for _ in range(deep)], norm=nn.LayerNorm(width), causal=True),
            context=context,
        ),
        alignment_heads=named_alignment_heads(alignment_heads, deep, heads),
    )


def audio_encoder(
    *, bands: int, width: int, heads: int, layers: int, preprocess: Mapping[str, Any] | None = None, **_: object
) -> nn.Module:
    """Build Whisper's encoder alone, with random weights. Arguments as those of `whisper`; what is the decoder's is left aside."""
    del preprocess
    return AudioEncoder(bands=bands, width=width, heads=heads, layers=layers)


class AudioEncoder(nn.Module):
    """Sounds of up to 30 s -> 1,500 tokens, one for each 20 ms."""

    positions_TD: torch.Tensor

    def __init__(self, *, bands: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.bands = bands
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.register_buffer("positions_TD", sinusoids(POSITIONS, width), persistent=False)
        self.stack = Stack(
            [_block(width, heads, reads=False) for _ in range(layers)], norm=nn.LayerNorm(width), causal=False
        )

    def preprocess(self, items: Sequence[Sound]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sounds -> log-mel float[B, bands, 3000] and mask bool[B, 1500], True where there is sound.

        Raises MediaError for a sound of more than 30 s, UsageError for what is no Sound.
        """
        samples_BN, real_BN = to_waveforms(
            items, {"sample_rate_hz": SAMPLE_RATE_HZ, "max_s": WINDOW_FRAMES * HOP / SAMPLE_RATE_HZ}
        )
        positions_B = real_BN.sum(1).div(SAMPLES_PER_POSITION).ceil().long().clamp(1, POSITIONS)
        return log_mel(samples_BN, self.bands), torch.arange(POSITIONS) < positions_B[:, None]

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(log-mel float[B, bands, 3000], mask bool[B, 1500]) -> tokens float[B, 1500, D], mask, pooled float[B, D].

        Every token has heard all 30 s, as the model was trained; the mask says which lie in the sound, and `pooled_BD` is their mean.
        """
        mel_BCT, mask_BT = inputs
        device = self.conv1.weight.device
        tokens_BTD, mask_BT = self.features(mel_BCT), mask_BT.to(device)
        weights_BT1 = mask_BT[:, :, None].to(tokens_BTD.dtype)
        pooled_BD = (tokens_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)
        return Encoded(tokens_BTD, mask_BT, pooled_BD)

    def features(self, mel_BCT: torch.Tensor) -> torch.Tensor:
        """Log-mel float[B, bands, 3000] -> float[B, 1500, D]. Raises UsageError for any other shape."""
        if mel_BCT.shape[1:] != (self.bands, WINDOW_FRAMES):
            raise UsageError(f"expected a log-mel float[B, {self.bands}, {WINDOW_FRAMES}], got {list(mel_BCT.shape)}")
        mel_BCT = mel_BCT.to(self.conv1.weight)
        heard_BDT = gelu(self.conv2(gelu(self.conv1(mel_BCT))))
        tokens_BTD = heard_BDT.transpose(1, 2) + self.positions_TD.to(heard_BDT.dtype)
        positions_BT = torch.arange(POSITIONS, device=tokens_BTD.device).expand(len(tokens_BTD), POSITIONS)
        features_BTD: torch.Tensor = self.stack(tokens_BTD, positions_BT)
        return features_BTD


class Whisper(nn.Module):
    """The whole model. `forward` is for training and for one's own decoding; `windows` transcribes."""

    sample_rate_hz = SAMPLE_RATE_HZ
    options = OPTIONS
    engines = ("zoo", "openai")
    compiled = MappingProxyType({"encoder": ("features",)})  # what a kernel of whole modules takes

    def __init__(self, *, encoder: AudioEncoder, decoder: Decoder, alignment_heads: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.alignment_heads = tuple(alignment_heads)
        self.controls = controls(decoder.vocabulary)
        self.vocabulary = Vocabulary(self.controls)
        self.engine = self.engines[0]

    @property
    def languages(self) -> Mapping[str, str]:
        """Code -> name of the languages that it tells apart; none for a model of English alone."""
        return {code: name for code, name in languages().items() if code in self.controls.languages}

    def forward(self, mel_BCT: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Log-mel float[B, bands, 3000] and token ids int[B, T] -> logits of the next token, float[B, T, V]."""
        logits_BTV: torch.Tensor = self.decoder(tokens_BT, source_BSD=self.encoder.features(mel_BCT))
        return logits_BTV

    def kernel_plan(self, kernel: str) -> Mapping[str, str] | None:
        """Pattern of layers' names -> the kernel that suits them; None where nothing is to run by one. Any other kernel takes the whole model.

        The encoder's time is arithmetic on many rows: bfloat16 for any kernel that rounds, where the processor multiplies in it. The
        decoder's time is reading weights, half of them the head's: "int8" rounds the head alone, the others all of it.
        """
        if self.engine == "openai":
            if kernel != "float32":
                raise UsageError(f"the engine openai computes in float32: leave out kernel {kernel}")
            return None
        if kernel not in (BF16, INT8, "kernels/int4", "fused/fused", "fused/fused-q4"):
            return {}
        encoder = {"encoder.*": BF16 if multiplies_in_bfloat16() else "float32"}
        return encoder | ({"decoder.head": INT8, "decoder.*": "float32"} if kernel == INT8 else {})

    def use_engine(self, engine: str) -> None:
        """Whose code transcribes: "zoo", or "openai", the package itself with these weights. Before a kernel is chosen."""
        self.engine = engine

    def windows(
        self, reader: AudioReader, asked: TranscriptionOptions, /, *, state: Mapping[str, Any] | None = None
    ) -> Iterator[Window]:
        """What is said, window by window: see `zoo_whisper.transcription.windows`."""
        return windows(self, reader, asked, state=state)


def _block(width: int, heads: int, *, reads: bool) -> Block:
    """One layer; with cross-attention where it reads the encoder's tokens."""
    return Block(
        attention_norm=nn.LayerNorm(width),
        attention=Attention(width, heads=heads, bias=True, key_bias=False),
        cross_norm=nn.LayerNorm(width) if reads else None,
        cross_attention=Attention(width, heads=heads, bias=True, key_bias=False) if reads else None,
        feed_forward_norm=nn.LayerNorm(width),
        feed_forward=Dense(width, 4 * width),
    )
