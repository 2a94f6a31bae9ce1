"""Where a token stands, in the five ways that models are told.

Rotary positions turn queries and keys; ALiBi and relative positions add to the scores of attention; learned and sinusoidal
ones add to the tokens. All take positions as integers, so that padding, a cache or a later start need nothing special.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError

# kind -> numbers that it needs, and those that it may have
SCALINGS = {
    "linear": ({"factor"}, set[str]()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set[str]()),
    "yarn": ({"factor", "original_max_position_embeddings"}, {"beta_fast", "beta_slow"}),
}


class Rotary(nn.Module):
    """Rotary positions (RoFormer: Su et al. 2021, arXiv:2104.09864), the halves of a head turned against each other.

    Pair i of a head (elements i and i + K/2) is turned by position * theta^(-2i/K). `scaling` stretches the wavelengths of a
    model beyond the length that it was trained at; see `rotary_frequencies`.
    """

    cosine_PK: torch.Tensor
    sine_PK: torch.Tensor

    def __init__(
        self, head_width: int, *, positions: int, theta: float = 10_000.0, scaling: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        frequencies_K2, attention_factor = rotary_frequencies(head_width, theta=theta, scaling=scaling)
        angles_PK2 = torch.arange(positions)[:, None] * frequencies_K2
        cosine, sine = angles_PK2.cos() * attention_factor, angles_PK2.sin() * attention_factor
        self.register_buffer("cosine_PK", torch.cat((cosine, cosine), -1), persistent=False)
        self.register_buffer("sine_PK", torch.cat((-sine, sine), -1), persistent=False)  # the sign of the half it meets

    def at(self, positions_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int[B, T] (or int[T] for all rows) -> cosines and signed sines, float[B, 1, T, K] each (float[T, K])."""
        cosine, sine = self.cosine_PK[positions_BT], self.sine_PK[positions_BT]
        return (cosine[:, None], sine[:, None]) if positions_BT.ndim == 2 else (cosine, sine)


