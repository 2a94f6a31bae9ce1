"""What a decoder keeps of the tokens that it has read, so that each is computed once."""

from __future__ import annotations

from typing import Any

import torch

from zoo.errors import UsageError
from zoo.nn.seen_media import Shown


class Cache:
    """Keys and values of every layer, one slot for each token of each row, in memory that is laid out once.

    A slot may hold padding: `valid_BS` says which are real, and a row's positions count only those, so that rows of
    different length share a batch whichever side they are padded on. The first `length` slots are filled. Keys and values
    that come from a source (an encoder's output) lie in `source`, one pair for each layer, from their first use on. The media
    that the rows have read are in `media`, by modality, and what they take of an extension in `selection`
    (`zoo.nn.extension.Selection`); `primed` says that their virtual tokens were seen to, which fill the first `virtual` slots.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        kv_heads: int,
        head_width: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(layers, batch, kv_heads, head_width) < 1 or capacity < 0:
            raise UsageError(
                f"a cache needs layers, batch, kv_heads and head_width of at least 1, got {layers}, {batch}, {kv_heads}, "
                f"{head_width}, and no negative capacity, got {capacity}"
            )
        self.store = torch.zeros(layers, 2, batch, kv_heads, capacity, head_width, dtype=dtype, device=device)
        self.valid_BS = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.counts_B = torch.zeros(batch, dtype=torch.long, device=device)  # real tokens of each row
        self.length = 0
        self.ragged = False  # whether some filled slot is padding: without it no mask is needed
        self.source: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.media: dict[str, Shown] = {}
        self.selection: Any = None
        self.primed = False
        self.virtual = 0
        self.grown: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None

    @property
    def batch(self) -> int:
        return self.store.shape[2]

    @property
    def capacity(self) -> int:
        return self.store.shape[4]

    @property
    def size_bytes(self) -> int:
        """Memory of the keys and values, those of media included."""
        return self.store.numel() * self.store.element_size() + self.media_bytes

    @property
    def media_bytes(self) -> int:
        """Memory of the keys and values of media; other caches may share it."""
        return sum(shown.size_bytes for shown in self.media.values())

    def grow(self) -> None:
        """Let an empty cache join what is written to what was there, instead of filling it in: for gradients, at the price of copies.
        Such a cache is not copied, and its rows stay.
        """
        if self.length:
            raise UsageError(f"a cache grows from its start, this one has {self.length} filled slots")
        self.grown = {}

    def begin(self, count: int, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Take `count` more slots, before the layers write into them; returns their positions, int[B, T].

        mask_BT: True where a token is real; None when all are. The slots grow by half when they do not suffice.
        """
        self._reserve(self.length + count)
        new = slice(self.length, self.length + count)
        if mask_BT is None:
            positions_BT = self.counts_B[:, None] + torch.arange(count, device=self.counts_B.device)
            self.valid_BS[:, new] = True
            self.counts_B = self.counts_B + count
        else:
            positions_BT = (self.counts_B[:, None] + mask_BT.cumsum(1) - 1).clamp(min=0)
            self.valid_BS[:, new] = mask_BT
            self.counts_B = self.counts_B + mask_BT.sum(1)
            self.ragged = self.ragged or not bool(mask_BT.all())
        self.length += count
        return positions_BT

    def write(self, layer: int, key_BGTK: torch.Tensor, value_BGTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill the slots that `begin` took last; returns the keys and values of all filled slots, float[B, G, S, K] each."""
        if self.grown is not None:
            earlier = self.grown.get(layer)
            pair = (key_BGTK, value_BGTK)
            if earlier is not None:
                pair = (torch.cat((earlier[0], key_BGTK), 2), torch.cat((earlier[1], value_BGTK), 2))
            self.grown[layer] = pair
            return pair
        count = key_BGTK.shape[2]
        keys, values = self.store[layer].unbind(0)
        keys.narrow(2, self.length - count, count).copy_(key_BGTK)
        values.narrow(2, self.length - count, count).copy_(value_BGTK)
        return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)

    def key_positions(self) -> torch.Tensor:
        """Position of each filled slot, int[B, S]; that of padding means nothing."""
        return (self.valid_BS[:, : self.length].cumsum(1) - 1).clamp(min=0)

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, int[B'], in this order; a row may come several times (beams) or not at all."""
        self._refuse_grown()
        if len(rows) == self.batch and bool((rows == torch.arange(self.batch, device=rows.device)).all()):
            return
        filled = self.store[:, :, :, :, : self.length].index_select(2, rows)  # what lies beyond is not worth copying
        layers, two, _, kv_heads, capacity, head_width = self.store.shape
        if len(rows) > self.batch:
            self.store = self.store.new_zeros(layers, two, len(rows), kv_heads, capacity, head_width)
        self.store = self.store[:, :, : len(rows)]
        self.store[:, :, :, :, : self.length] = filled
        self.valid_BS = self.valid_BS[rows]
        self.counts_B = self.counts_B[rows]
        self.source = {layer: (key[rows], value[rows]) for layer, (key, value) in self.source.items()}
        if self.selection is not None:
            self.selection = self.selection.select(rows.tolist())
        if self.media:
            kept = rows.tolist()
            self.media = {modality: shown.select(kept) for modality, shown in self.media.items()}

    def copy(self, *, capacity: int | None = None, rows: int = 1) -> Cache:
        """Another cache with the same content and room for `capacity` slots (as many as are filled, if that is more); each
        row `rows` times.
        """
        self._refuse_grown()
        layers, _, batch, kv_heads, _, head_width = self.store.shape
        other = Cache(
            layers=layers,
            batch=batch * rows,
            kv_heads=kv_heads,
            head_width=head_width,
            capacity=max(capacity or self.length, self.length),
            dtype=self.store.dtype,
            device=self.store.device,
        )
        filled = slice(0, self.length)
        other.store[:, :, :, :, filled] = self.store[:, :, :, :, filled].repeat_interleave(rows, 2)
        other.valid_BS[:, filled] = self.valid_BS[:, filled].repeat_interleave(rows, 0)
        other.counts_B = self.counts_B.repeat_interleave(rows, 0)
        other.length, other.ragged = self.length, self.ragged
        other.source = {
            layer: (key.repeat_interleave(rows, 0), value.repeat_interleave(rows, 0))
            for layer, (key, value) in self.source.items()
        }
        other.primed, other.virtual = self.primed, self.virtual
        each = [row for row in range(batch) for _ in range(rows)]
        if self.selection is not None:
            other.selection = self.selection.select(each)
        if self.media:
            other.media = {modality: shown.select(each) for modality, shown in self.media.items()}
        return other

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` slots. Raises UsageError for more than are filled."""
        self._refuse_grown()
        if not 0 <= length <= self.length:
            raise UsageError(f"a cache of {self.length} filled slots cannot be cut to {length}")
        if 0 < length < self.virtual:
            raise UsageError(
                f"a cache with {self.virtual} slots of virtual tokens is cut to none or behind them, got {length}"
            )
        if length == 0:
            self.primed, self.virtual = False, 0
        self.valid_BS[:, length:] = False
        self.counts_B = self.valid_BS.sum(1)
        self.length = length
        self.ragged = not bool(self.valid_BS[:, :length].all())
        self.media = {modality: shown.cut(length) for modality, shown in self.media.items()}

    def _refuse_grown(self) -> None:
        if self.grown is not None:
            raise UsageError(
                "a growing cache is for one call after another with gradients: its rows are not chosen, copied or cut"
            )

    def _reserve(self, needed: int) -> None:
        capacity = self.valid_BS.shape[1]
        if needed <= capacity:
            return
        more = max(needed, capacity * 3 // 2) - capacity
        layers, two, batch, kv_heads, _, head_width = self.store.shape
        if self.grown is None:
            self.store = torch.cat((self.store, self.store.new_zeros(layers, two, batch, kv_heads, more, head_width)), 4)
        self.valid_BS = torch.cat((self.valid_BS, self.valid_BS.new_zeros(batch, more)), 1)
