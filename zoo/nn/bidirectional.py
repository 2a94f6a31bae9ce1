"""Bidirectional models: every token sees every other. With a head they fill in masked tokens, without they encode."""

from __future__ import annotations

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.nn.decoder import check_tokens
from zoo.nn.mixture import Routing
from zoo.nn.stack import Reading, Stack, token_positions


class Bidirectional(nn.Module):
    """Embedding, blocks that see both ways, and a head where one is given (BERT: Devlin et al. 2018, arXiv:1810.04805).

    token_types: embedding of which sentence a token belongs to, where there is one; all are of type 0 unless said.
    """

    def __init__(
        self,
        *,
        embedding: nn.Embedding,
        stack: Stack,
        context: int,
        head: nn.Module | None = None,
        position_embedding: nn.Module | None = None,
        token_types: nn.Embedding | None = None,
        embedding_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.position_embedding = position_embedding
        self.token_types = token_types
        self.embedding_norm = embedding_norm
        self.stack = stack
        self.head = head
        self.context = context

    def features(
        self,
        tokens_BT: torch.Tensor,
        *,
        mask_BT: torch.Tensor | None = None,
        types_BT: torch.Tensor | None = None,
        routing: list[Routing] | None = None,
    ) -> torch.Tensor:
        """int[B, T] -> float[B, T, W]; what stands where `mask_BT` is False means nothing. routing: see `zoo.nn.stack.Reading`.

        Raises UsageError for ids outside the vocabulary and for more than `context` tokens.
        """
        check_tokens(tokens_BT, mask_BT, self.embedding.num_embeddings)
        batch, count = tokens_BT.shape
        if count > self.context:
            raise UsageError(f"the model reads at most {self.context} tokens, got {count}")
        positions_BT = token_positions(mask_BT, batch, count, tokens_BT.device)
        tokens_BTW = self.embedding(tokens_BT)
        if self.token_types is not None:
            tokens_BTW = tokens_BTW + self.token_types(torch.zeros_like(tokens_BT) if types_BT is None else types_BT)
        if self.position_embedding is not None:
            tokens_BTW = tokens_BTW + self.position_embedding(positions_BT)
        if self.embedding_norm is not None:
            tokens_BTW = self.embedding_norm(tokens_BTW)
        features_BTW: torch.Tensor = self.stack(tokens_BTW, positions_BT, Reading(mask_BT=mask_BT, routing=routing))
        return features_BTW

    def forward(
        self, tokens_BT: torch.Tensor, *, mask_BT: torch.Tensor | None = None, types_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `features`, through the head where there is one: float[B, T, V]."""
        features_BTW = self.features(tokens_BT, mask_BT=mask_BT, types_BT=types_BT)
        return features_BTW if self.head is None else self.head(features_BTW)
