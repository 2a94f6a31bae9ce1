"""A decoder that reads, by cross-attention, what a bidirectional encoder made of another text."""

from __future__ import annotations

import torch
from torch import nn

from zoo.nn.bidirectional import Bidirectional
from zoo.nn.cache import Cache
from zoo.nn.decoder import Decoder
from zoo.nn.mixture import Routing


class EncoderDecoder(nn.Module):
    """T5's shape (Raffel et al. 2019, arXiv:1910.10683). `decoder`'s blocks have cross-attention."""

    def __init__(self, *, encoder: Bidirectional, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(
        self,
        source_BS: torch.Tensor,
        tokens_BT: torch.Tensor,
        *,
        source_mask_BS: torch.Tensor | None = None,
        mask_BT: torch.Tensor | None = None,
        cache: Cache | None = None,
        routing: list[Routing] | None = None,
    ) -> torch.Tensor:
        """Source ids int[B, S] and target ids int[B, T] -> logits of the next target token, float[B, T, V].

        With a cache (`decoder.new_cache`) the source is encoded at the first call alone; its mask is needed at each.
        routing: a list to which the mixtures of the encoder, then those of the decoder, append what they did.
        """
        known = cache is not None and bool(cache.source)
        encoded_BSD = None if known else self.encoder.features(source_BS, mask_BT=source_mask_BS, routing=routing)
        logits_BTV: torch.Tensor = self.decoder(
            tokens_BT,
            mask_BT=mask_BT,
            cache=cache,
            source_BSD=encoded_BSD,
            source_mask_BS=source_mask_BS,
            routing=routing,
        )
        return logits_BTV