def rotate(heads_BHTK: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn queries or keys, float[B, H, T, K], by what `Rotary.at` gave for their positions."""
    cosine, sine = rotation
    return torch.addcmul(heads_BHTK * cosine, heads_BHTK.roll(heads_BHTK.shape[-1] // 2, -1), sine)


def rotary_frequencies(
    head_width: int, *, theta: float, scaling: Mapping[str, Any] | None = None
) -> tuple[torch.Tensor, float]:
    """Angle for each step and pair float[K/2], and the factor on cosine and sine.

    scaling: None, or `kind` with its numbers, as config files call them:
        linear  `factor` (Chen et al. 2023, arXiv:2306.15595)
        llama3  `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings` (Llama 3.1)
        yarn    `factor`, `original_max_position_embeddings`, `beta_fast` 32, `beta_slow` 1 (Peng et al. 2023, arXiv:2309.00071)
    Raises UsageError for another kind ("dynamic" among them: its angles change with the length, and no cache survives that),
    and for numbers that are missing or unknown.
    """
    if head_width % 2:
        raise UsageError(f"rotary positions turn pairs: head_width must be even, got {head_width}")
    frequencies = torch.pow(theta, -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width))
    if scaling is None:
        return frequencies, 1.0
    kind = scaling.get("kind")
    if kind not in SCALINGS:
        raise UsageError(f"rotary scaling must be of kind {', '.join(SCALINGS)}, got {kind!r}")
    needed, optional = SCALINGS[kind]
    missing, unknown = needed - scaling.keys(), scaling.keys() - needed - optional - {"kind"}
    if missing or unknown:
        raise UsageError(
            f"rotary scaling of kind {kind} takes {', '.join(sorted(needed | optional))}; "
            f"missing: {', '.join(sorted(missing)) or 'none'}, unknown: {', '.join(sorted(unknown)) or 'none'}"
        )
    if kind == "linear":
        return frequencies / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    return _yarn(frequencies, scaling, head_width, theta)


def _llama3(frequencies: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    stretched: torch.Tensor = frequencies * (blend + (1 - blend) / factor)
    return stretched


def _yarn(
    frequencies: torch.Tensor, scaling: Mapping[str, Any], head_width: int, theta: float
) -> tuple[torch.Tensor, float]:
    """As `_llama3`, the blend linear in the number of the pair; scores are sharpened by 0.1 ln(factor) + 1."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair_that_turns(times: float) -> float:
        return head_width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(scaling.get("beta_fast", 32.0))), 0)
    high = min(math.ceil(pair_that_turns(scaling.get("beta_slow", 1.0))), head_width - 1)
    stretched = ((torch.arange(head_width // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return frequencies * (1 - stretched + stretched / factor), 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


class Alibi(nn.Module):
    """A penalty on the score of attention that grows with the distance, steeper in some heads (Press et al. 2021,
    arXiv:2108.12409): -slope_h * (position of the query - position of the key).
    """

    slopes_H: torch.Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes_H", alibi_slopes(heads), persistent=False)

    def forward(self, query_BT: torch.Tensor, key_BS: torch.Tensor) -> torch.Tensor:
        """Positions int[B, T] and int[B, S] -> what is added to the scores, float[B, H, T, S]."""
        distance_B1TS = (key_BS[:, None, :] - query_BT[:, :, None])[:, None]
        bias_BHTS: torch.Tensor = self.slopes_H[:, None, None] * distance_B1TS.to(self.slopes_H.dtype)
        return bias_BHTS


def alibi_slopes(heads: int) -> torch.Tensor:
    """2^(-8h/n) for n heads, a power of two; for other numbers those of the next lower power, then every other one of its double."""
    lower = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8.0 * torch.arange(1, lower + 1) / lower)
    doubled = 2.0 ** (-4.0 * torch.arange(1, 2 * lower + 1, 2) / lower)
    return torch.cat((slopes, doubled[: heads - lower]))


class RelativeBias(nn.Module):
    """A learned addition to the score for each head and bucket of distances (T5: Raffel et al. 2019, arXiv:1910.10683).

    Half of the buckets are single distances, the others widen up to `farthest`; what lies beyond shares the last.
    """

    def __init__(self, heads: int, *, buckets: int = 32, farthest: int = 128, both_ways: bool) -> None:
        super().__init__()
        self.bias = nn.Embedding(buckets, heads)
        self.farthest = farthest
        self.both_ways = both_ways

    def forward(self, query_BT: torch.Tensor, key_BS: torch.Tensor) -> torch.Tensor:
        """Positions int[B, T] and int[B, S] -> what is added to the scores, float[B, H, T, S]."""
        buckets = self.bias.num_embeddings
        distance = key_BS[:, None, :] - query_BT[:, :, None]
        offset = torch.zeros_like(distance)
        if self.both_ways:
            buckets //= 2
            offset = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        widening = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.farthest / exact) * (buckets - exact)
        far = (exact + widening.long()).clamp(max=buckets - 1)
        bias_BTSH: torch.Tensor = self.bias(offset + torch.where(distance < exact, distance, far))
        return bias_BTSH.permute(0, 3, 1, 2)


class LearnedPositions(nn.Module):
    """One trained vector for each position, added to the tokens."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(positions, width)

    def forward(self, positions_BT: torch.Tensor) -> torch.Tensor:
        """int[B, T] -> float[B, T, W]."""
        vectors_BTW: torch.Tensor = self.table(positions_BT)
        return vectors_BTW


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """float[P, W]: sines in the first half of the width and cosines in the second, of wavelengths from 2 pi to 20,000 pi (Vaswani et al.
    2017, arXiv:1706.03762, all sines before all cosines). Raises UsageError for a width that is odd or below 4.
    """
    if width % 2 or width < 4:
        raise UsageError(f"sinusoidal positions need an even width of at least 4, got {width}")
    steps = torch.exp(-math.log(10_000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(positions)[:, None] * steps
    return torch.cat((angles.sin(), angles.cos()), -1)
