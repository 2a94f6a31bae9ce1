"""BERT (Devlin et al. 2018, arXiv:1810.04805): a masked language model, and the encoder below its head.

The reference is `BertForMaskedLM` of transformers. Positions count real tokens, so padding on the left changes nothing; there
they count slots unless `position_ids` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import gelu

from zoo.api import Encoded, UsageError
from zoo.nn import END, START, Attention, Bidirectional, Block, ByteTokenizer, Dense, LearnedPositions, Stack
from zoo_lm import renaming
from zoo_lm.checks import require_positive
from zoo_lm.renaming import State

NAMES = {
    "bert.embeddings.word_embeddings": "embedding",
    "bert.embeddings.position_embeddings": "position_embedding.table",
    "bert.embeddings.token_type_embeddings": "token_types",
    "bert.embeddings.LayerNorm": "embedding_norm",
    "bert.encoder.layer.*.attention.self.query": "stack.blocks.*.attention.query",
    "bert.encoder.layer.*.attention.self.key": "stack.blocks.*.attention.key",
    "bert.encoder.layer.*.attention.self.value": "stack.blocks.*.attention.value",
    "bert.encoder.layer.*.attention.output.dense": "stack.blocks.*.attention.output",
    "bert.encoder.layer.*.attention.output.LayerNorm": "stack.blocks.*.attention_norm",
    "bert.encoder.layer.*.intermediate.dense": "stack.blocks.*.feed_forward.up",
    "bert.encoder.layer.*.output.dense": "stack.blocks.*.feed_forward.down",
    "bert.encoder.layer.*.output.LayerNorm": "stack.blocks.*.feed_forward_norm",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.decoder": "head.output",
}
# What the published files hold beside it: position numbers, and the head that told whether two sentences are neighbours.
OTHERS = r"(bert\.)?(embeddings\.position_ids|pooler\.dense\.(weight|bias))|cls\.seq_relationship\.(weight|bias)"
MODERN = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")


class MaskedHead(nn.Module):
    """Features -> logits of the token that a mask hides; the last layer is the embedding and a bias."""

    def __init__(self, embedding: nn.Embedding, *, epsilon: float) -> None:
        super().__init__()
        vocabulary, width = embedding.weight.shape
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.output = nn.Linear(width, vocabulary)
        self.output.weight = embedding.weight

    def forward(self, features_BTW: torch.Tensor) -> torch.Tensor:
        """float[B, T, W] -> float[B, T, V]."""
        logits_BTV: torch.Tensor = self.output(self.norm(gelu(self.dense(features_BTW))))
        return logits_BTV


def build(
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    context: int,
    token_types: int = 2,
    epsilon: float = 1e-12,
    masked_head: bool = True,
) -> Bidirectional:
    """The model with random weights.

    width: W. hidden: width inside the feed-forward. context: the number of its positions. token_types: kinds of sentence.
    epsilon: of the norms. masked_head: False for the features alone.
    Raises UsageError for numbers that contradict each other.
    """
    require_positive(
        layers=layers, heads=heads, hidden=hidden, vocabulary=vocabulary, context=context, token_types=token_types
    )
    blocks = [
        Block(
            attention_norm=nn.LayerNorm(width, eps=epsilon),
            attention=Attention(width, heads=heads, bias=True),
            feed_forward_norm=nn.LayerNorm(width, eps=epsilon),
            feed_forward=Dense(width, hidden, activation="gelu"),
            post_norm=True,
        )
        for _ in range(layers)
    ]
    embedding = nn.Embedding(vocabulary, width)
    return Bidirectional(
        embedding=embedding,
        position_embedding=LearnedPositions(context, width),
        token_types=nn.Embedding(token_types, width),
        embedding_norm=nn.LayerNorm(width, eps=epsilon),
        stack=Stack(blocks, norm=None, causal=False),
        head=MaskedHead(embedding, epsilon=epsilon) if masked_head else None,
        context=context,
    )


def from_transformers(state: State) -> dict[str, torch.Tensor]:
    """Names of `BertForMaskedLM`, or of a file without "bert." or a head, -> ours.

    The last layer of the head has a key of its own on both sides; where a file leaves it out it is the embedding. Its bias has
    two keys there and one here. "gamma" and "beta" of the oldest files are a norm's weight and bias.
    """
    modern = {OLD_NORM.sub(lambda name: MODERN[name[0]], key): tensor for key, tensor in state.items()}
    modern = renaming.add_tied(modern, "cls.predictions.decoder.bias", "cls.predictions.bias")
    modern = renaming.drop_tied(modern, "cls.predictions.bias", "cls.predictions.decoder.bias")
    ours = renaming.rename(renaming.without(modern, OTHERS), renaming.with_bare_names(NAMES, "bert."))
    return renaming.add_tied(ours, "head.output.weight", "embedding.weight") if "head.output.bias" in ours else ours


def to_transformers(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those of `BertForMaskedLM`, both keys of the head's bias included."""
    theirs = renaming.rename(state, renaming.inverted(NAMES))
    return renaming.add_tied(theirs, "cls.predictions.bias", "cls.predictions.decoder.bias")


class BertEncoder(nn.Module):
    """The features of texts, a token for each byte between a start and an end (`zoo.api.Encoder`)."""

    def __init__(self, model: Bidirectional) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = ByteTokenizer()

    def preprocess(self, items: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts -> ids int[B, T] and mask bool[B, T], cut at the model's context, padded on the right.

        Raises UsageError for anything that is not a list of valid texts.
        """
        if isinstance(items, str):
            raise UsageError("preprocess takes a list of texts, got a single str: pass [text]")
        room = self.model.context - 2
        rows = [torch.tensor([START, *self.tokenizer.encode(item)[:room], END]) for item in items]
        lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.long)
        mask_BT = torch.arange(max(map(len, rows), default=0)) < lengths_B[:, None]
        ids_BT = torch.full(mask_BT.shape, END)
        ids_BT[mask_BT] = torch.cat(rows) if rows else ids_BT.flatten()
        return ids_BT, mask_BT

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(ids int[B, T], mask bool[B, T]) -> tokens float[B, T, D], mask, and the mean over real tokens float[B, D]."""
        ids_BT, mask_BT = (tensor.to(self.model.embedding.weight.device) for tensor in inputs)
        tokens_BTD = self.model.features(ids_BT, mask_BT=mask_BT) * mask_BT[..., None]
        return Encoded(tokens_BTD, mask_BT, tokens_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1))


def encoder(*, layers: int, width: int, heads: int, hidden: int, context: int) -> nn.Module:
    """`build` without its head, over bytes. Raises UsageError also for a context without room for text."""
    if context < 3:
        raise UsageError(f"context must leave room for a start, an end and some text, got {context}")
    vocabulary = ByteTokenizer.vocabulary
    model = build(
        layers=layers, width=width, heads=heads, hidden=hidden, vocabulary=vocabulary, context=context, masked_head=False
    )
    return BertEncoder(model)
