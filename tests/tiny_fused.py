"""A tiny decoder with senses, random weights and items of any length, for tests of what media do in a decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tiny_decoder import tiny_decoder
from torch import nn

from zoo.decoding.prompt import Prompt
from zoo.models.encoded import Encoded
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import Item, Placed, item
from zoo.models.fusion.sense import Sense
from zoo.nn.attention import Attention
from zoo.nn.feed_forward import Dense
from zoo.nn.gated_cross_attention import GatedCrossAttention

FEATURES, BRIDGE = 6, 20


class TinyEncoder(nn.Module):
    """Arrays float[T, 6] -> one token for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, 16)
        self.calls = 0

    def preprocess(self, items: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, items))
        padded = torch.zeros(len(items), longest, FEATURES)
        mask = torch.zeros(len(items), longest, dtype=torch.bool)
        for row, one in enumerate(items):
            padded[row, : len(one)] = torch.as_tensor(one)
            mask[row, : len(one)] = True
        return padded, mask

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        self.calls += 1
        tokens = self.project(inputs[0]) * inputs[1][..., None]
        return Encoded(tokens, inputs[1], tokens.sum(1) / inputs[1].sum(1, keepdim=True))


class TinyBridge(nn.Module):
    """Each token by itself, and how many frames there are."""

    def __init__(self, output_width: int) -> None:
        super().__init__()
        self.output_width = output_width
        self.project = nn.Linear(16, output_width)
        self.frame = nn.Parameter(torch.randn(output_width))

    def forward(self, encoded: Encoded, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        return self.project(encoded.tokens_BTD) + self.frame * frames, encoded.mask_BT


def gated_layer(width: int, *, gate: float, feeds_all: bool = False) -> GatedCrossAttention:
    return GatedCrossAttention(
        attention_norm=nn.LayerNorm(width),
        attention=Attention(width, heads=2, head_width=8, source_width=BRIDGE),
        feed_forward_norm=nn.LayerNorm(width),
        feed_forward=Dense(width, 2 * width, bias=False),
        gate=gate,
        feeds_all=feeds_all,
    )


def sense(
    decoder: Any, *, gate: float | None, seed: int, adjacent: str = "last", marker: str = "<m>", every: int = 1
) -> Sense:
    """gate: None splices the latents into the tokens."""
    torch.manual_seed(seed)
    layers = {} if gate is None else {n: gated_layer(decoder.width, gate=gate) for n in range(0, decoder.layers, every)}
    bridge = TinyBridge(decoder.width if gate is None else BRIDGE)
    return Sense(encoder=TinyEncoder(), bridge=bridge, layers=layers, adjacent=adjacent, marker=marker)


def tiny_fused(gates: Mapping[str, float | None], *, adjacent: str = "last", decoder: Any = None, **fields: Any) -> Fused:
    """gates: modality -> what its gates begin with; None for a spliced sense."""
    decoder = tiny_decoder(**fields) if decoder is None else decoder
    senses = {
        modality: sense(decoder, gate=gate, seed=number + 5, adjacent=adjacent, marker=f"<{modality}>")
        for number, (modality, gate) in enumerate(sorted(gates.items()))
    }
    return Fused(decoder, senses).eval()


def thing(modality: str, number: int, size: int = 3, frames: int = 1) -> Item:
    """The item of that number: so many rows of random features, in each frame."""
    generator = torch.Generator().manual_seed(1000 * number + size)
    return item(modality, *(torch.randn(size, FEATURES, generator=generator).numpy() for _ in range(frames)))


def prompt(parts: Sequence[int | tuple[Any, ...]], *, spliced: Sequence[str] = (), marker: int = 2) -> Prompt:
    """Ids, and (modality, number, size) or (modality, number, size, frames) for items: a marker of so many tokens, or the latents."""
    ids: list[int] = []
    placed: list[Placed] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            continue
        one = thing(*part)
        tokens = len(one.frames) * len(one.frames[0]) if one.modality in spliced else marker
        placed.append(Placed(len(ids), tokens, one))
        ids += [250 + len(one.modality) % 5] * tokens
    return Prompt(tuple(ids), tuple(placed))
