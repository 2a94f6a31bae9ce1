"""Raw items to try a model on: ordinary ones that differ from each other, and extreme ones that are legal all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from zoo.media.audio import Sound
from zoo.registry.modality import AUDIO, IMAGE, TEXT
from zoo.testing.check import FEATURES, CheckSkipped

WIDEST = 8192
TEXTS = ("red", "cat", "owl")  # of one length for most tokenizers
SENTENCES = ("cat", "a photograph of two grey cats asleep on a red sofa beside the window", "an old wooden boat")
EXTREME_TEXTS = ("", " ", "a" * 3000, "word " * 2000, "\N{GRINNING FACE}" * 40, "图片 中 的 猫", "tab\tand\nline", "\x00")


def ordinary(modality: str) -> list[Any]:
    """Three items of equal length."""
    if modality == IMAGE:
        return [_picture(seed) for seed in range(3)]
    if modality == TEXT:
        return list(TEXTS)
    if modality == AUDIO:
        return [_sound(seed, 1.0) for seed in range(3)]
    if modality == FEATURES:
        return [_features(seed, 12) for seed in range(3)]
    raise CheckSkipped(f"the kit has no samples of {modality} yet")


def uneven(modality: str) -> list[Any]:
    """Three items of different size."""
    if modality == IMAGE:
        return [_picture(0, 48, 64), _picture(1, 300, 200), _picture(2, 31, 97)]
    if modality == TEXT:
        return list(SENTENCES)
    if modality == AUDIO:
        return [_sound(0, 0.3), _sound(1, 2.0, rate_hz=44_100), _sound(2, 1.1, rate_hz=8_000)]
    if modality == FEATURES:
        return [_features(0, 4), _features(1, 12), _features(2, 8)]
    raise CheckSkipped(f"the kit has no samples of {modality} yet")


def extreme(modality: str) -> list[tuple[str, Any]]:
    """Legal items at the edge, each with a name."""
    if modality == IMAGE:
        flat = [(f"an image of grey {value}", np.full((40, 40, 3), value, np.uint8)) for value in (0, 128, 255)]
        board = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255
        shapes = [("an image of 1 x 1", (1, 1)), ("an image of 1 x 700", (1, 700)), ("an image of 700 x 1", (700, 1))]
        edges = [(name, np.full((*shape, 3), 200, np.uint8)) for name, shape in shapes]
        items = [*flat, ("a checkerboard of pixels", board.astype(np.uint8)), *edges]
        return [(name, Image.fromarray(pixels)) for name, pixels in items]
    if modality == TEXT:
        return [(f"the text {text[:12]!r} ({len(text)} characters)", text) for text in EXTREME_TEXTS]
    if modality == AUDIO:
        return _extreme_sounds()
    if modality == FEATURES:
        one = _features(0, 12)
        return [
            ("features that are all zero", 0 * one),
            ("features of a thousand", 1000 * one),
            ("equal features", one[:1].repeat(12, 0)),
        ]
    raise CheckSkipped(f"the kit has no samples of {modality} yet")


def _extreme_sounds() -> list[tuple[str, Sound]]:
    loud = np.sign(np.sin(np.arange(16_000) * 0.05)).astype(np.float32)
    click = np.zeros(16_000, np.float32)
    click[8_000] = 1.0
    return [
        ("silence of 1 s", Sound(np.zeros(16_000, np.float32), 16_000)),
        ("a sound of 1 sample", Sound(np.full(1, 0.5, np.float32), 16_000)),
        ("a sound of 10 ms", Sound(loud[:160], 16_000)),
        ("a square wave at full scale", Sound(loud, 16_000)),
        ("a sound at 100 times full scale", Sound(100 * loud, 16_000)),
        ("a sound at a millionth of full scale", Sound(loud / 1e6, 16_000)),
        ("one click", Sound(click, 16_000)),
        ("a constant", Sound(np.full(16_000, 0.5, np.float32), 16_000)),
        ("a sound at 192 kHz", Sound(np.tile(loud, 2), 192_000)),
    ]


def _sound(seed: int, duration_s: float, *, rate_hz: int = 16_000) -> Sound:
    """Noise that swells, and two tones: every sound differs."""
    generator = np.random.default_rng(seed)
    times = np.arange(int(duration_s * rate_hz)) / rate_hz
    tones = sum(np.sin(2 * np.pi * pitch * times) for pitch in generator.uniform(150, 3000, 2))
    noise = generator.standard_normal(len(times)) * times / duration_s
    return Sound((0.1 * tones + 0.05 * noise).astype(np.float32), rate_hz)


def _features(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Token features of one item, wider than any bridge: it takes as many as it is wide."""
    return np.random.default_rng(seed).standard_normal((count, WIDEST), dtype=np.float32)


def _picture(seed: int, height: int = 64, width: int = 64) -> Image.Image:
    """Coloured noise on a gradient: every pixel differs, and every picture does."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 120, (height, width, 3))
    slope = np.linspace(0, 120, width)[None, :, None] * generator.random(3)
    return Image.fromarray((noise + slope).astype(np.uint8))
