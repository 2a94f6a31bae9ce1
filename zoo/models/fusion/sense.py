"""A sense: one modality's encoder and bridge, and how what they give enters the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from zoo.errors import PluginError, UsageError
from zoo.models.encoded import Encoded
from zoo.models.fusion.item import Item
from zoo.nn.extension import learns
from zoo.nn.gated_cross_attention import GatedCrossAttention
from zoo.nn.seen_media import Source, check_adjacent

MOST_AT_ONCE = 32  # frames that an encoder reads together, but for those of one item


class Sense(nn.Module):
    """Items of one modality -> latents -> keys and values for gated layers, or embeddings among the tokens where there are none.

    layers: number of a decoder layer -> the gated cross-attention before it; none: the latents are spliced into the tokens.
    adjacent: which of several items in a row a token sees (`zoo.nn.seen_media`); where latents are spliced it sees them all.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module | None,
        bridge: nn.Module,
        layers: Mapping[int, GatedCrossAttention] | None = None,
        adjacent: str = "last",
        marker: str = "<media>",
    ) -> None:
        """encoder: None where items come with their features. marker: what stands for an item in a text."""
        super().__init__()
        self.encoder = encoder
        self.bridge = bridge
        self.gated = nn.ModuleDict({str(layer): module for layer, module in sorted((layers or {}).items())})
        self.adjacent = check_adjacent(adjacent)
        if not marker.strip():
            raise UsageError(f"a marker is a text that stands for an item, got {marker!r}")
        self.marker = marker

    @property
    def spliced(self) -> bool:
        return not self.gated

    def latents(self, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """N items -> latents float[N, L, W], mask bool[N, L] (None: every latent is real). Items of several lengths share the call."""
        numbers: dict[int, list[int]] = {}
        for number, one in enumerate(items):
            numbers.setdefault(max(len(one.frames), 1), []).append(number)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        order: list[int] = []
        for frames, chosen in numbers.items():
            encoded = _without_padding(self._features([items[number] for number in chosen]))
            found.append(_bridged(self.bridge, encoded, frames))
            order += chosen
        longest = max(latents.shape[1] for latents, _ in found)
        latents_NLW = torch.cat([pad(latents, (0, 0, 0, longest - latents.shape[1])) for latents, _ in found])
        mask_NL = torch.cat([pad(mask, (0, longest - mask.shape[1])) for _, mask in found])
        if order != sorted(order):
            back = torch.tensor(order, device=mask_NL.device).argsort()
            latents_NLW, mask_NL = latents_NLW[back], mask_NL[back]
        return latents_NLW, None if bool(mask_NL.all()) else mask_NL

    def source(self, items: Sequence[Item]) -> Source:
        """N items -> the keys and values that the gated layers look at."""
        latents_NLW, mask_NL = self.latents(items)
        return Source({int(layer): gated.keys_and_values(latents_NLW) for layer, gated in self._layers()}, mask_NL)

    def _layers(self) -> list[tuple[str, Any]]:
        return list(self.gated.items())

    def _features(self, items: Sequence[Item]) -> Encoded:
        """What the encoder makes of items of as many frames each, padded to the longest; a frozen encoder keeps no graph."""
        raw = [one for one in items if one.features is None]
        made = iter(self.encode([one.frames for one in raw]) if raw else ())
        encoded = [next(made) if one.features is None else one.features for one in items]
        if len(encoded) == 1:
            return encoded[0]
        frames = max(len(items[0].frames), 1)
        shapes = [
            (one.tokens_BTD.view(frames, -1, one.tokens_BTD.shape[-1]), one.mask_BT.view(frames, -1)) for one in encoded
        ]
        longest = max(
            mask.shape[1] for _, mask in shapes
        )  # of a frame: each is filled up, so that frames stay as long as each other
        tokens = [pad(tokens_FTD, (0, 0, 0, longest - tokens_FTD.shape[1])).flatten(0, 1) for tokens_FTD, _ in shapes]
        masks = [pad(mask_FT, (0, longest - mask_FT.shape[1])).flatten() for _, mask_FT in shapes]
        return Encoded(torch.stack(tokens), torch.stack(masks), torch.cat([one.pooled_BD for one in encoded]))

    def encode(self, items: Sequence[Sequence[Any]]) -> list[Encoded]:
        """Raw frames of each item -> its features, B = 1 and the tokens of its frames one after another; the mean of their vectors."""
        encoder: Any = self.encoder
        if encoder is None:
            raise UsageError("this sense has no encoder: give its items with their features")
        frozen = not learns(encoder)
        chunks: list[list[Any]] = [[]]
        for frames in items:  # whole items, so that the padding of a chunk is that of its own items
            if chunks[-1] and sum(map(len, chunks[-1])) + len(frames) > MOST_AT_ONCE:
                chunks.append([])
            chunks[-1].append(frames)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return [one for chunk in chunks for one in self._encode(encoder, chunk)]

    def _encode(self, encoder: Any, items: Sequence[Sequence[Any]]) -> list[Encoded]:
        frames = [frame for frames in items for frame in frames]
        encoded = encoder(_moved(encoder, encoder.preprocess(frames)))
        if not isinstance(encoded, Encoded):
            raise PluginError(f"an encoder gives zoo.api.Encoded, got {type(encoded).__name__}")
        if len(encoded.tokens_BTD) != len(frames):
            raise PluginError(
                f"an encoder gives features of each item, got those of {len(encoded.tokens_BTD)} for {len(frames)}"
            )
        counts = [len(frames) for frames in items]
        return [
            Encoded(tokens.flatten(0, 1)[None], mask.flatten()[None], pooled.mean(0, keepdim=True))
            for tokens, mask, pooled in zip(
                torch.split(encoded.tokens_BTD, counts),
                torch.split(encoded.mask_BT, counts),
                torch.split(encoded.pooled_BD, counts),
                strict=True,
            )
        ]


def _bridged(bridge: nn.Module, encoded: Encoded, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a bridge gives, if it keeps its contract. Raises PluginError."""
    found = bridge(encoded, frames=frames)
    latents, mask = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    fits = isinstance(latents, torch.Tensor) and latents.ndim == 3 and len(latents) == len(encoded.tokens_BTD)
    if not fits or not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != latents.shape[:2]:
        raise PluginError(
            f"a bridge gives latents float[B, L, W] and a mask bool[B, L] (zoo.api.Bridge), {type(bridge).__name__} gave "
            f"{_shown(latents)} and {_shown(mask)}"
        )
    return latents, mask


def _shown(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _without_padding(encoded: Encoded) -> Encoded:
    """The same with zeros where nothing is real: NaN there would reach the latents, since a weight of 0 times NaN is NaN."""
    if bool(encoded.mask_BT.all()):
        return encoded
    tokens_BTD = encoded.tokens_BTD.masked_fill(~encoded.mask_BT[..., None], 0.0)
    return Encoded(tokens_BTD, encoded.mask_BT, encoded.pooled_BD)


def _moved(encoder: nn.Module, inputs: Any) -> Any:
    """Prepared inputs where the encoder is."""
    first = next((tensor for tensors in (encoder.parameters(), encoder.buffers()) for tensor in tensors), None)
    if first is None:
        return inputs
    return inputs.to(first.device) if isinstance(inputs, torch.Tensor) else tuple(one.to(first.device) for one in inputs)
