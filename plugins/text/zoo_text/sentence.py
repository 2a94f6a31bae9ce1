"""A BERT-shaped sentence encoder, mean-pooled (Reimers and Gurevych 2019, arXiv:1908.10084; BERT: arXiv:1810.04805).

Post-norm transformer with learned positions and the exact GELU, as the reference implementation's `BertModel` without its
pooler. The weights are all-MiniLM-L6-v2's (MiniLM: arXiv:2002.10957).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from zoo.batch import Encoded
from zoo.errors import UsageError

NORM_EPSILON = 1e-12

_OUTSIDE = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
}
_INSIDE = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "widen",
    "output.dense": "narrow",
    "output.LayerNorm": "narrow_norm",
}
# Not part of a sentence vector: a table of 0, 1, 2, ... and the head for BERT's next-sentence task.
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def sentence_encoder(
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    positions: int,
    max_tokens: int,
    tokenizer_path: Path | None = None,
) -> nn.Module:
    """Build the encoder with random weights; `tokenizer_path` is a `tokenizer.json`, needed for text but not for ids.

    max_tokens: longer sentences are cut there, as the published model does; at most `positions`.
    """
    tokenizer = None
    if tokenizer_path is not None:
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
        tokenizer.enable_truncation(max_tokens)
        tokenizer.no_padding()
    return SentenceEncoder(layers, width, heads, hidden, vocabulary, positions, tokenizer)


def from_bert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of a published BERT checkpoint -> ours."""
    renamed = {}
    for key, tensor in state.items():
        if key in _UNUSED:
            continue
        module, _, parameter = key.rpartition(".")
        if module.startswith("encoder.layer."):
            number, _, inner = module.removeprefix("encoder.layer.").partition(".")
            renamed[f"blocks.{number}.{_INSIDE.get(inner, inner)}.{parameter}"] = tensor
        else:
            renamed[f"{_OUTSIDE.get(module, module)}.{parameter}"] = tensor
    return renamed


class SentenceEncoder(nn.Module):
    """Sentences -> token features and their mean (not normalised)."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        vocabulary: int,
        positions: int,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.tokenizer = tokenizer

    def preprocess(self, items: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sentences -> ids int[B, T] and mask bool[B, T], padded to the longest of them."""
        if self.tokenizer is None:
            raise UsageError(
                "this text encoder was built without weights and has no tokenizer: build it with its weights, "
                "or pass tokenizer_path"
            )
        for item in items:
            if not isinstance(item, str):
                raise UsageError(f"a sentence is a str, got {type(item).__name__}")
        rows = [torch.tensor(encoding.ids) for encoding in self.tokenizer.encode_batch(list(items))]
        ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths_B = torch.tensor([len(row) for row in rows])
        return ids_BT, torch.arange(ids_BT.shape[1]) < lengths_B[:, None]

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(ids int[B, T], mask bool[B, T]) -> tokens float[B, T, D], pooled float[B, D] = mean over real tokens."""
        ids_BT, mask_BT = inputs
        ids_BT, mask_BT = ids_BT.to(self.words.weight.device), mask_BT.to(self.words.weight.device)
        tokens_BTD = self.words(ids_BT) + self.positions.weight[: ids_BT.shape[1]] + self.segments.weight[0]
        tokens_BTD = self.norm(tokens_BTD)
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD, mask_BT)
        weight_BT1 = mask_BT[..., None].to(tokens_BTD.dtype)
        pooled_BD = (tokens_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
        return Encoded(tokens_BTD, mask_BT, pooled_BD)


class Block(nn.Module):
    """Self-attention and feed-forward, each followed by the sum with its input and a LayerNorm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.narrow_norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, tokens_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """float[B, T, D], bool[B, T] -> float[B, T, D]."""
        batch, count, _ = tokens_BTD.shape
        query_BHTd, key_BHTd, value_BHTd = (
            project(tokens_BTD).view(batch, count, self.heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed_BHTd = scaled_dot_product_attention(query_BHTd, key_BHTd, value_BHTd, attn_mask=mask_BT[:, None, None, :])
        mixed_BTD = mixed_BHTd.transpose(1, 2).reshape(batch, count, -1)
        tokens_BTD = self.attended_norm(tokens_BTD + self.attended(mixed_BTD))
        return self.narrow_norm(tokens_BTD + self.narrow(gelu(self.widen(tokens_BTD))))
