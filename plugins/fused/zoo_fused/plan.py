"""Where the weights of a decoder lie for the native step: one arena, and a plan of places in it (read_plan of native/library.cpp)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from zoo.nn import (
    Attention,
    Block,
    Decoder,
    Dense,
    Gated,
    LearnedPositions,
    RMSNorm,
    Stack,
    activation_function,
    give_back_memory,
)
from zoo_fused.blocks import GROUP, block_type
from zoo_fused.linear import BlockEmbedding, BlockLinear
from zoo_fused.native import library

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "squared_relu")  # in the order of native/layout.h
ALIGNMENT, LARGE_PAGE = 64, 1 << 21
GIVE_BACK_BYTES = 1 << 23


class Shape(NamedTuple):
    """What the native step knows of a decoder, in the order of the plan."""

    layers: int
    width: int
    kv_heads: int
    heads: int
    head_width: int
    hidden: int
    vocabulary: int
    layer_norm: bool
    gated: bool
    activation: int


class Arena:
    """memory: uint8, all weights in the order in which they are read. plan, numbers: what is where, int64 and float64.

    `refresh` copies norms and biases, which may have been changed in place since.
    """

    def __init__(self, size: int) -> None:
        whole = torch.empty(size + LARGE_PAGE, dtype=torch.uint8)
        self.memory = whole[-whole.data_ptr() % LARGE_PAGE :][:size]
        native = library()
        if native is not None:
            native.zoo_fused_large_pages(self.memory.data_ptr(), size)
        self.used, self.copied_bytes = 0, 0
        self.plan, self.numbers = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        self.sources: list[torch.Tensor] = []
        self.copies: list[torch.Tensor] = []

    def take(self, size: int) -> tuple[int, torch.Tensor]:
        """A place and its memory, uint8[size]."""
        at = self.used
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        return at, self.memory[at : at + size]

    def put_floats(self, numbers: torch.Tensor | None) -> int:
        """A copy of a norm's weight or a bias; returns its place, -1 for None."""
        if numbers is None:
            return -1
        at, place = self.take(numbers.numel() * 4)
        kept = place.view(torch.float32)
        source = numbers.detach()
        self.sources.append(source)
        self.copies.append(kept.view_as(source))
        return at

    def put_tiles(self, layer: Any) -> int:
        """The tiles of a layer, which has a view of them from now on; returns their place."""
        at, place = self.take(len(layer.tiles))
        place.copy_(layer.tiles)
        layer.tiles = place
        self.copied_bytes += len(place)
        if self.copied_bytes >= GIVE_BACK_BYTES:  # or all weights stand in memory twice at the end
            give_back_memory()
            self.copied_bytes = 0
        return at

    def refresh(self) -> None:
        """Copy norms and biases: they may have been written to, which torch does not always count, and copying takes less than looking."""
        torch._foreach_copy_(self.copies, self.sources)


def shape_of(decoder: Decoder) -> Shape | None:
    """The shape of a decoder, or None where it is not one that the native step computes."""
    stack = decoder.stack
    blocks: list[Any] = list(stack.blocks)
    positions = decoder.position_embedding
    plain = (
        type(decoder) is Decoder  # a class of somebody's own may compute in another way
        and type(stack) is Stack
        and stack.causal
        and stack.position_bias is None
        and decoder.embedding_norm is None
        and (positions is None or isinstance(positions, LearnedPositions))
        and _is_norm(stack.norm)
        and isinstance(decoder.embedding, BlockEmbedding)
        and isinstance(decoder.head, BlockLinear)
        and all(map(_is_plain, blocks))
    )
    if not plain or not blocks:
        return None
    shapes = {_shape_of_block(decoder, block) for block in blocks}
    kinds = {type(norm) for block in blocks for norm in (block.attention_norm, block.feed_forward_norm)} | {
        type(stack.norm)
    }
    scales = {block.attention.scale for block in blocks}
    shape = shapes.pop()
    if shapes or len(kinds) > 1 or len(scales) > 1 or shape is None:
        return None
    rotary: Any = stack.rotary
    if rotary is not None and rotary.cosine_PK.shape[1] != shape.head_width:
        return None
    whole = all(size % GROUP == 0 for size in (shape.width, shape.hidden, shape.heads * shape.head_width))
    return shape if whole else None


def _is_plain(block: Any) -> bool:
    attention, forward = block.attention, block.feed_forward
    norms = (block.attention_norm, block.feed_forward_norm)
    return (
        type(block) is Block
        and not block.post_norm
        and block.cross_attention is None
        and type(attention) is Attention
        and type(forward) in (Gated, Dense)
        and all(map(_is_norm, norms))
        and all(isinstance(layer, BlockLinear) for layer in _layers_of(block))
        and _activation(forward) is not None
    )


def _is_norm(norm: Any) -> bool:
    return type(norm) is RMSNorm or (type(norm) is nn.LayerNorm and norm.weight is not None)


def _layers_of(block: Any) -> list[Any]:
    """The linear layers of a block in the order in which they are read."""
    attention, forward = block.attention, block.feed_forward
    return [*_projections(attention), attention.output, *_widening(forward), forward.down]


