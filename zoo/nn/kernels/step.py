"""One decode step as straight code: what the modules of a decoder do for one more token of each row, without their calls.

At one token a step most of the time goes into Python and into small operations, not into the weights. For the plainest shape
(norms before, rotary positions, a gated feed-forward, projections joined by a kernel) everything that does not depend on the token
is looked up once. Any other decoder has no such step, and its modules are called as ever. The numbers are the modules' own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from zoo.nn.attention import Attention
from zoo.nn.block import Block
from zoo.nn.cache import Cache
from zoo.nn.decoder import Decoder, check_room, check_tokens
from zoo.nn.extension import ATTRIBUTE, begin, during
from zoo.nn.feed_forward import Gated
from zoo.nn.kernels.seam import is_kernel_linear
from zoo.nn.norm import RMSNorm
from zoo.nn.stack import BeforeLayer, Stack
from zoo.nn.stamp import Unchanged


class _Layer(NamedTuple):
    """What one layer computes with: norms, and the projections as modules or as their bare `forward`."""

    norm: Any
    project: Any
    output: Any
    forward_norm: Any
    gate_and_up: Any
    down: Any

    def without_hooks(self) -> _Layer:
        """The same, with projections that are called without their module's hooks and what those calls cost."""
        return self._replace(
            project=self.project.forward,
            output=self.output.forward,
            gate_and_up=self.gate_and_up.forward,
            down=self.down.forward,
        )


class DecodeStep:
    """int[B] and a cache -> logits float32[B, V] of the next token. Made by `decode_step`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.modules = [_layer_of(block) for block in decoder.stack.blocks]
        self.layers = [layer.without_hooks() for layer in self.modules]
        first: Any = decoder.stack.blocks[0].attention
        self.heads, self.kv_heads, self.head_width = first.heads, first.kv_heads, first.head_width
        self.scale = first.scale
        self.unchanged = Unchanged(decoder, writes=False)
        called = {
            id(part) for layer in self.modules for part in (layer.project, layer.output, layer.gate_and_up, layer.down)
        }
        called |= {id(decoder.embedding), id(decoder.head)}
        self.hooks_of_called = [hooks for part in decoder.modules() if id(part) in called for hooks in _hooks_of(part)]
        self.hooks_of_others = [hooks for part in decoder.modules() if id(part) not in called for hooks in _hooks_of(part)]

    def __call__(self, tokens_B: torch.Tensor, cache: Cache, *, before_layer: BeforeLayer | None = None) -> torch.Tensor:
        """As `Decoder.forward` for tokens int[B, 1]; raises what that raises."""
        if (
            any(self.hooks_of_others) or not self.unchanged
        ):  # somebody watches a part that is not called here, or put another in its place
            logits_BV: torch.Tensor = self.decoder(tokens_B[:, None], cache=cache, before_layer=before_layer)[:, 0]
            return logits_BV
        if not any(self.hooks_of_called) and self.decoder.__dict__.get(ATTRIBUTE) is None:
            return self._run(self.layers, tokens_B, cache, before_layer)
        cache = begin(self.decoder, len(tokens_B), cache) or cache
        with during(self.decoder, cache):
            return self._run(self.modules, tokens_B, cache, before_layer)

    def _run(
        self, layers: list[_Layer], tokens_B: torch.Tensor, cache: Cache, before_layer: BeforeLayer | None
    ) -> torch.Tensor:
        decoder, batch = self.decoder, len(tokens_B)
        check_tokens(tokens_B[:, None], None, decoder.vocabulary)
        check_room(cache, 1, None, decoder.context)
        positions_B1 = cache.begin(1, None)
        rotary: Any = decoder.stack.rotary
        cosine, sine = rotary.at(positions_B1 if cache.ragged else positions_B1[0])
        seen_B11S = cache.valid_BS[:, None, None, : cache.length] if cache.ragged else None
        turned_heads = self.heads + self.kv_heads
        shape = (batch, turned_heads + self.kv_heads, 1, self.head_width)
        half, width = self.head_width // 2, self.heads * self.head_width
        tokens_BW = decoder.embedding(tokens_B)
        for layer, (norm, project, output, forward_norm, gate_and_up, down) in enumerate(layers):
            if before_layer is not None:
                tokens_BW = before_layer(layer, tokens_BW[:, None])[:, 0]
            joined = project(rms_norm(tokens_BW, norm.weight.shape, norm.weight, norm.epsilon)).view(shape)
            turned = joined[:, :turned_heads]
            turned = torch.addcmul(turned * cosine, turned.roll(half, -1), sine)
            keys, values = cache.write(layer, turned[:, self.heads :], joined[:, turned_heads:])
            mixed = scaled_dot_product_attention(
                turned[:, : self.heads],
                keys,
                values,
                attn_mask=seen_B11S,
                scale=self.scale,
                enable_gqa=self.kv_heads != self.heads,
            )
            tokens_BW = tokens_BW + output(mixed.reshape(batch, width))
            gate, up = gate_and_up(
                rms_norm(tokens_BW, forward_norm.weight.shape, forward_norm.weight, forward_norm.epsilon)
            ).chunk(2, -1)
            tokens_BW = tokens_BW + down(silu(gate).mul_(up))
        last: Any = decoder.stack.norm
        return decoder.logits(rms_norm(tokens_BW, last.weight.shape, last.weight, last.epsilon))


def decode_step(decoder: Decoder) -> DecodeStep | None:
    """The straight step of a decoder to which a kernel was applied; None if its shape is not the plain one."""
    stack = decoder.stack
    plain = (
        type(decoder) is Decoder  # a class of somebody's own may compute in another way
        and type(stack) is Stack
        and stack.causal
        and stack.rotary is not None
        and stack.position_bias is None
        and type(stack.norm) is RMSNorm
        and decoder.position_embedding is None
        and decoder.embedding_norm is None
        and all(map(_is_plain, stack.blocks))
    )
    blocks: Any = stack.blocks
    shapes = (
        {(one.attention.heads, one.attention.kv_heads, one.attention.head_width, one.attention.scale) for one in blocks}
        if plain
        else ()
    )
    return DecodeStep(decoder) if len(shapes) == 1 else None


def _hooks_of(part: Any) -> tuple[Any, Any]:
    return part._forward_hooks, part._forward_pre_hooks  # noqa: SLF001 - torch names them nowhere else


def _layer_of(block: Any) -> _Layer:
    attention, forward = block.attention, block.feed_forward
    return _Layer(
        norm=block.attention_norm,
        project=attention.query_key_value,
        output=attention.output,
        forward_norm=block.feed_forward_norm,
        gate_and_up=forward.gate_and_up,
        down=forward.down,
    )


def _is_plain(block: Any) -> bool:
    attention, forward = block.attention, block.feed_forward
    return (
        type(block) is Block
        and not block.post_norm
        and block.cross_attention is None
        and type(block.attention_norm) is RMSNorm
        and type(block.feed_forward_norm) is RMSNorm
        and type(attention) is Attention
        and type(forward) is Gated
        and forward.activation is silu
        and all(
            is_kernel_linear(layer)
            for layer in (attention.query_key_value, attention.output, forward.gate_and_up, forward.down)
        )
    )
