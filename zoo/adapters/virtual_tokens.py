"""Tokens that an adapter puts before those of a row: read first, into the cache, so that whatever follows finds them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.adapters.routing import Choice
from zoo.errors import UsageError
from zoo.nn.cache import Cache


def begun(chosen: Choice, model: nn.Module, batch: int, cache: Cache | None) -> Cache | None:
    """The cache with which a call goes on: at the start of the rows, one in which their virtual tokens stand.

    chosen: what calls take of which no cache says otherwise. Without a cache, and where some row has virtual tokens, that is a growing one (`Cache.grow`), through which gradients flow.
    Raises UsageError for a choice of adapters for another number of rows, and where a gradient would be lost.
    """
    if cache is not None and (cache.length or cache.primed):
        return cache
    choice = cache.selection if cache is not None and cache.selection is not None else chosen
    if choice.batch not in (None, batch):
        raise UsageError(f"adapters are chosen for {choice.batch} rows, the batch has {batch}")
    rows: list[Any] = [
        next((one.virtual for one in choice.adapters_of(row) if one.virtual is not None), None) for row in range(batch)
    ]
    if cache is not None:
        if torch.is_grad_enabled() and cache.grown is None and _trains(choice):
            raise UsageError("a cache is filled in place, which no gradient survives: use torch.inference_mode() with it")
        cache.selection, cache.primed = choice, True
    if not any(rows):
        return cache
    if cache is None:
        owner: Any = model
        cache = owner.new_cache(batch, 0)
        cache.grow()
        cache.selection, cache.primed = choice, True
    _write_prefixes(rows, cache)
    _read_prompts(model, rows, cache)
    cache.virtual = cache.length
    return cache


def _trains(choice: Choice) -> bool:
    return any(one.requires_grad for adapter in choice.adapters for one in adapter.parameters())


def _write_prefixes(rows: Sequence[Any], cache: Cache) -> None:
    """Keys and values of the rows that have some, as the last of as many slots as the longest needs."""
    made: dict[int, torch.Tensor] = {id(one): one.keys_and_values() for one in rows if hasattr(one, "keys_and_values")}
    if not made:
        return
    counts = [made[id(one)].shape[-2] if id(one) in made else 0 for one in rows]
    longest = max(counts)
    like = cache.store
    pairs = [
        nn.functional.pad(made[id(one)].to(like), (0, 0, longest - count, 0))
        if count
        else like.new_zeros(len(like), 2, like.shape[3], longest, like.shape[5])
        for one, count in zip(rows, counts, strict=True)
    ]
    every = torch.stack(pairs, 2)  # [layers, 2, B, G, P, K]
    cache.begin(longest, _mask(counts, longest, like.device))
    for layer, (keys, values) in enumerate(every):
        cache.write(layer, keys, values)


def _read_prompts(model: nn.Module, rows: Sequence[Any], cache: Cache) -> None:
    """Let the model read the embeddings of the rows that have some."""
    made: dict[int, torch.Tensor] = {id(one): one.embeddings() for one in rows if hasattr(one, "embeddings")}
    if not made:
        return
    device = cache.store.device
    counts = [len(made[id(one)]) if id(one) in made else 0 for one in rows]
    longest = max(counts)
    at = [(row, longest - count + step) for row, count in enumerate(counts) for step in range(count)]
    rows_N, columns_N = torch.tensor(at, device=device).unbind(1)
    values_NW = torch.cat([made[id(one)] for one, count in zip(rows, counts, strict=True) if count])
    model(
        torch.zeros(len(rows), longest, dtype=torch.long, device=device),
        mask_BT=_mask(counts, longest, device),
        cache=cache,
        at_BN=torch.zeros(len(rows), 1, dtype=torch.long, device=device),
        inserted=(rows_N, columns_N, values_NW),
    )


def _mask(counts: Sequence[int], longest: int, device: torch.device) -> torch.Tensor | None:
    if min(counts) == longest:
        return None
    return torch.arange(longest, device=device) >= longest - torch.tensor(counts, device=device)[:, None]
