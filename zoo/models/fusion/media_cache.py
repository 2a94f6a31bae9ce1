"""What media items became, kept between calls: few-shot prompts repeat the same pictures thousands of times."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.nn.seen_media import Source
from zoo.nn.stamp import stamp_of

LIMIT_BYTES = 1 << 29


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An item as it enters the decoder: keys and values for its gated layers, or latents float[L, W] that stand among the tokens."""

    source: Source | None = None
    latents_LW: torch.Tensor | None = None

    @property
    def size_bytes(self) -> int:
        latents = 0 if self.latents_LW is None else self.latents_LW.numel() * self.latents_LW.element_size()
        return latents + (0 if self.source is None else self.source.size_bytes)


@dataclass(slots=True)
class MediaCache:
    """Items by modality and content, in bounded memory; what was used longest ago goes first.

    It is for one fused model, that of its first use. When a number of a sense changes (of its encoder, its bridge or its gated
    layers; by training, an adapter or a cast), the items of that sense are forgotten. Threads take turns.
    """

    limit_bytes: int = LIMIT_BYTES
    hits: int = 0
    misses: int = 0
    _entries: OrderedDict[tuple[str, str], Kept] = field(default_factory=OrderedDict)
    _size_bytes: int = 0
    _owner: Any = None
    _stamps: dict[str, int] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)

    def open_for(self, model: nn.Module, modality: str, sense: nn.Module) -> None:
        """Forget a modality's items if its sense is not as it was. Raises UsageError for another model than that of the first use."""
        with self._lock:
            if self._owner is None:
                self._owner = weakref.ref(model)
            elif self._owner() is not model:
                raise UsageError("a media cache is for one model, and this is another: give each its own")
            stamp = stamp_of(sense)
            if self._stamps.get(modality) != stamp:
                self._stamps[modality] = stamp
                for name in [name for name in self._entries if name[0] == modality]:
                    self._drop(name)

    @property
    def size_bytes(self) -> int:
        """Memory of what is kept."""
        return self._size_bytes

    def clear(self) -> None:
        """Forget everything: after a change that torch does not count (`zoo.nn.stamp.stamp_of` says which)."""
        with self._lock:
            self._entries.clear()
            self._size_bytes = 0

    def find(self, modality: str, key: str) -> Kept | None:
        """What is kept of an item."""
        with self._lock:
            found = self._entries.get((modality, key))
            if found is None:
                self.misses += 1
                return None
            self._entries.move_to_end((modality, key))
            self.hits += 1
            return found

    def keep(self, modality: str, key: str, kept: Kept) -> None:
        """Keep an item; one that is too large for the limit is not, and costs the others nothing."""
        if kept.size_bytes > self.limit_bytes:
            return
        with self._lock:
            if (modality, key) in self._entries:
                self._drop((modality, key))
            self._entries[modality, key] = kept
            self._size_bytes += kept.size_bytes
            while self._size_bytes > self.limit_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, name: tuple[str, str]) -> None:
        self._size_bytes -= self._entries.pop(name).size_bytes
