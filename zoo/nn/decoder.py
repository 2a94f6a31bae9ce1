"""The decoder: token ids -> the logits of the token that comes next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.nn.cache import Cache
from zoo.nn.extension import begin, during
from zoo.nn.mixture import Routing
from zoo.nn.stack import BeforeLayer, Reading, Stack, token_positions

Inserted = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows int[N], columns int[N], what stands there float[N, W]


class Decoder(nn.Module):
    """A causal language model: embedding, blocks, norm, and a head that may be the embedding again (Press and Wolf 2016,
    arXiv:1608.05859).

    context: the most tokens that it can read and write together.
    one_step: one token of each row at once, int[B] and a cache -> float32[B, V], where a kernel brought such a step
        (`zoo.nn.kernels.step.DecodeStep`); None: `forward` does it.
    step: what answers calls with a cache in place of the modules, where a kernel brought it and it takes the call (`zoo.nn.kernels.contract.Step`).
    tokenizer: text to ids and back (`zoo.api.Tokenizer`), where there is one.
    """

    def __init__(
        self,
        *,
        embedding: nn.Embedding,
        stack: Stack,
        context: int,
        head: nn.Module | None = None,
        position_embedding: nn.Module | None = None,
        embedding_norm: nn.Module | None = None,
        logit_scale: float = 1.0,
        tokenizer: Any = None,
    ) -> None:
        """head: width -> vocabulary; None: the embedding. position_embedding: positions -> what is added to the tokens.

        logit_scale: factor of what reaches the head (T5 divides by the root of its width).
        """
        super().__init__()
        self.embedding: Any = embedding  # a kernel may put its own in place of it
        self.position_embedding = position_embedding
        self.embedding_norm = embedding_norm
        self.stack = stack
        self.head = head
        self.logit_scale = logit_scale
        self.context = context
        self.tokenizer = tokenizer
        self.one_step: Callable[..., torch.Tensor] | None = None
        self.step: Any = None

    @property
    def vocabulary(self) -> int:
        return int(self.embedding.num_embeddings)

    @property
    def width(self) -> int:
        return int(self.embedding.embedding_dim)

    @property
    def layers(self) -> int:
        return len(self.stack.blocks)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        return self.stack.new_cache(batch, capacity)

    def forward(
        self,
        tokens_BT: torch.Tensor,
        *,
        mask_BT: torch.Tensor | None = None,
        cache: Cache | None = None,
        at_BN: torch.Tensor | None = None,
        source_BSD: torch.Tensor | None = None,
        source_mask_BS: torch.Tensor | None = None,
        routing: list[Routing] | None = None,
        before_layer: BeforeLayer | None = None,
        inserted: Inserted | None = None,
    ) -> torch.Tensor:
        """int[B, T] -> logits float[B, T, V], or float[B, N, V] of the tokens at the indices int[B, N] of `at_BN` alone.

        cache: what was read before (`new_cache`); these tokens come after it and are added to it.
        mask_BT, source_BSD, source_mask_BS, routing, before_layer: see `zoo.nn.stack.Reading`.
        inserted: what stands in place of the embedding of some tokens (rows, columns, float[N, W]): their ids mean nothing.
        Raises UsageError for ids outside the vocabulary and for more than `context` tokens.
        """
        if self.step is not None and self.step.takes(
            cache,
            source_BSD=source_BSD,
            source_mask_BS=source_mask_BS,
            routing=routing,
            before_layer=before_layer,
            inserted=inserted,
        ):
            stepped_BTV: torch.Tensor = self.step(tokens_BT, cache, mask_BT=mask_BT, at_BN=at_BN)
            return stepped_BTV
        cache = begin(self, len(tokens_BT), cache)
        with during(self, cache):
            reading = Reading(
                mask_BT=mask_BT,
                cache=cache,
                source_BSD=source_BSD,
                source_mask_BS=source_mask_BS,
                routing=routing,
                before_layer=before_layer,
            )
            features_BTW = self.features(tokens_BT, reading, inserted=inserted)
            if at_BN is not None:
                features_BTW = features_BTW.gather(1, at_BN[:, :, None].expand(-1, -1, features_BTW.shape[-1]))
            return self.logits(features_BTW)

    def features(self, tokens_BT: torch.Tensor, reading: Reading, *, inserted: Inserted | None = None) -> torch.Tensor:
        """What the head reads, float[B, T, W]. inserted: as `forward` takes it, which also asks what stands on the model."""
        mask_BT, cache = reading.mask_BT, reading.cache
        check_tokens(tokens_BT, mask_BT, self.vocabulary)
        batch, count = tokens_BT.shape
        if cache is None:
            positions_BT = token_positions(mask_BT, batch, count, tokens_BT.device)
        else:
            if cache.batch != batch:
                raise UsageError(f"the cache has {cache.batch} rows, the tokens have {batch}")
            check_room(cache, count, mask_BT, self.context)
            positions_BT = cache.begin(count, mask_BT)
        if cache is None and count > self.context and int(positions_BT.max()) >= self.context:
            raise UsageError(f"the model reads at most {self.context} tokens, got {int(positions_BT.max()) + 1}")
        tokens_BTW = self.embedding(tokens_BT)
        if inserted is not None:
            rows_N, columns_N, values_NW = inserted
            tokens_BTW = tokens_BTW.index_put((rows_N, columns_N), values_NW.to(tokens_BTW.dtype))
        if cache is not None and cache.grown is None and tokens_BTW.requires_grad:
            raise UsageError("a cache is filled in place, which no gradient survives: use torch.inference_mode() with it")
        if self.position_embedding is not None:
            tokens_BTW = tokens_BTW + self.position_embedding(positions_BT)
        if self.embedding_norm is not None:
            tokens_BTW = self.embedding_norm(tokens_BTW)
        features_BTW: torch.Tensor = self.stack(tokens_BTW, positions_BT, reading)
        return features_BTW

    def logits(self, features_BTW: torch.Tensor) -> torch.Tensor:
        """float[..., W] -> float[..., V]."""
        scaled = features_BTW if self.logit_scale == 1.0 else features_BTW * self.logit_scale
        if self.head is not None:
            logits_BTV: torch.Tensor = self.head(scaled)
            return logits_BTV
        tied: torch.Tensor = self.embedding.weight  # a kernel that rounds it gives the head its own
        return nn.functional.linear(scaled, tied)


def check_room(cache: Cache, count: int, mask_BT: torch.Tensor | None, context: int) -> None:
    """Raise UsageError, before the cache is touched, when `count` more tokens make a row longer than the context."""
    if cache.length + count <= context:
        return
    new_B = torch.full_like(cache.counts_B, count) if mask_BT is None else mask_BT.sum(1)
    longest = int((cache.counts_B + new_B).max())
    if longest > context:
        raise UsageError(f"the model reads at most {context} tokens, got {longest}")


def check_tokens(tokens_BT: torch.Tensor, mask_BT: torch.Tensor | None, vocabulary: int) -> None:
    """Raise UsageError unless tokens are int[B, T] inside the vocabulary and the mask fits them."""
    if tokens_BT.ndim != 2 or tokens_BT.dtype not in (torch.int64, torch.int32):
        raise UsageError(f"tokens must be int[B, T], got {tokens_BT.dtype}{list(tokens_BT.shape)}")
    if mask_BT is not None and (mask_BT.shape != tokens_BT.shape or mask_BT.dtype != torch.bool):
        raise UsageError(
            f"mask must be bool{list(tokens_BT.shape)} as the tokens are, got {mask_BT.dtype}{list(mask_BT.shape)}"
        )
    if tokens_BT.numel():
        low, high = torch.aminmax(tokens_BT)
        if int(low) < 0 or int(high) >= vocabulary:
            raise UsageError(f"token ids must be from 0 to {vocabulary - 1}, got {int(low if int(low) < 0 else high)}")
