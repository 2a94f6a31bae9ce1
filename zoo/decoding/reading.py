"""Prompts into a decoder, then one token after another. Whoever replaces a decode step as a whole replaces `step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoo.errors import PluginError, UsageError
from zoo.models.contracts import Decoder
from zoo.models.fusion.fused import Media
from zoo.models.fusion.media_cache import MediaCache
from zoo.nn.cache import Cache


def batch_of(
    rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids of several lengths -> int[B, T], padded on the left, and the mask bool[B, T] (None when nothing is padded).

    Raises UsageError for no rows, and for a row without tokens.
    """
    if not rows or not all(rows):
        raise UsageError("every row needs at least one token, as the decoder's start token for an empty prompt")
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    if int(lengths_B.min()) == longest:
        return tokens_BT, None
    return tokens_BT, torch.arange(longest, device=device) >= longest - lengths_B[:, None]


def prefill(
    decoder: Decoder,
    tokens_BT: torch.Tensor,
    cache: Cache,
    *,
    mask_BT: torch.Tensor | None = None,
    media: Media | None = None,
    media_cache: MediaCache | None = None,
) -> torch.Tensor:
    """Read prompts, int[B, T], into the cache; returns the logits after the last real token of each row, float32[B, V].

    mask_BT: True where a token is real, padded on either side; None: all are.
    media, media_cache: as `zoo.models.fusion.fused.Fused.forward` takes them, for a decoder that has senses.
    """
    batch, count = tokens_BT.shape
    if mask_BT is None:
        last_B1 = torch.full((batch, 1), count - 1, device=tokens_BT.device)
    else:
        last_B1 = (torch.arange(count, device=tokens_BT.device) * mask_BT).argmax(1, keepdim=True)
    seen = {"media": media, "media_cache": media_cache} if media is not None and any(media) else {}
    logits_B1V: torch.Tensor = _call(decoder)(tokens_BT, mask_BT=mask_BT, cache=cache, at_BN=last_B1, **seen)
    return checked_logits(logits_B1V[:, 0].float())


def step(decoder: Decoder, tokens_B: torch.Tensor, cache: Cache) -> torch.Tensor:
    """One more token for each row, int[B] -> the logits of the next, float32[B, V]. A decoder that has `one_step` is asked that."""
    at_once = getattr(decoder, "one_step", None)
    if at_once is not None:
        return checked_logits(at_once(tokens_B, cache))
    logits_B1V: torch.Tensor = _call(decoder)(tokens_B[:, None], cache=cache)
    return checked_logits(logits_B1V[:, -1].float())


def checked_logits(logits: torch.Tensor) -> torch.Tensor:
    """The logits float[..., V] if they say something: tokens may be ruled out by -inf, but not all, and nothing is NaN or +inf.

    Raises PluginError.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise PluginError("the decoder gave NaN or infinity as the logits of a token")
    return logits


def ends_of(decoder: Decoder) -> tuple[int, ...]:
    """The tokens that end an answer. Raises PluginError for one outside the vocabulary."""
    ends = tuple(decoder.tokenizer.end_ids) if decoder.tokenizer is not None else ()
    outside = [token for token in ends if not 0 <= token < decoder.vocabulary]
    if outside:
        raise PluginError(f"the tokenizer ends answers with token {outside[0]}, the vocabulary has {decoder.vocabulary}")
    return ends


def device_of(decoder: Decoder) -> torch.device:
    """Where a decoder reads its tokens: where its parameters or buffers lie."""
    module: Any = decoder
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return torch.device(tensor.device)
    return torch.device("cpu")


def _call(decoder: Decoder) -> Any:
    """The decoder as the module that it is, so that hooks on it run."""
    return decoder