def _projections(attention: Any) -> list[Any]:
    joined = attention.query_key_value
    return [joined] if joined is not None else [attention.query, attention.key, attention.value]


def _widening(forward: Any) -> list[Any]:
    if isinstance(forward, Dense):
        return [forward.up]
    return [forward.gate_and_up] if forward.gate_and_up is not None else [forward.gate, forward.up]


def _activation(forward: Any) -> int | None:
    """Its number in the native code; None for a function that is not known there."""
    known = (index for index, name in enumerate(ACTIVATIONS) if forward.activation is activation_function(name))
    return next(known, None)


def _shape_of_block(decoder: Any, block: Any) -> Shape | None:
    attention, forward = block.attention, block.feed_forward
    gated = isinstance(forward, Gated)
    width, across = decoder.width, attention.heads * attention.head_width
    joined = across + 2 * attention.kv_heads * attention.head_width
    hidden = forward.down.in_features
    fits = (
        sum(layer.out_features for layer in _projections(attention)) == joined
        and sum(layer.out_features for layer in _widening(forward)) == hidden * (2 if gated else 1)
        and attention.output.in_features == across
        and forward.down.out_features == attention.output.out_features == width == decoder.head.in_features
        and decoder.head.out_features == decoder.vocabulary
    )
    activation = _activation(forward)
    if not fits or activation is None:
        return None
    return Shape(
        layers=decoder.layers,
        width=width,
        kv_heads=attention.kv_heads,
        heads=attention.heads,
        head_width=attention.head_width,
        hidden=hidden,
        vocabulary=decoder.vocabulary,
        layer_norm=isinstance(decoder.stack.norm, nn.LayerNorm),
        gated=gated,
        activation=activation,
    )


def lay_out(decoder: Any, shape: Shape) -> Arena:
    """All weights of a decoder in an arena, its layers with views of it."""
    blocks: list[Any] = list(decoder.stack.blocks)
    layers = [layer for block in blocks for layer in _layers_of(block)]
    tied = _shares_tiles(decoder.embedding, decoder.head)
    norms = [decoder.stack.norm, *(norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm))]
    tensors = [
        *(layer.bias for layer in (*layers, decoder.head)),
        *(part for norm in norms for part in (norm.weight, _bias(norm))),
    ]
    sizes = [len(layer.tiles) for layer in (*layers, decoder.head, *([] if tied else [decoder.embedding]))]
    sizes += [numbers.numel() * 4 for numbers in tensors if numbers is not None]
    arena = Arena(sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
    # First the matrices, as a pass goes through them: what is fetched ahead of the end of one is the start of the next.
    places = {id(layer): arena.put_tiles(layer) for layer in (*layers, decoder.head)}
    if tied:
        decoder.embedding.tiles, places[id(decoder.embedding)] = decoder.head.tiles, places[id(decoder.head)]
    else:
        places[id(decoder.embedding)] = arena.put_tiles(decoder.embedding)

    def matrix(layer: Any) -> list[int]:
        return [block_type(layer.block_name).number, places[id(layer)], arena.put_floats(getattr(layer, "bias", None))]

    def norm(part: Any) -> list[int]:
        return [arena.put_floats(part.weight), arena.put_floats(_bias(part))]

    plan = [*map(int, shape), *matrix(decoder.embedding), *matrix(decoder.head), *norm(decoder.stack.norm)]
    numbers = [blocks[0].attention.scale, decoder.logit_scale, _epsilon(decoder.stack.norm)]
    for block in blocks:
        projections = _projections(block.attention)
        plan += [*norm(block.attention_norm), len(projections)]
        plan += [number for layer in projections for number in matrix(layer)]
        plan += [*matrix(block.attention.output), *norm(block.feed_forward_norm)]
        widening = _widening(block.feed_forward)
        plan += [number for layer in widening for number in matrix(layer)]
        if shape.gated and len(widening) == 1:  # the second half of its rows is `up`
            kind, at, bias = plan[-3:]
            plan += [kind, at + len(widening[0].tiles) // 2, bias if bias < 0 else bias + shape.hidden * 4]
        plan += matrix(block.feed_forward.down)
        numbers += [_epsilon(block.attention_norm), _epsilon(block.feed_forward_norm)]
    arena.plan, arena.numbers = torch.tensor(plan), torch.tensor(numbers, dtype=torch.float64)
    return arena


def _shares_tiles(embedding: Any, head: Any) -> bool:
    """Whether the head is the embedding again, which then lies in the arena once."""
    same = embedding.block_name == head.block_name and embedding.rows == head.rows and embedding.columns == head.columns
    return same and (embedding.tiles.data_ptr() == head.tiles.data_ptr() or torch.equal(embedding.tiles, head.tiles))


def _bias(norm: Any) -> torch.Tensor | None:
    bias: torch.Tensor | None = getattr(norm, "bias", None)
    return bias


def _epsilon(norm: Any) -> float:
    return float(norm.eps if isinstance(norm, nn.LayerNorm) else norm.epsilon)
