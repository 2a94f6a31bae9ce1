"""A module as a graph of OpenVINO, and a graph as a function that runs."""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from zoo_openvino.library import nncf, openvino, root_level_kept, without_logs, without_nncf

Tensors = tuple[torch.Tensor, ...]
Sizes = tuple[int | None, ...]  # None: any size

# Torch's names of the functions that trace: their warnings are about OpenVINO's way of reading a module, and nobody here can heed them.
_TRACE_WARNINGS = (r"`?torch\.jit\.trace(_method)?`? is deprecated", r"`?torch\.jit\.script(_method)?`? is deprecated")
_TRACING = threading.Lock()  # a trace changes functions of torch while it lasts
NO_RULE = "No conversion rule"  # in OpenVINO's words
HINTS = {"float32": "f32", "bf16": "bf16", "int8": "f32"}


class OutputError(Exception):
    """A module gives something else than tensors."""


def as_tensors(output: Any) -> Tensors:
    """A module's output as a tuple. Raises OutputError for anything but tensors."""
    outputs = output if isinstance(output, tuple) else (output,)
    wrong = next((type(value).__name__ for value in outputs if not isinstance(value, torch.Tensor)), None)
    if wrong is not None:
        raise OutputError(f"it gives {wrong}, expected a tensor or a tuple of tensors")
    return outputs


def convert(module: nn.Module, example: Tensors, sizes: Sequence[Sizes]) -> Any:
    """The module as a graph whose inputs have these sizes, traced on the example."""
    library = openvino()
    shapes = [library.PartialShape([-1 if size is None else size for size in of_one]) for of_one in sizes]
    with _TRACING, without_nncf(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)
        for message in _TRACE_WARNINGS:
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        with root_level_kept():
            graph = library.convert_model(module, example_input=example, input=shapes)
    if len(graph.inputs) != len(example):
        raise ValueError(f"the graph has {len(graph.inputs)} inputs, and the module {len(example)}")
    return graph


def quantise(graph: Any, calibration: Sequence[Tensors]) -> Any:
    """The graph in 8 bits, weights and activations, with the ranges that the activations of these inputs have."""
    library = nncf()
    batches = [tuple(tensor.detach().contiguous().numpy() for tensor in inputs) for inputs in calibration]
    attends = any(node.get_type_name() in {"ScaledDotProductAttention", "Softmax"} for node in graph.get_ops())
    library.set_log_level(logging.ERROR)
    with _TRACING, without_logs(), redirect_stdout(io.StringIO()):  # its progress would stand among the answers
        return library.quantize(
            graph,
            library.Dataset(batches, list),
            subset_size=len(batches),
            model_type=library.ModelType.TRANSFORMER if attends else None,
        )


def settings(precision: str, threads: int) -> dict[str, object]:
    """How a graph is compiled. Threads are not bound to cores: two processes would be bound to the same ones."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }


def program(graph: Any, how: Mapping[str, object]) -> Callable[[Tensors], Tensors]:
    """A graph, or the path of one, as a function: tensors -> fresh tensors. Calls from several threads wait for each other."""
    compiled = openvino().Core().compile_model(graph, "CPU", dict(how))
    request, alone = compiled.create_infer_request(), threading.Lock()

    def run(inputs: Tensors) -> Tensors:
        # By NumPy: after a copy by torch, its threads go on spinning for a while, on the cores that OpenVINO's are about to use.
        arrays = [np.ascontiguousarray(tensor.detach().numpy()) for tensor in inputs]
        with alone:
            outputs = request.infer(arrays, share_inputs=True, share_outputs=False).to_tuple()
        return tuple(torch.from_numpy(output) for output in outputs)

    return run


def reason(error: Exception) -> str:
    """What OpenVINO could not do, in one line: the operators that it has no rule for, or the first line that says something."""
    text = str(error)
    operators = re.search(NO_RULE + r" found for operations: (.+)", text)
    if operators is not None:
        return f"OpenVINO has no rule for {operators[1].strip()}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if not line.startswith(("Check ", "Exception from", "FrontEnd API", "Couldn't get TorchScript", "Exception:"))
    ]
    if type(error).__module__.startswith("zoo_openvino"):
        return text
    return f"{type(error).__name__}: {(telling or lines or ['no message'])[0][:300]}"
