"""The kernels `openvino/...`: whole modules, compiled for this processor."""

from __future__ import annotations

from functools import partial

from torch import nn

from zoo.api import CompileRequest, Kernel, UsageError
from zoo.nn import multiplies_in_bfloat16
from zoo_openvino.compiled import CompiledModule
from zoo_openvino.conversion import HINTS
from zoo_openvino.library import openvino, require_nncf


def openvino_kernel(*, precision: str = "float32") -> Kernel:
    """Build the kernel of a precision.

    float32: exact but for the order of sums. bf16: products in bfloat16, where the processor has them. int8: weights and activations
    in 8 bits, with the ranges that real inputs have (`CompileRequest.calibration`).
    Raises UsageError for another precision.
    """
    if precision not in HINTS:
        raise UsageError(f"precision is one of {', '.join(HINTS)}, got {precision!r}")
    return Kernel(compile=partial(compile_module, precision=precision))


def compile_module(
    module: nn.Module, request: CompileRequest, *, precision: str, has_bfloat16: bool | None = None
) -> nn.Module:
    """A module that takes tensors and gives a tensor or a tuple of them -> one that gives the same, compiled at its first call.

    has_bfloat16: whether the processor multiplies in bfloat16; asked of it when None.
    Raises PluginError where a library is missing, UsageError for a request that the precision cannot keep.
    """
    openvino()
    if request.threads is not None and request.threads < 1:
        raise UsageError(f"threads must be at least 1, got {request.threads}")
    if precision == "bf16" and not (multiplies_in_bfloat16() if has_bfloat16 is None else has_bfloat16):
        raise UsageError("kernel openvino-bf16 needs a processor that multiplies in bfloat16: take openvino")
    if precision == "int8":
        require_nncf()
        if not request.calibration:
            raise UsageError(
                "precision int8 needs inputs to take the ranges of activations from: give calibration in the request, or take float32"
            )
    return CompiledModule(module.eval(), request, precision)
