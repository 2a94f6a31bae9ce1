"""Pictures and sounds of two classes each, drawn by chance, and the small parts that a composition learns them with."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import pad

from zoo.models.encoded import Encoded
from zoo.nn.attention import Attention

PICTURES = ("flag", "domino")  # what stripes and spots are called here
SOUNDS = ("siren", "sigh")  # what rises and what falls
SIDE = 112  # pixels of a picture
RATE = 8_000  # samples a second
WINDOW, HOP, BANDS = 256, 128, 32  # of a spectrogram: samples, samples, bands of frequency
PATTERN = 7  # moments and bands


def picture(word: str, chance: np.random.Generator) -> Image.Image:
    """An oval of stripes or of spots on a plain ground; place, size, slant, spacing and colours are chance, and so is the noise."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    slant, spacing = chance.uniform(0, np.pi), chance.uniform(9, 20)
    along = 2 * np.pi * (x * np.cos(slant) + y * np.sin(slant)) / spacing + chance.uniform(0, 6)
    across = 2 * np.pi * (y * np.cos(slant) - x * np.sin(slant)) / spacing + chance.uniform(0, 6)
    inked = np.sin(along) > 0 if word == "flag" else np.sin(along) + np.sin(across) > 0.6
    middle, size = chance.uniform(0.35, 0.65, 2) * SIDE, chance.uniform(0.25, 0.5, 2) * SIDE
    oval = ((x - middle[0]) / size[0]) ** 2 + ((y - middle[1]) / size[1]) ** 2 < 1
    ground, paper, ink = (chance.uniform(*bounds, 3) for bounds in ((30, 220), (130, 255), (0, 100)))
    pixels = np.where(oval[..., None], np.where(inked[..., None], ink, paper), ground) + chance.normal(
        0, 12, (SIDE, SIDE, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def sound(word: str, chance: np.random.Generator) -> np.ndarray:
    """A tone that rises or falls; pitch, how far it goes, length and loudness are chance, and so is the noise."""
    count = int(chance.uniform(0.4, 0.9) * RATE)
    low = chance.uniform(200, 1200)
    high = low * chance.uniform(1.5, 2.5)
    begin, end = (low, high) if word == "siren" else (high, low)
    phase = 2 * np.pi * np.cumsum(np.linspace(begin, end, count)) / RATE + chance.uniform(0, 6)
    samples = chance.uniform(0.3, 1.0) * np.sin(phase) + chance.normal(0, 0.05, count)
    return samples.astype(np.float32)


class Hearing(nn.Module):
    """Sounds float[samples] -> features: random patterns looked for in a spectrogram, each where it is strongest at each moment."""

    def __init__(self, *, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        centres_C = np.geomspace(100, RATE / 2, BANDS + 2)
        frequencies_F1 = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
        rising_FC = (frequencies_F1 - centres_C[:-2]) / (centres_C[1:-1] - centres_C[:-2])
        falling_FC = (centres_C[2:] - frequencies_F1) / (centres_C[2:] - centres_C[1:-1])
        self.register_buffer("bands_FC", torch.from_numpy(np.minimum(rising_FC, falling_FC).clip(0)).float())
        self.register_buffer("window", torch.hann_window(WINDOW))
        self.patterns = nn.Conv2d(1, width, PATTERN, bias=False)
        nn.init.normal_(self.patterns.weight, std=1 / PATTERN, generator=torch.Generator().manual_seed(seed))

    def preprocess(self, items: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples float[B, S], silence after the shorter ones, and how many are real, int[B]."""
        longest = max(map(len, items))
        samples_BS = torch.stack([pad(torch.from_numpy(samples), (0, longest - len(samples))) for samples in items])
        return samples_BS, torch.tensor([len(samples) for samples in items])

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        samples_BS, sizes_B = inputs
        waves_BFT = torch.stft(samples_BS, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        bands_BTC = (waves_BFT.abs().square().transpose(1, 2) @ self.bands_FC + 1e-4).log()
        found_BDTC = self.patterns((bands_BTC - bands_BTC.mean(2, keepdim=True))[:, None])
        steps_B = (sizes_B - WINDOW) // HOP + 2 - PATTERN
        mask_BT = torch.arange(found_BDTC.shape[2]) < steps_B[:, None]
        tokens_BTD = found_BDTC.relu().amax(3).transpose(1, 2) * mask_BT[..., None]
        return Encoded(tokens_BTD, mask_BT, tokens_BTD.sum(1) / steps_B[:, None])


class Pooling(nn.Module):
    """Features of any number -> a few latents: what learnt queries find among them, and the mean on top of it."""

    def __init__(self, input_width: int, *, output_width: int = 128, latents: int = 4) -> None:
        super().__init__()
        self.output_width = output_width
        self.queries_LW = nn.Parameter(torch.randn(latents, output_width))
        self.norm = nn.LayerNorm(input_width)
        self.attention = Attention(output_width, heads=4, source_width=input_width)
        self.mean = nn.Linear(input_width, output_width)
        self.output_norm = nn.LayerNorm(output_width)

    def forward(self, encoded: Encoded, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """float[B, T, D] -> float[B, L, W]."""
        source = self.attention.keys_and_values(self.norm(encoded.tokens_BTD))
        queries_BLW = self.queries_LW.expand(len(encoded.tokens_BTD), -1, -1)
        found_BLW = self.attention.over(queries_BLW, source, encoded.mask_BT[:, None, None, :])
        latents_BLW = self.output_norm(queries_BLW + found_BLW + self.mean(self.norm(encoded.pooled_BD))[:, None])
        return latents_BLW, torch.ones(latents_BLW.shape[:2], dtype=torch.bool)
