"""The shared object by ctypes: found or built at first use, asked for by pointers that were checked before (`zoo_fused.ops`).

ZOO_FUSED_ISA: portable, avx2, avx512vnni or amx in place of the best that the processor has; pytorch: no shared object at all.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_char_p, c_int, c_int64, c_void_p
from functools import cache, lru_cache
from pathlib import Path

from zoo.api import UsageError
from zoo_fused.compile import BuildError, built_in_cache, sources_key

ISAS = ("portable", "avx2", "avx512vnni", "amx")  # in the order of native/library.cpp
PYTORCH = "pytorch"
VARIABLE = "ZOO_FUSED_ISA"
ERROR_BYTES = 512


class StepArguments(ctypes.Structure):
    """As in native/library.cpp, field by field."""

    _fields_ = (
        *((name, c_void_p) for name in ("arena", "plan", "numbers", "cosine", "sine", "position_table")),
        *((name, c_void_p) for name in ("tokens", "positions", "at", "valid", "store", "logits")),
        *((name, c_int64) for name in ("arena_bytes", "plan_length", "numbers_length", "table_positions")),
        *((name, c_int64) for name in ("batch", "count", "chosen", "start", "valid_stride")),
        *((name, c_int64) for name in ("store_layers", "store_batch", "store_heads", "store_capacity", "store_width")),
        *((name, c_int64) for name in ("stride_layer", "stride_pair", "stride_batch", "stride_head", "isa", "threads")),
    )


SIGNATURES = {
    "zoo_fused_repack": (c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64),
    "zoo_fused_unpack": (c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p),
    "zoo_fused_read_rows": (c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64),
    "zoo_fused_linear": (
        c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64,
    ),
    "zoo_fused_step": (ctypes.POINTER(StepArguments),),
}  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The shared object of the cache, built now if need be.

    None where there is none to be had, or ZOO_FUSED_ISA says pytorch; the reason stands on stderr, once.
    """
    if os.environ.get(VARIABLE) == PYTORCH:
        return None
    try:
        found = _opened(built_in_cache())
    except BuildError as error:
        print(f"zoo_fused: computing by PyTorch, slower: {error}", file=sys.stderr, flush=True)
        return None
    if found is None:
        print("zoo_fused: computing by PyTorch, slower: what was built cannot be loaded", file=sys.stderr, flush=True)
    return found


def _opened(path: Path) -> ctypes.CDLL | None:
    """The shared object with its signatures; None if it does not load here or is of other sources."""
    try:
        found = ctypes.CDLL(str(path))
        found.zoo_fused_key.restype = c_char_p
        if found.zoo_fused_key() != sources_key().encode():
            return None
        for name, arguments in SIGNATURES.items():
            getattr(found, name).argtypes = (*arguments, c_char_p)
        found.zoo_fused_supports.argtypes = (c_int,)
        found.zoo_fused_large_pages.argtypes = (c_void_p, c_int64)
        found.zoo_fused_large_pages.restype = None
    except (OSError, AttributeError):
        return None
    return found


@lru_cache(maxsize=1)
def supported_isas() -> tuple[str, ...]:
    """The instruction sets that run here, the best one last; empty without a shared object."""
    found = library()
    return () if found is None else tuple(name for number, name in enumerate(ISAS) if found.zoo_fused_supports(number))


def chosen_isa(asked: str = "") -> str:
    """The instruction set that computes: the one asked for, or ZOO_FUSED_ISA's, or the best; "pytorch" without a shared object.

    Raises UsageError for one that is unknown or that this machine does not have.
    """
    name = asked or os.environ.get(VARIABLE, "")
    supported = supported_isas()
    if not name:
        return supported[-1] if supported else PYTORCH
    if name == PYTORCH or name in supported:
        return name
    known = "is unknown" if name not in ISAS else "does not run here"
    raise UsageError(
        f"{VARIABLE}: the instruction set {name[:40]!r} {known}; this machine has {', '.join((*supported, PYTORCH))}"
    )


def call(function: str, *arguments: object) -> None:
    """A function of the shared object. Raises UsageError with the message that it gives back."""
    found = library()
    if found is None:
        raise UsageError("there is no shared object of the fused kernels: python -m zoo_fused.compile builds it")
    error = ctypes.create_string_buffer(ERROR_BYTES)
    if getattr(found, function)(*arguments, error):
        raise UsageError(error.value.decode(errors="replace"))
