"""Which media item each token sees, and the keys and values of those items: what cross-attention asks, settled once for all layers.

A token sees the last item of a modality that stands before it; the marker's own tokens belong to their item already (Alayrac et
al. 2022, Flamingo, arXiv:2204.14198, section 2.1). Older items reach it through self-attention alone. Of several items without a
token between them, `adjacent` says what is seen: "last" the last (Flamingo, OpenFlamingo), "all" every one (torchtune).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from zoo.errors import UsageError

ADJACENT = ("last", "all")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Keys and values of N media items, computed once.

    layers: number of a decoder layer -> keys and values, float[N, G, L, K] each, of the cross-attention that stands before it.
    mask_NL: bool[N, L], True where a latent is real; None: all are.
    """

    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    mask_NL: torch.Tensor | None

    @property
    def count(self) -> int:
        return len(next(iter(self.layers.values()))[0])

    @property
    def size_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(tensor.numel() * tensor.element_size() for pair in self.layers.values() for tensor in pair)

    def item(self, index: int) -> Source:
        """A copy of one item alone, without the padding that it shared a batch with."""
        kept = None if self.mask_NL is None else self.mask_NL[index]
        if kept is None or bool(kept.all()) or not bool(kept.any()):
            layers = {layer: (key[index : index + 1].clone(), value[index : index + 1].clone())
                      for layer, (key, value) in self.layers.items()}  # fmt: skip
            return Source(layers, None if kept is None or bool(kept.all()) else kept[None].clone())
        layers = {layer: (key[index : index + 1, :, kept], value[index : index + 1, :, kept])
                  for layer, (key, value) in self.layers.items()}  # fmt: skip
        return Source(layers, None)


Piece = tuple[Source, int]  # an item: a source and its place there
Group = tuple[Piece, ...]  # the items that one token sees


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """An item stands at `slot` of its row, and its marker takes so many tokens."""

    slot: int
    tokens: int
    piece: Piece


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The media of one modality that the rows of a cache have read. A slot is one of the cache's, padding included."""

    adjacent: str
    rows: tuple[tuple[Place, ...], ...]
    gathered: dict[tuple[tuple[int, int], ...], dict[int, Gathered]] = field(default_factory=dict)  # of the latest step

    def added(self, new: Sequence[Sequence[Place]]) -> Shown:
        """With more places at the end of each row."""
        return replace(self, rows=tuple((*old, *more) for old, more in zip(self.rows, new, strict=True)), gathered={})

    def select(self, rows: Sequence[int]) -> Shown:
        """These rows, in this order; one may come several times."""
        return replace(self, rows=tuple(self.rows[row] for row in rows), gathered={})

    def cut(self, length: int) -> Shown:
        """Without what stands at slot `length` or later."""
        kept = tuple(tuple(place for place in row if place.slot < length) for row in self.rows)
        return replace(self, rows=kept, gathered={})

    @property
    def sources(self) -> list[Source]:
        """Those that the items come from, each once."""
        return list({id(place.piece[0]): place.piece[0] for row in self.rows for place in row}.values())

    @property
    def size_bytes(self) -> int:
        """Memory of the keys and values, those that rows share counted once."""
        return sum(source.size_bytes for source in self.sources)


def spans(row: Sequence[Place], begin: int, end: int, adjacent: str) -> list[tuple[int, int, Group]]:
    """What slots from `begin` to `end` see: (first slot, slot after the last, items); slots that see nothing are in none."""
    found: list[tuple[int, int, Group]] = []
    group: Group = ()
    for number, place in enumerate(row):
        follows = number > 0 and row[number - 1].slot + row[number - 1].tokens == place.slot
        group = (*group, place.piece) if adjacent == "all" and follows else (place.piece,)
        first = max(place.slot, begin)
        last = min(row[number + 1].slot if number + 1 < len(row) else end, end)
        if first < last:
            found.append((first, last, group))
    return found


