"""Prompts that begin alike are read once: few-shot examples before many questions, a conversation that goes on."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from zoo.decoding.prompt import Prompt
from zoo.decoding.reading import batch_of, device_of, prefill
from zoo.errors import UsageError
from zoo.models.contracts import Decoder
from zoo.models.fusion.media_cache import MediaCache
from zoo.nn.cache import Cache
from zoo.nn.extension import Selection, content_key, extension_of
from zoo.nn.stamp import stamp_of

LIMIT_BYTES = 1 << 29
SHORTEST = 16  # tokens; what is shorter is read sooner than it is found and copied


@dataclass(slots=True)
class PrefixCache:
    """Keys and values of prompts, kept between calls in bounded memory; what was used longest ago goes first.

    It is for one decoder, that of its first use, as it was then: when a weight of it changes, or a part of it is exchanged,
    everything is forgotten. Entries are found by content: the longest beginning that a new prompt shares with a kept one is
    copied, the rest is read. Threads take turns. What the media in prompts became is kept beside, in `media`.
    """

    limit_bytes: int = LIMIT_BYTES
    hits: int = 0
    media: MediaCache = field(default_factory=MediaCache)
    _entries: OrderedDict[tuple[Hashable, ...], Cache] = field(default_factory=OrderedDict)
    _owner: Any = None
    _stamp: int | None = None
    _lock: Any = field(default_factory=threading.RLock)

    def open_for(self, decoder: Decoder) -> None:
        """Forget everything if the decoder is not as it was. Raises UsageError for another decoder than that of the first use."""
        with self._lock:
            if self._owner is None:
                self._owner = weakref.ref(decoder)
            elif self._owner() is not decoder:
                raise UsageError("a prefix cache is for one decoder, and this is another: give each its own")
            module: Any = decoder
            stamp = stamp_of(module)
            if stamp != self._stamp:
                self._entries.clear()
                self._stamp = stamp

    @property
    def size_bytes(self) -> int:
        """Memory of the keys and values that are kept, those of a media item once, however many prompts hold it."""
        with self._lock:
            caches = list(self._entries.values())
        sources = {id(source): source for cache in caches for shown in cache.media.values() for source in shown.sources}
        text_bytes = sum(cache.size_bytes - cache.media_bytes for cache in caches)
        return text_bytes + sum(source.size_bytes for source in sources.values())

    def clear(self) -> None:
        """Forget everything, media included."""
        with self._lock:
            self._entries.clear()
        self.media.clear()

    def longest(self, prompt: Sequence[Hashable]) -> tuple[int, Cache] | None:
        """(tokens shared, their cache) of the kept prompt that shares most, at least SHORTEST and not the last of `prompt`:
        that one must be read for its logits.
        """
        with self._lock:
            best: tuple[int, tuple[Hashable, ...]] | None = None
            for ids in self._entries:
                shared = min(_shared(ids, prompt), len(prompt) - 1)
                if shared >= SHORTEST and (best is None or shared > best[0]):
                    best = (shared, ids)
            if best is None:
                return None
            self._entries.move_to_end(best[1])
            self.hits += 1
            return best[0], self._entries[best[1]]

    def keep(self, prompt: Sequence[Hashable], cache: Cache) -> None:
        """Keep a copy of a cache of one row that holds exactly this prompt. Prompts that it contains need no place of their own;
        one that is too large for the limit is not kept, and costs the others nothing.
        """
        text_bytes = (cache.size_bytes - cache.media_bytes) * cache.length // max(cache.capacity, 1)
        if len(prompt) < SHORTEST or text_bytes + cache.media_bytes > self.limit_bytes:
            return
        ids = tuple(prompt)
        with self._lock:
            for known in [known for known in self._entries if ids[: len(known)] == known]:
                del self._entries[known]
            if any(known[: len(ids)] == ids for known in self._entries):
                return
            kept = self._entries[ids] = cache.copy()
            kept.selection = None  # they are in the content
            while self.size_bytes > self.limit_bytes:
                self._entries.popitem(last=False)


def read_prompts(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    *,
    room: int,
    prefixes: PrefixCache | None = None,
    selection: Selection | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Read prompts -> (logits after each, float32[B, V]; their cache, with `room` slots more).

    With `prefixes`, what all prompts begin with is taken from there where it is kept. Afterwards one prompt is kept whole, and of
    several of one length what they share. selection: what the prompts take of an extension (`zoo.adapters.adapted.choice_for`); what was read under one
    is another's beginning only where their content is the same.
    """
    if prefixes is not None:
        prefixes.open_for(decoder)
    device = device_of(decoder)
    other = "" if prefixes is None else content_key(_module(decoder), but=extension_of(decoder))  # on a part of it
    contents = [_content(prompt, selection, row, other) for row, prompt in enumerate(prompts)]
    virtual = len(contents[0]) - len(
        prompts[0]
    )  # tokens before those of the prompt; the same for all where they share anything
    shared = _common(contents)
    longest = max(map(len, contents))
    first = contents[0][: shared + 1] if len(prompts) > 1 else contents[0]
    known = prefixes.longest(first) if prefixes is not None else None
    if known is not None and known[0] > virtual:
        start, kept = known
        start = min(start, shared, min(map(len, contents)) - 1)
        cache = _beginning(kept, start).copy(capacity=longest + room, rows=len(prompts))
    else:
        start, cache = 0, decoder.new_cache(len(prompts), longest + room)
    cache.selection = selection
    left = [prompt.after(start - virtual if start else 0) for prompt in prompts]
    tokens_BT, mask_BT = batch_of([prompt.ids for prompt in left], device=device)
    logits_BV = prefill(
        decoder,
        tokens_BT,
        cache,
        mask_BT=mask_BT,
        media=[prompt.media for prompt in left],
        media_cache=None if prefixes is None else prefixes.media,
    )
    if prefixes is not None:
        # A conversation that goes on takes the place of its beginning.
        continued = known is not None and start == known[1].length
        _keep(prefixes, contents, cache, shared, known=0 if continued else start)
    return logits_BV, cache


