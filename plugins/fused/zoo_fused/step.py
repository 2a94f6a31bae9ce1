"""A decoder whose layers are in blocks, read and written by one native call for each pass: `fused_step`.

The weights move into one arena, in the order in which a pass reads them, and the layers keep views of it: nothing is held twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.api import UsageError
from zoo.nn import Cache, Decoder, Unchanged
from zoo_fused import ops
from zoo_fused.native import PYTORCH, chosen_isa
from zoo_fused.plan import Arena, Shape, lay_out, shape_of

EXTENSION = "zoo_extension"  # what stands on a decoder, by the attribute that `zoo.nn.extension` names


class FusedStep:
    """Tokens int[B, T] and a cache -> logits, as `Decoder.forward`; made by `fused_step`.

    T may be 1 or thousands; long prompts are read in chunks. Results do not depend on the number of threads.
    """

    def __init__(self, decoder: Decoder, shape: Shape, arena: Arena) -> None:
        self.decoder, self.shape, self.arena = decoder, shape, arena
        self.hooks = [hooks for part in decoder.modules() for hooks in (part._forward_hooks, part._forward_pre_hooks)]  # noqa: SLF001 - torch names them nowhere else
        self.parameters = list(decoder.parameters())
        self.unchanged = Unchanged(decoder, writes=False)
        rotary: Any = decoder.stack.rotary
        self.cosine: torch.Tensor | None = None if rotary is None else rotary.cosine_PK
        self.sine: torch.Tensor | None = None if rotary is None else rotary.sine_PK
        positions: Any = decoder.position_embedding
        self.table = None if positions is None else positions.table.weight.detach()

    def takes(self, cache: Cache | None, /, **others: object) -> bool:
        """Whether a call can be answered here. others: its other arguments, of which only `mask_BT` and `at_BN` may be more than None.

        It cannot: without a cache, with one that grows for gradients or has a source, with hooks or an extension on the
        decoder or a part that is another than the one that was laid out, with something before layers or in place of embeddings, and where gradients are wanted.
        """
        if cache is None or cache.grown is not None or cache.source or cache.selection is not None:
            return False
        if any(value is not None for name, value in others.items() if name not in ("mask_BT", "at_BN")):
            return False
        if not self.unchanged or any(self.hooks) or cache.store.dtype != torch.float32 or cache.store.device.type != "cpu":
            return False
        extension = self.decoder.__dict__.get(EXTENSION)
        if extension is not None and extension.names:
            return False
        return not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters))

    def __call__(
        self,
        tokens_BT: torch.Tensor,
        cache: Cache,
        /,
        *,
        mask_BT: torch.Tensor | None = None,
        at_BN: torch.Tensor | None = None,
        before_layer: Any = None,
    ) -> torch.Tensor:
        """int[B, T] -> float32[B, T, V], or float32[B, N, V] of the tokens at the indices int[B, N] of `at_BN`.

        They come after what the cache holds and are added to it. Raises UsageError as `Decoder.forward` does, and for a call
        that `takes` denies.
        """
        if not self.takes(cache, before_layer=before_layer):
            raise UsageError("this call is none for a fused step: ask `takes` first, and let the decoder's modules answer")
        self._check(tokens_BT, mask_BT, at_BN, cache)
        start = cache.length
        positions_BT = cache.begin(tokens_BT.shape[1], mask_BT)
        self.arena.refresh()
        logits_BNV: torch.Tensor = ops.step(
            tokens_BT.long(),
            cache.store,
            self.arena.memory,
            self.arena.plan,
            self.arena.numbers,
            positions_BT,
            cache.valid_BS if cache.ragged else None,
            None if at_BN is None else at_BN.long(),
            self.cosine,
            self.sine,
            self.table,
            start,
            self.shape.vocabulary,
        )
        return logits_BNV

    def _check(
        self, tokens_BT: torch.Tensor, mask_BT: torch.Tensor | None, at_BN: torch.Tensor | None, cache: Cache
    ) -> None:
        """Before the cache is touched. What the native function checks again, it would say with the cache begun."""
        if tokens_BT.ndim != 2 or tokens_BT.dtype not in (torch.int64, torch.int32) or 0 in tokens_BT.shape:
            raise UsageError(f"tokens must be int[B, T], got {tokens_BT.dtype}{list(tokens_BT.shape)}")
        batch, count = tokens_BT.shape
        if mask_BT is not None and (mask_BT.shape != tokens_BT.shape or mask_BT.dtype != torch.bool):
            raise UsageError(
                f"mask must be bool{[batch, count]} as the tokens are, got {mask_BT.dtype}{list(mask_BT.shape)}"
            )
        _within("token ids", tokens_BT, self.shape.vocabulary)
        if at_BN is not None:
            if at_BN.ndim != 2 or len(at_BN) != batch or at_BN.dtype not in (torch.int64, torch.int32):
                raise UsageError(f"indices must be int[{batch}, N], got {at_BN.dtype}{list(at_BN.shape)}")
            _within("indices of tokens", at_BN, count)
        layers, _, rows, heads, _, width = cache.store.shape
        if rows != batch:
            raise UsageError(f"the cache has {rows} rows, the tokens have {batch}")
        if (layers, heads, width) != (self.shape.layers, self.shape.kv_heads, self.shape.head_width):
            raise UsageError(f"the cache is of another model: {layers} layers with {heads} heads of {width}")
        if cache.length + count > self.decoder.context:
            new_B = torch.full_like(cache.counts_B, count) if mask_BT is None else mask_BT.sum(1)
            longest = int((cache.counts_B + new_B).max())
            if longest > self.decoder.context:
                raise UsageError(f"the model reads at most {self.decoder.context} tokens, got {longest}")


def _within(what: str, numbers: torch.Tensor, end: int) -> None:
    if not numbers.numel():
        return
    low, high = torch.aminmax(numbers)
    if int(low) < 0 or int(high) >= end:
        raise UsageError(f"{what} must be from 0 to {end - 1}, got {int(low if int(low) < 0 else high)}")


def fused_step(decoder: nn.Module) -> FusedStep | None:
    """The step of a decoder whose linear layers and table are in blocks; None where its shape is not known here, or there is
    no shared object.
    """
    if not isinstance(decoder, Decoder) or chosen_isa() == PYTORCH:
        return None
    shape = shape_of(decoder)
    return None if shape is None else FusedStep(decoder, shape, lay_out(decoder, shape))
