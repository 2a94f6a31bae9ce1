"""Which media items, and which of an item's features, each token of an answer looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from zoo.models.encoded import Encoded
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import Placed
from zoo.nn.gated_cross_attention import GatedCrossAttention
from zoo.nn.seen_media import SeenMedia


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What one token looked at of one item.

    token: its number in the answer. item: the item's number in the prompt. share: of what the token's cross-attention looked at in
    this item, of all items that it sees of the modality. features_T: how much each feature of the encoder shaped that, sum 1.
    """

    token: int
    item: int
    share: float
    features_T: torch.Tensor


def looks(model: Fused, ids: Sequence[int], media: Sequence[Placed], answer: Sequence[int]) -> list[Look]:
    """The looks of each token of an answer, at the moment when it was chosen, through every sense.

    Gated senses: the weights of the cross-attention over an item's latents, the mean of heads and layers; back through the bridge by
    gradient times value, since a latent is made of all features. Spliced senses have no cross-attention: there it is the gradient
    of the token's log-probability times the value of each feature.
    """
    watched = [_watched(model, placed) for placed in media]
    tokens_1T = torch.tensor([[*ids, *answer]], device=next(model.parameters()).device)
    positions = range(len(ids) - 1, len(ids) + len(answer) - 1)
    weights: dict[str, list[tuple[SeenMedia, torch.Tensor]]] = {}
    handles = [
        gated.register_forward_pre_hook(_keep_weights(weights.setdefault(name, [])))
        for name, sense in _senses(model)
        for gated in sense.gated.values()
    ]
    try:
        with torch.enable_grad():
            logits_1TV = model(tokens_1T, media=[watched])
    finally:
        for handle in handles:
            handle.remove()
    found: list[Look] = []
    for name, module in model.senses.items():
        sense: Any = module
        numbers = [number for number, placed in enumerate(watched) if model.sense_of(placed.item.modality) == name]
        if not numbers:
            continue
        if sense.spliced:
            found += _by_gradient(logits_1TV, tokens_1T, positions, watched, numbers)
        else:
            found += _by_attention(sense, weights[name], positions, watched, numbers)
    return sorted(found, key=lambda look: (look.token, look.item))


def _senses(model: Fused) -> list[tuple[str, Any]]:
    return list(model.senses.items())


def _watched(model: Fused, placed: Placed) -> Placed:
    """The item with features of its own that a gradient reaches; equal items stay apart."""
    sense: Any = model.senses[model.sense_of(placed.item.modality)]
    with torch.no_grad():
        features = placed.item.features or sense.encode([placed.item.frames])[0]
    tokens = features.tokens_BTD.detach().clone().requires_grad_(True)
    item = replace(placed.item, key=f"{placed.item.key} at {placed.position}",
                   features=Encoded(tokens, features.mask_BT, features.pooled_BD))  # fmt: skip
    return replace(placed, item=item)


