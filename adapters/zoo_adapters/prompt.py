"""Prompt tuning: embeddings that a decoder reads before those of the tokens (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

import torch
from torch import nn

from zoo.api import Adapter, Base, UsageError


class SoftPrompt(nn.Module):
    """float[P, W]."""

    def __init__(self, table_PW: torch.Tensor) -> None:
        super().__init__()
        self.count = len(table_PW)
        self.table = nn.Parameter(table_PW)

    def embeddings(self) -> torch.Tensor:
        """As `zoo.api.Virtual`."""
        return self.table


def prompt(base: Base, *, count: int = 20, text: str | None = None) -> Adapter:
    """Prompt tuning of a decoder.

    count: tokens of the prompt. text: what it begins as, repeated or cut to `count` tokens; None: random numbers.
    Raises UsageError for a model without a decoder, a count below 1, and a text of no token.
    """
    base.require_decoder("prompt tuning")
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")
    if text is None:
        return Adapter(virtual=SoftPrompt(torch.randn(count, base.width, device=base.device)), learning_rate=5e-2)
    if base.embed is None:
        raise UsageError("the decoder has no tokenizer, so no prompt begins as a text: leave it out for random numbers")
    words_TW = base.embed(text)
    if not len(words_TW):
        raise UsageError("the text that the prompt begins as has no token")
    repeats = -(-count // len(words_TW))
    return Adapter(virtual=SoftPrompt(words_TW.float().repeat(repeats, 1)[:count].clone()), learning_rate=5e-2)