Gathered = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class SeenMedia:
    """What tokens float[B, T, W] of one call see of one modality, as cross-attention takes it: stretches of tokens, each with its items.

    index_SQ: int[S, Q], for each stretch the places of its tokens in the flattened B * T, filled up with its last one.
    real_SQ: bool[S, Q], False for what only fills up; None: nothing does. whole: each row is one stretch.
    seeing_BT1: bool[B, T, 1], True for tokens that see an item; None: all do.
    """

    def __init__(self, shown: Shown, batch: int, count: int, *, before: int, device: torch.device) -> None:
        """count: tokens of each row in this call. before: slots of the cache that were filled earlier."""
        stretches = [
            (row * count + first - before, last - first, group)
            for row, places in enumerate(shown.rows)
            for first, last, group in spans(places, before, before + count, shown.adjacent)
        ]
        self.groups = [group for _, _, group in stretches]
        self.whole = len(stretches) == batch and all(size == count for _, size, _ in stretches)
        self.seeing_BT1: torch.Tensor | None = None
        self.index_SQ = self.real_SQ = None
        self._kept = shown.gathered if count == 1 else {}
        if self.whole or not stretches:
            return
        starts_S1 = torch.tensor([[start] for start, _, _ in stretches], device=device)
        sizes_S1 = torch.tensor([[size] for _, size, _ in stretches], device=device)
        steps_Q = torch.arange(int(sizes_S1.max()), device=device)
        self.index_SQ = starts_S1 + torch.minimum(steps_Q, sizes_S1 - 1)
        real_SQ = steps_Q < sizes_S1
        self.real_SQ = None if bool(real_SQ.all()) else real_SQ
        seeing = torch.zeros(batch * count, dtype=torch.bool, device=device)
        seeing[self.index_SQ.flatten()] = True
        self.seeing_BT1 = None if bool(seeing.all()) else seeing.view(batch, count, 1)

    @property
    def nothing(self) -> bool:
        """Whether no token sees any item."""
        return not self.groups

    def at(self, layer: int) -> Gathered:
        """Keys, values float[S, G, L, K] and the bias for attention (bool[S, 1, 1, L], None: every latent is real) of one layer."""
        name = tuple((id(source), index) for group in self.groups for source, index in group)
        if name not in self._kept:
            self._kept.clear()
            self._kept[name] = {}
        if layer not in self._kept[name]:
            self._kept[name][layer] = gather(self.groups, layer)
        return self._kept[name][layer]


def gather(groups: Sequence[Group], layer: int) -> Gathered:
    """Keys and values of each group's items, one after another, filled up to the longest."""
    first = groups[0][0][0]
    if all(len(group) == 1 and group[0][0] is first for group in groups):
        indices = [group[0][1] for group in groups]
        key_NGLK, value_NGLK = first.layers[layer]
        mask_NL = first.mask_NL
        if indices != list(range(first.count)):
            chosen = torch.tensor(indices, device=key_NGLK.device)
            key_NGLK, value_NGLK = key_NGLK[chosen], value_NGLK[chosen]
            mask_NL = None if mask_NL is None else mask_NL[chosen]
        return key_NGLK, value_NGLK, None if mask_NL is None else _open(mask_NL)
    keys, values, masks = [], [], []
    for group in groups:
        pairs = [source.layers[layer] for source, _ in group]
        keys.append(torch.cat([pair[0][index] for pair, (_, index) in zip(pairs, group, strict=True)], 1))
        values.append(torch.cat([pair[1][index] for pair, (_, index) in zip(pairs, group, strict=True)], 1))
        masks.append(torch.cat([_mask_of(source, index, layer) for source, index in group]))
    lengths = {len(mask) for mask in masks}
    longest = max(lengths)
    key_SGLK, value_SGLK = (torch.stack([_filled(one, longest) for one in many]) for many in (keys, values))
    if lengths == {longest} and all(bool(mask.all()) for mask in masks):
        return key_SGLK, value_SGLK, None
    mask_SL = torch.stack([torch.nn.functional.pad(mask, (0, longest - len(mask))) for mask in masks])
    return key_SGLK, value_SGLK, _open(mask_SL)


def check_adjacent(adjacent: str) -> str:
    """The same word. Raises UsageError for one that is no mode."""
    if adjacent not in ADJACENT:
        raise UsageError(f"adjacent media are seen as one of {', '.join(ADJACENT)}, got {adjacent!r}")
    return adjacent


def _filled(one_GLK: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.nn.functional.pad(one_GLK, (0, 0, 0, longest - one_GLK.shape[1]))


def _mask_of(source: Source, index: int, layer: int) -> torch.Tensor:
    key_NGLK = source.layers[layer][0]
    if source.mask_NL is not None:
        return source.mask_NL[index]
    return torch.ones(key_NGLK.shape[2], dtype=torch.bool, device=key_NGLK.device)


def _open(mask_SL: torch.Tensor) -> torch.Tensor:
    """bool[S, L] -> bool[S, 1, 1, L]; an item without one real latent is looked at whole, since its softmax would be NaN."""
    return (mask_SL | ~mask_SL.any(1, keepdim=True))[:, None, None, :]
