"""The native functions as operations of torch, under `torch.ops.zoo_fused`: what they change is declared, and each has a fake for tracing.

Where the shared object could not be built they compute by plain PyTorch (`zoo_fused.blocks`), the step alone excepted.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch

from zoo.api import UsageError
from zoo_fused import blocks as plain
from zoo_fused.native import ISAS, PYTORCH, StepArguments, call, chosen_isa

LIBRARY: Any = torch.library.Library("zoo_fused", "DEF")  # type: ignore[no-untyped-call]  # as torch has it; keeps the operations registered for as long as it lives
SCHEMAS = (
    "repack(Tensor blocks, str type) -> Tensor",
    "unpack(Tensor tiles, str type, int rows, int columns) -> Tensor",
    "dequantise(Tensor tiles, str type, int rows, int columns) -> Tensor",
    "linear(Tensor input, Tensor tiles, Tensor? bias, str type, int rows, int threads=0, str isa='') -> Tensor",
    "look_up(Tensor indices, Tensor tiles, str type, int rows, int columns) -> Tensor",
    (
        "step(Tensor tokens, Tensor(a!) store, Tensor arena, Tensor plan, Tensor numbers, Tensor positions, Tensor? valid, Tensor? at, "
        "Tensor? cosine, Tensor? sine, Tensor? table, int start, int vocabulary, int threads=0, str isa='') -> Tensor"
    ),
)


def _repack(blocks: torch.Tensor, type: str) -> torch.Tensor:  # noqa: A002 - what GGUF calls it
    columns = plain.columns_of(blocks, type)
    if chosen_isa() == PYTORCH:
        return plain.repack(blocks, type)
    plain.refuse_damaged(blocks, type)
    blocks, rows = blocks.contiguous(), len(blocks)
    tiles = torch.empty(plain.tiles_bytes(type, rows, columns), dtype=torch.uint8, device="cpu")
    number = plain.block_type(type).number
    call("zoo_fused_repack", number, blocks.data_ptr(), rows, columns, tiles.data_ptr(), len(tiles))
    return tiles


def _unpack(tiles: torch.Tensor, type: str, rows: int, columns: int) -> torch.Tensor:  # noqa: A002 - as above
    plain.check_tiles(tiles, type, rows, columns)
    if chosen_isa() == PYTORCH:
        return plain.unpack(tiles, type, rows, columns)
    kind = plain.block_type(type)
    blocks = torch.empty(rows, columns // kind.weights * kind.bytes, dtype=torch.uint8, device="cpu")
    call("zoo_fused_unpack", kind.number, tiles.data_ptr(), len(tiles), rows, columns, blocks.data_ptr())
    return blocks


def _dequantise(tiles: torch.Tensor, type: str, rows: int, columns: int) -> torch.Tensor:  # noqa: A002 - as above
    return plain.dequantise(_unpack(tiles, type, rows, columns), type)


def _linear(
    input: torch.Tensor,  # noqa: A002 - what torch calls it
    tiles: torch.Tensor,
    bias: torch.Tensor | None,
    type: str,  # noqa: A002 - as above
    rows: int,
    threads: int = 0,
    isa: str = "",
) -> torch.Tensor:
    columns = _check_linear(input, tiles, bias, type, rows)
    name = chosen_isa(isa)
    if name == PYTORCH:
        weight_NK = plain.dequantise(plain.unpack(tiles, type, rows, columns), type)
        return torch.nn.functional.linear(input, weight_NK, bias)
    input_MK = input.reshape(-1, columns).contiguous()
    output = torch.empty(*input.shape[:-1], rows, dtype=torch.float32, device="cpu")
    bias = None if bias is None else bias.contiguous()
    call(
        "zoo_fused_linear", plain.block_type(type).number, tiles.data_ptr(), len(tiles), rows, columns, _pointer(bias),
        input_MK.data_ptr(), len(input_MK), output.data_ptr(), ISAS.index(name), threads or torch.get_num_threads(),
    )  # fmt: skip
    return output


def _check_linear(input_MK: torch.Tensor, tiles: torch.Tensor, bias_N: torch.Tensor | None, name: str, rows: int) -> int:
    if input_MK.dtype != torch.float32 or input_MK.ndim < 1:
        raise UsageError(f"a fused layer takes float32[..., K], got {input_MK.dtype}{list(input_MK.shape)}")
    plain.check_tiles(tiles, name, rows, input_MK.shape[-1])
    if bias_N is not None and (bias_N.dtype != torch.float32 or tuple(bias_N.shape) != (rows,)):
        raise UsageError(f"the bias must be float32[{rows}], got {bias_N.dtype}{list(bias_N.shape)}")
    return input_MK.shape[-1]


def _look_up(indices: torch.Tensor, tiles: torch.Tensor, type: str, rows: int, columns: int) -> torch.Tensor:  # noqa: A002 - as above
    plain.check_tiles(tiles, type, rows, columns)
    if indices.dtype not in (torch.int64, torch.int32):
        raise UsageError(f"rows of a table are named by int32 or int64, got {indices.dtype}")
    if indices.numel():
        low, high = torch.aminmax(indices)
        if int(low) < 0 or int(high) >= rows:
            raise UsageError(f"rows must be from 0 to {rows - 1}, got {int(low if int(low) < 0 else high)}")
    name = chosen_isa()
    if name == PYTORCH:
        flat = indices.flatten().long()
        unpacked = plain.unpack(tiles, type, rows, columns)
        return (
            plain.dequantise(unpacked[flat], type).view(*indices.shape, columns)
            if len(flat)
            else torch.empty(*indices.shape, columns, dtype=torch.float32, device="cpu")
        )
    chosen = indices.long().contiguous()
    output = torch.empty(*indices.shape, columns, dtype=torch.float32, device="cpu")
    call(
        "zoo_fused_read_rows", plain.block_type(type).number, tiles.data_ptr(), len(tiles), rows, columns,
        chosen.data_ptr(), chosen.numel(), output.data_ptr(), ISAS.index(name),
    )  # fmt: skip
    return output


class _Pass(NamedTuple):
    """The arguments of the operation `step`, in the order of its schema."""

    tokens: torch.Tensor
    store: torch.Tensor
    arena: torch.Tensor
    plan: torch.Tensor
    numbers: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor | None
    at: torch.Tensor | None
    cosine: torch.Tensor | None
    sine: torch.Tensor | None
    table: torch.Tensor | None
    start: int
    vocabulary: int
    threads: int = 0
    isa: str = ""


def _step(*given: Any, **named: Any) -> torch.Tensor:
    tokens, store, arena, plan, numbers, positions, valid, at, cosine, sine, table, start, vocabulary, threads, isa = _Pass(
        *given, **named
    )
    name = chosen_isa(isa)
    if name == PYTORCH:
        raise UsageError("a fused step needs the shared object: python -m zoo_fused.compile builds it")
    batch, count = _check_step(tokens, store, arena, plan, numbers)
    tokens, positions = tokens.contiguous(), positions.contiguous()
    _expect("positions", positions, torch.int64, (batch, count))
    if valid is not None:
        _expect("valid slots", valid, torch.bool, (batch, max(valid.shape[-1], start + count)))
        valid = valid if valid.stride(1) == 1 else valid.contiguous()
    if at is not None:
        at = at.contiguous()
        _expect("indices", at, torch.int64, (batch, at.shape[-1] if at.ndim == 2 else 0))
    cosine, sine, table = (None if one is None else one.contiguous() for one in (cosine, sine, table))
    if len(plan) < 7 or int(plan[6]) != vocabulary:
        raise UsageError(f"the plan is not of a model with {vocabulary} tokens")
    positions_known = _check_tables(cosine, sine, table, store.shape[-1], int(plan[1]))
    chosen = count if at is None else at.shape[1]
    logits = torch.empty(batch, chosen, vocabulary, dtype=torch.float32, device="cpu")
    strides = store.stride()
    arguments = StepArguments(
        *(_pointer(one) for one in (arena, plan, numbers, cosine, sine, table, tokens, positions, at, valid, store, logits)),
        len(arena), len(plan), len(numbers), positions_known, batch, count, chosen, start, 0 if valid is None else valid.stride(0),
        store.shape[0], *store.shape[2:], *strides[:4], ISAS.index(name), threads or torch.get_num_threads(),
    )  # fmt: skip
    call("zoo_fused_step", ctypes.byref(arguments))
    return logits


def _check_step(
    tokens: torch.Tensor, store: torch.Tensor, arena: torch.Tensor, plan: torch.Tensor, numbers: torch.Tensor
) -> tuple[int, int]:
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise UsageError(f"tokens must be int64[B, T] with at least one of each, got {tokens.dtype}{list(tokens.shape)}")
    batch, count = tokens.shape
    _expect("tokens", tokens, torch.int64, (batch, count))
    if store.ndim != 6 or store.dtype != torch.float32 or store.shape[1] != 2 or store.device.type != "cpu":
        raise UsageError(
            f"the cache must be float32[layers, 2, B, heads, slots, width] on the CPU, got {store.dtype}{list(store.shape)} on {store.device}"
        )
    if store.stride()[4:] != (store.shape[-1], 1) or min(store.stride()) < 0:
        raise UsageError(f"the slots of a cache must lie one after another, got strides {store.stride()}")
    _expect("arena", arena, torch.uint8, (len(arena),))
    _expect("plan", plan, torch.int64, (len(plan),))
    _expect("numbers", numbers, torch.float64, (len(numbers),))
    if not (arena.is_contiguous() and plan.is_contiguous() and numbers.is_contiguous()):
        raise UsageError("arena, plan and numbers of a step must lie without gaps")
    return batch, count


def _check_tables(
    cosine: torch.Tensor | None, sine: torch.Tensor | None, table: torch.Tensor | None, head_width: int, width: int
) -> int:
    """How many positions the tables have; 0 without any."""
    if (cosine is None) != (sine is None):
        raise UsageError("rotary positions need cosines and sines")
    known = [len(one) for one in (cosine, sine, table) if one is not None]
    for name, one in (("cosines", cosine), ("sines", sine)):
        if one is not None:
            _expect(name, one, torch.float32, (known[0], head_width))
    if table is not None:
        _expect("table of positions", table, torch.float32, (len(table), width))
    return min(known, default=0)


def _expect(what: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device.type != "cpu":
        raise UsageError(
            f"{what} must be {dtype}{list(shape)} on the CPU, got {tensor.dtype}{list(tensor.shape)} on {tensor.device}"
        )


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _fake_repack(blocks: torch.Tensor, type: str) -> torch.Tensor:  # noqa: A002 - as above
    return blocks.new_empty(plain.tiles_bytes(type, blocks.shape[0], plain.columns_of(blocks, type)))


def _fake_unpack(tiles: torch.Tensor, type: str, rows: int, columns: int) -> torch.Tensor:  # noqa: A002 - as above
    kind = plain.block_type(type)
    return tiles.new_empty(rows, columns // kind.weights * kind.bytes)


def _fake_dequantise(tiles: torch.Tensor, type: str, rows: int, columns: int) -> torch.Tensor:  # noqa: A002, ARG001 - as above
    return tiles.new_empty(rows, columns, dtype=torch.float32)


def _fake_linear(
    input: torch.Tensor, tiles: torch.Tensor, bias: Any, type: str, rows: int, threads: int = 0, isa: str = ""  # noqa: A002, ARG001 - the schema
) -> torch.Tensor:  # fmt: skip
    return input.new_empty(*input.shape[:-1], rows)


def _fake_look_up(indices: torch.Tensor, tiles: torch.Tensor, type: str, rows: int, columns: int) -> torch.Tensor:  # noqa: A002, ARG001 - as above
    return indices.new_empty(*indices.shape, columns, dtype=torch.float32)


def _fake_step(tokens: torch.Tensor, *arguments: Any, **_options: Any) -> torch.Tensor:
    at, vocabulary = arguments[6], arguments[11]
    return tokens.new_empty(
        tokens.shape[0], tokens.shape[1] if at is None else at.shape[1], vocabulary, dtype=torch.float32
    )


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001 - what torch calls it with
    input_MK, tiles, _, name, rows, *_ = inputs
    ctx.save_for_backward(tiles)
    ctx.shape = (name, rows, input_MK.shape[-1])


def _linear_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Of the input, through the weights as they stand for float32; the bias is no parameter and has none."""
    (tiles,) = ctx.saved_tensors
    name, rows, columns = ctx.shape
    return gradient @ dequantise(tiles, name, rows, columns), None, None, None, None, None, None


for _schema in SCHEMAS:
    LIBRARY.define(_schema)
for _name, _real, _fake in (
    ("repack", _repack, _fake_repack),
    ("unpack", _unpack, _fake_unpack),
    ("dequantise", _dequantise, _fake_dequantise),
    ("linear", _linear, _fake_linear),
    ("look_up", _look_up, _fake_look_up),
    ("step", _step, _fake_step),
):
    LIBRARY.impl(_name, _real, "CPU")
    torch.library.register_fake(f"zoo_fused::{_name}", _fake, lib=LIBRARY)
torch.library.register_autograd("zoo_fused::linear", _linear_backward, setup_context=_setup_linear, lib=LIBRARY)

repack, unpack = torch.ops.zoo_fused.repack.default, torch.ops.zoo_fused.unpack.default
dequantise = torch.ops.zoo_fused.dequantise.default
linear, look_up = torch.ops.zoo_fused.linear.default, torch.ops.zoo_fused.look_up.default
step = torch.ops.zoo_fused.step.default
