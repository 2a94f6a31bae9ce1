"""What the decoder knows while it writes: the windows that it hears, computed once, and the tokens that it has written so far.

Several rows may write about one window (beams, or samples to choose from). The window's keys and values are then kept once, and the
rows ask them as if they were one row of several tokens, so that reordering beams moves no window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from zoo.nn import Attention, Decoder, refuse_virtual_tokens

Pair = tuple[torch.Tensor, torch.Tensor]  # scaled keys float[B, H, K, S] and values float[B, H, S, K]


class Heard:
    """B windows as every layer of the decoder reads them: made once, however often they are decoded."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)

    @property
    def windows(self) -> int:
        return len(self.pairs[0][0])

    def chosen(self, windows: Sequence[int]) -> Heard:
        """These of the windows, in this order."""
        if list(windows) == list(range(self.windows)):
            return self
        rows = torch.tensor(list(windows), device=self.pairs[0][0].device)
        return Heard([(key.index_select(0, rows), value.index_select(0, rows)) for key, value in self.pairs])


def hear(decoder: Decoder, features_BSD: torch.Tensor) -> Heard:
    """Features of B windows, float[B, S, D] -> keys and values for each layer. Raises UsageError for an adapter of virtual tokens."""
    refuse_virtual_tokens(decoder)
    return Heard([_source_pair(block.cross_attention, features_BSD) for block in decoder.stack.blocks])


class Writing:
    """R rows of tokens, R / B of them for each window; `read` adds tokens, `select` reorders rows within their windows.

    Keys and values lie in memory that is taken once, for `capacity` tokens.
    """

    def __init__(self, decoder: Decoder, heard: Heard, *, rows: int, capacity: int) -> None:
        first: Any = decoder.stack.blocks[0].attention
        self.decoder, self.heard, self.length = decoder, heard, 0
        example = heard.pairs[0][0]
        self.store = example.new_empty(decoder.layers, 2, rows, first.kv_heads, capacity, first.head_width)

    @property
    def rows(self) -> int:
        return self.store.shape[2]

    def read(self, tokens_RT: torch.Tensor, *, watched: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Tokens int[R, T] after those before -> what the head reads, float[R, T, D].

        The first call may bring many tokens, a later one brings one for each row.
        watched: receives, for the layers that are its keys, the scores before the softmax of every head over the window,
            float[R, H, T, S].
        """
        decoder, count = self.decoder, tokens_RT.shape[1]
        positions: Any = decoder.position_embedding
        places = torch.arange(self.length, self.length + count, device=tokens_RT.device)
        tokens = decoder.embedding(tokens_RT) + positions(places)
        filled = slice(self.length, self.length + count)
        for layer, block in enumerate(decoder.stack.blocks):
            part: Any = block
            query, key, value = _own(part.attention, part.attention_norm(tokens))
            keys, values = self.store[layer].unbind(0)
            keys[:, :, filled], values[:, :, filled] = key, value
            seen = slice(0, filled.stop)
            mixed = scaled_dot_product_attention(query, keys[:, :, seen], values[:, :, seen], is_causal=count > 1)
            tokens = tokens + part.attention.output(mixed.transpose(1, 2).flatten(2))
            asked = part.cross_attention.query(part.cross_norm(tokens))
            if watched is not None and layer in watched:
                watched[layer] = self._scores(asked, part.cross_attention, layer)
            tokens = tokens + part.cross_attention.output(self._over_window(asked, part.cross_attention, layer))
            tokens = tokens + part.feed_forward(part.feed_forward_norm(tokens))
        self.length = filled.stop
        features: torch.Tensor = decoder.stack.norm(tokens)  # type: ignore[misc]  # Whisper's stack has a norm
        return features

    def select(self, rows: Sequence[int]) -> None:
        """Rows in this order; each must stay with its window."""
        if list(rows) != list(range(self.rows)):
            index = torch.tensor(list(rows), device=self.store.device)
            seen = slice(0, self.length)
            self.store[:, :, :, :, seen] = self.store[:, :, :, :, seen].index_select(2, index)

    def keep(self, windows: Sequence[int]) -> None:
        """Go on with these windows alone."""
        each = self.rows // self.heard.windows
        rows = [window * each + number for window in windows for number in range(each)]
        self.heard = self.heard.chosen(windows)
        self.store = self.store.index_select(2, torch.tensor(rows, device=self.store.device))

    def _grouped(self, asked_RTD: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Queries of R rows -> of B windows, those of a window's rows after one another, float[B, H, R/B * T, K]."""
        return attention.split(asked_RTD.reshape(self.heard.windows, -1, asked_RTD.shape[-1]), attention.heads)

    def _over_window(self, asked_RTD: torch.Tensor, attention: Attention, layer: int) -> torch.Tensor:
        key, value = self.heard.pairs[layer]
        mixed = (self._grouped(asked_RTD, attention) @ key).softmax(-1) @ value
        return mixed.transpose(1, 2).reshape(asked_RTD.shape)

    def _scores(self, asked_RTD: torch.Tensor, attention: Attention, layer: int) -> torch.Tensor:
        key_BHKS = self.heard.pairs[layer][0]
        query_RHTK = attention.split(asked_RTD, attention.heads).float()
        return query_RHTK @ key_BHKS.float().repeat_interleave(self.rows // self.heard.windows, 0)


def _own(attention: Any, tokens_RTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of the tokens themselves, float[R, H, T, K] each."""
    if attention.query_key_value is not None:
        joined = attention.split(attention.query_key_value(tokens_RTD), 3 * attention.heads)
        query, key, value = joined.chunk(3, 1)
        return query, key, value
    return (
        attention.split(attention.query(tokens_RTD), attention.heads),
        *attention.keys_and_values(tokens_RTD),
    )


def _source_pair(attention: Any, features_BSD: torch.Tensor) -> Pair:
    """Keys and values of a window, as a few queries at a time read them fastest."""
    key, value = attention.keys_and_values(features_BSD)
    return (key * attention.scale).transpose(-1, -2).contiguous(), value.contiguous()
