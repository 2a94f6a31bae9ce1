"""Small decoders with random weights and a vocabulary of any size, for tests of what is done with decoders."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.nn.attention import Attention
from zoo.nn.block import Block
from zoo.nn.decoder import Decoder
from zoo.nn.feed_forward import Dense, Gated
from zoo.nn.mixture import Mixture
from zoo.nn.norm import RMSNorm
from zoo.nn.positions import Alibi, LearnedPositions, Rotary
from zoo.nn.stack import Stack


class LetterTokenizer:
    """One token for each byte below `vocabulary`; the last is the end and the one before the start."""

    chat = None

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.start_id: int | None = vocabulary - 2
        self.end_ids: tuple[int, ...] = (vocabulary - 1,)

    def encode(self, text: str) -> list[int]:
        return [byte % (self.vocabulary - 2) for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return b"" if token >= self.vocabulary - 2 else bytes([token])


def tiny_decoder(
    *,
    seed: int = 0,
    vocabulary: int = 258,
    width: int = 24,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 2,
    context: int = 96,
    positions: str = "rotary",
    experts: int = 0,
    capacity_factor: float | None = None,
    end: bool = True,
    sharpness: float = 1.0,
) -> Decoder:
    """positions: rotary, alibi or learned. end: whether generation ever ends by itself. sharpness: scales the logits."""
    torch.manual_seed(seed)
    tokenizer: Any = LetterTokenizer(vocabulary)
    if not end:
        tokenizer.end_ids = ()

    def feed_forward() -> nn.Module:
        if experts:
            return Mixture(width, [Dense(width, 2 * width) for _ in range(experts)], capacity_factor=capacity_factor)
        return Gated(width, 2 * width)

    blocks = [
        Block(
            attention_norm=RMSNorm(width),
            attention=Attention(width, heads=heads, kv_heads=kv_heads),
            feed_forward_norm=RMSNorm(width),
            feed_forward=feed_forward(),
        )
        for _ in range(layers)
    ]
    head = nn.Linear(width, vocabulary, bias=False)  # of its own: a tied one answers with the token that it just read
    nn.init.normal_(head.weight, std=width**-0.5)
    return Decoder(
        embedding=nn.Embedding(vocabulary, width),
        head=head,
        stack=Stack(
            blocks,
            norm=RMSNorm(width),
            rotary=Rotary(width // heads, positions=context) if positions == "rotary" else None,
            position_bias=Alibi(heads) if positions == "alibi" else None,
            causal=True,
        ),
        context=context,
        position_embedding=LearnedPositions(context, width) if positions == "learned" else None,
        logit_scale=sharpness,
        tokenizer=tokenizer,
    ).eval()