def _keep_weights(into: list[tuple[SeenMedia, torch.Tensor]]) -> Any:
    """A hook that notes the weights float[S, Q, L] (the mean of the heads) of each gated layer."""

    def hook(gated: GatedCrossAttention, arguments: tuple[torch.Tensor, SeenMedia, int]) -> None:
        tokens_BTW, seen, layer = arguments
        if seen.nothing:
            return
        attention = gated.attention
        with torch.no_grad():
            key_SGLK, _, bias = seen.at(layer)
            query_BTX = attention.query(gated.attention_norm(tokens_BTW))
            rows_SQX = query_BTX if seen.index_SQ is None else query_BTX.flatten(0, 1)[seen.index_SQ]
            query_SHQK = attention.split(rows_SQX, attention.heads)
            key_SHLK = key_SGLK.repeat_interleave(attention.heads // attention.kv_heads, 1)
            scores_SHQL = attention.scale * query_SHQK @ key_SHLK.transpose(2, 3)
            if bias is not None:
                scores_SHQL = scores_SHQL.masked_fill(~bias, float("-inf"))
            into.append((seen, scores_SHQL.softmax(-1).mean(1)))

    return hook


def _by_attention(
    sense: Any,
    weights: Sequence[tuple[SeenMedia, torch.Tensor]],
    positions: Sequence[int],
    watched: Sequence[Placed],
    numbers: Sequence[int],
) -> list[Look]:
    if not weights:
        return []
    with torch.enable_grad():
        latents = {number: _latents(sense, watched[number]) for number in numbers}
    seen = weights[0][0]
    mean_SQL = torch.stack([one for _, one in weights]).mean(0)
    found = []
    for token, position in enumerate(positions):
        stretch, step = _where(seen, position)
        if stretch is None:
            continue
        first = 0
        seen_items = _seen_items(sense.adjacent, watched, numbers, position)
        for (source, index), number in zip(seen.groups[stretch], seen_items, strict=True):
            mask_L = None if source.mask_NL is None else source.mask_NL[index]
            count = next(iter(source.layers.values()))[0].shape[2]  # with the padding that it shares a batch with
            over_L = mean_SQL[stretch, step, first : first + count]
            over_L = over_L if mask_L is None or not bool(mask_L.any()) else over_L[mask_L]
            first += count
            features: Any = watched[number].item.features
            made_of = (over_L[:, None] * latents[number] * latents[number].detach()).sum()
            (gradient,) = torch.autograd.grad(made_of, features.tokens_BTD, retain_graph=True)
            found.append(Look(token, number, float(over_L.sum()), _shares(gradient, features.tokens_BTD)))
    return found


def _latents(sense: Any, placed: Placed) -> torch.Tensor:
    latents_1LW, mask_1L = sense.latents([placed.item])
    latents_LW: torch.Tensor = latents_1LW[0] if mask_1L is None else latents_1LW[0][mask_1L[0]]
    return latents_LW


def _where(seen: SeenMedia, position: int) -> tuple[int | None, int]:
    """The stretch that a position of the one row lies in, and its place there."""
    if seen.index_SQ is None:
        return (None, 0) if seen.nothing else (0, position)
    places = (seen.index_SQ == position).nonzero()
    return (int(places[0, 0]), int(places[0, 1])) if len(places) else (None, 0)


def _seen_items(adjacent: str, watched: Sequence[Placed], numbers: Sequence[int], position: int) -> list[int]:
    """The items of a sense that a position sees, as `zoo.nn.seen_media.spans` has them."""
    group: list[int] = []
    end = -1
    for number in numbers:
        placed = watched[number]
        if placed.position > position:
            break
        group = [*group, number] if adjacent == "all" and end == placed.position else [number]
        end = placed.position + placed.tokens
    return group


def _by_gradient(
    logits_1TV: torch.Tensor,
    tokens_1T: torch.Tensor,
    positions: Sequence[int],
    watched: Sequence[Placed],
    numbers: Sequence[int],
) -> list[Look]:
    found = []
    inputs: list[Any] = [watched[number].item.features for number in numbers]
    for token, position in enumerate(positions):
        logprob = logits_1TV[0, position].log_softmax(-1)[tokens_1T[0, position + 1]]
        gradients = torch.autograd.grad(logprob, [one.tokens_BTD for one in inputs], retain_graph=True, allow_unused=True)
        sums = [0.0 if gradient is None else float((gradient * one.tokens_BTD).detach().abs().sum())
                for gradient, one in zip(gradients, inputs, strict=True)]  # fmt: skip
        total = sum(sums) or 1.0
        for number, gradient, one, part in zip(numbers, gradients, inputs, sums, strict=True):
            if gradient is not None:
                found.append(Look(token, number, part / total, _shares(gradient, one.tokens_BTD)))
    return found


def _shares(gradient_1TD: torch.Tensor, values_1TD: torch.Tensor) -> torch.Tensor:
    strength_T = (gradient_1TD * values_1TD.detach()).abs().sum(-1)[0].detach().float()
    return strength_T / strength_T.sum().clamp(min=1e-30)
