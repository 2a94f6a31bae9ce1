"""SmolLM2 (Allal et al. 2025, arXiv:2502.02737): Llama's shape, small. The reference is `LlamaForCausalLM` of transformers."""

from pathlib import Path
from typing import Any

from torch import nn

from zoo.nn import Attention, Block, ByteTokenizer, Decoder, Gated, RMSNorm, Rotary, Stack
from zoo_smollm.tokenizer import open_tokenizer


def smollm(
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    vocabulary: int,
    context: int,
    theta: float,
    epsilon: float,
    tokenizer_path: Path | None = None,
) -> nn.Module:
    """Build the decoder with random weights; the head is the embedding.

    width: W. hidden: width inside the feed-forward. context: the most tokens it reads and writes together.
    theta, epsilon: of the rotary positions and of the norms.
    tokenizer_path: the GGUF file whose metadata hold the tokenizer. None: a token for each byte, where the vocabulary has
        room for them.
    """
    blocks = [
        Block(
            attention_norm=RMSNorm(width, epsilon=epsilon),
            attention=Attention(width, heads=heads, kv_heads=kv_heads),
            feed_forward_norm=RMSNorm(width, epsilon=epsilon),
            feed_forward=Gated(width, hidden, activation="silu"),
        )
        for _ in range(layers)
    ]
    tokenizer: Any = open_tokenizer(tokenizer_path) if tokenizer_path is not None else ByteTokenizer()
    return Decoder(
        embedding=nn.Embedding(vocabulary, width),
        stack=Stack(
            blocks,
            norm=RMSNorm(width, epsilon=epsilon),
            rotary=Rotary(width // heads, positions=context, theta=theta),
            causal=True,
        ),
        context=context,
        tokenizer=tokenizer if tokenizer.vocabulary <= vocabulary else None,
    )