def _module(decoder: Any) -> torch.nn.Module:
    module: torch.nn.Module = decoder
    return module


def _content(prompt: Prompt, selection: Selection | None, row: int, other: str) -> tuple[Hashable, ...]:
    """One value for each slot of a cache, equal where the same was read by the same adapters."""
    tokens = prompt.content
    key = other if selection is None else other + selection.key(row)
    if not key:
        return tokens
    virtual = 0 if selection is None else selection.virtual_count(row)
    return (*((key, step) for step in range(virtual)), (key, tokens[0]), *tokens[1:])


def _keep(prefixes: PrefixCache, prompts: Sequence[Sequence[Hashable]], cache: Cache, shared: int, *, known: int) -> None:
    """Of one prompt everything, of several what they share, which lies in the first row without padding between.

    known: tokens that were kept already, as the beginning of another prompt. Many questions after the same examples leave one
    entry, not one each: a prompt that was known by half is not kept again.
    """
    if 2 * known >= shared:
        return
    if len(prompts) == 1:
        prefixes.keep(prompts[0], cache)
        return
    if cache.ragged:
        return
    first = cache.copy()
    first.select(torch.tensor([0], device=cache.valid_BS.device))
    first.truncate(shared)
    prefixes.keep(prompts[0][:shared], first)


def _beginning(cache: Cache, length: int) -> Cache:
    """A copy of the first tokens of a cache of one row."""
    if length == cache.length:
        return cache
    part = cache.copy()
    part.truncate(length)
    return part


def _common(prompts: Sequence[Sequence[Hashable]]) -> int:
    """How many tokens all prompts begin with."""
    if not prompts:
        raise UsageError("no prompts given")
    shortest = min(prompts, key=len)
    return min(_shared(shortest, prompt) for prompt in prompts)


def _shared(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
