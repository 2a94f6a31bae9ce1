"""A module whose answers OpenVINO computes, held to the plain module's on the inputs that it is really given."""

from __future__ import annotations

import gc
import hashlib
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from zoo.api import CompileRequest, UsageError
from zoo_openvino import kept, trial
from zoo_openvino.conversion import NO_RULE, OutputError, Tensors, as_tensors, convert, program, quantise, reason, settings
from zoo_openvino.difference import NOTHING_COMMON, Difference, compare, worse
from zoo_openvino.form import TYPES, Form, Layout, describe, layouts
from zoo_openvino.library import openvino
from zoo_openvino.values import ValueReadError, answer_by_torch

LARGEST_RELATIVE = 1e-3  # of float32: sums in another order differ by 1e-6 to 1e-4
LEAST_COSINE = 0.9  # of an answer that is rounded: whatever differs more is another module's
MOST_TRIES = 8  # each is a conversion, and may be a compiled copy of the weights
GRAPHS = 1  # version of what is kept; a change here leaves older folders unread


class DifferenceError(Exception):
    """The compiled answer is not the plain one."""


class ManyKindsError(Exception):
    """So many kinds of inputs came that compiling each would not pay."""


class CrashError(Exception):
    """A process that tried the graph out ended by a signal."""


class CompiledModule(nn.Module):
    """The same inputs and outputs as the plain module; converted at the first call, on its inputs.

    engine: what answered the last call, "openvino" or "torch". difference: the worst that was seen where answers were compared; None
    before the first call. conversions: how many graphs were converted, not found among the kept ones.
    A module whose code decides by the values of its inputs (`if mask.all()`, `int(lengths.max())`) is not compiled: the decision of the
    first call would stand for all.
    """

    def __init__(self, module: nn.Module, request: CompileRequest, precision: str) -> None:
        super().__init__()
        self.engine = "openvino"
        self.difference: Difference | None = None
        self.conversions = 0
        self._name = type(module).__name__
        self._single = False
        self._precision = precision
        self._request = request
        self._forms: list[Form] = []  # never changed in place: other threads may read it
        self._least = 0  # of the layouts: what failed is not tried again
        self._tries = 0
        self._never = False  # whether the module cannot be compiled for any inputs
        self._preparing = threading.RLock()
        self._warned = False
        # No submodule: what is done to this module's parameters, as moving them, must not reach what was compiled from them.
        self._plain: Callable[[], nn.Module | None] = lambda: module

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the plain module takes -> what it gives, float[B, ...] each. Raises UsageError for inputs that it cannot take."""
        _refuse(inputs)
        if self._never or not all(_finite(tensor) for tensor in inputs):
            return self._by_torch(inputs)
        form = self._trusted(inputs)
        if form is None:
            with self._preparing:
                form = self._trusted(inputs)
                if form is None:
                    return self._first(inputs)
        if form.program is None:
            return self._by_torch(inputs)
        outputs = form.answer(inputs)
        self.engine = "openvino"
        return outputs[0] if self._single else outputs

    def __reduce_ex__(self, _: Any) -> NoReturn:
        """A compiled form cannot be copied or sent to another process."""
        raise UsageError("a module compiled by OpenVINO is not copied or pickled: open the model again where it is needed")

    def _trusted(self, inputs: Tensors) -> Form | None:
        return next((form for form in self._forms if form.takes(inputs) and form.trusts(inputs)), None)

    def _first(self, inputs: Tensors) -> Any:
        """Inputs of a kind that was not compared yet: both compute, and are compared."""
        plain = self._plain()
        if plain is None:
            known = "; ".join(describe(form.types, form.sizes) for form in self._forms)
            given = describe([tensor.dtype for tensor in inputs], [tuple(tensor.shape) for tensor in inputs])
            raise UsageError(
                f"{self._name} is compiled for {known} and its weights are released: got {given}; open the model again for others"
            )
        output, read = answer_by_torch(plain, inputs)
        if any(tensor.dtype not in TYPES for tensor in inputs) or (inputs and not all(tensor.numel() for tensor in inputs)):
            self.engine = "torch"
            return output
        try:
            if read is not None:
                raise ValueReadError(f"its code reads a value of its inputs ({read}), which a compiled form would not")
            expected = as_tensors(output)
            self._single = not isinstance(output, tuple)
            outputs = self._compiled_answer(plain, inputs, expected)
        except Exception as error:  # noqa: BLE001 - whatever a converter of foreign code raises, the plain module answers
            self._never = isinstance(error, (ValueReadError, OutputError)) or NO_RULE in str(error)
            self._leave_plain(inputs, reason(error))
            self.engine = "torch"
            return output
        self.engine = "openvino"
        if all(form.program is not None and form.trusts_all() for form in self._forms):
            self._plain = weakref.ref(plain)
            del plain
            gc.collect()  # a trace refers to itself, and to the weights
        return outputs[0] if self._single else outputs

    def _by_torch(self, inputs: Tensors) -> Any:
        plain = self._plain()
        if plain is None:
            raise UsageError(
                f"{self._name} was given NaN or infinity, which a module compiled by OpenVINO may turn into numbers"
            )
        self.engine = "torch"
        with torch.no_grad():
            return plain(*inputs)

    def _compiled_answer(self, plain: nn.Module, inputs: Tensors, expected: Tensors) -> Tensors:
        """Of a form that takes these inputs and was not checked as far, or of a new one."""
        failure: Exception | None = None
        for form in self._forms:
            if form.program is not None and form.takes(inputs):
                try:
                    outputs = self._compared(form, inputs, expected)
                except Exception as error:  # noqa: BLE001 - as below; what is less general than this form may do
                    failure = error
                    self._forms = [other for other in self._forms if other is not form]
                    self._least = max(self._least, form.layout.generality + 1)
                else:
                    form.checked(inputs)
                    return outputs
        for layout in layouts(inputs, expected):
            if layout.generality < self._least:
                continue
            if self._tries == MOST_TRIES:
                raise ManyKindsError(f"{MOST_TRIES} kinds of inputs were tried already")
            self._tries += 1
            try:
                return self._new_form(plain, layout, inputs, expected)
            except Exception as error:  # noqa: BLE001 - the next layout may do; of the last one it is told
                failure = error
                if NO_RULE in str(error):
                    break
        raise failure or ValueError("it has no inputs")

    def _new_form(self, plain: nn.Module, layout: Layout, inputs: Tensors, expected: Tensors) -> Tensors:
        types, sizes = tuple(tensor.dtype for tensor in inputs), layout.sizes(inputs)
        example = layout.example(inputs)
        form = Form(layout=layout, types=types, sizes=sizes, program=None)
        form.checked(example)  # the trace is the plain module's own answer there
        how = settings(self._precision, self._request.threads or torch.get_num_threads())

        def converted() -> Any:
            graph = convert(plain, example, sizes)
            self.conversions += 1
            return quantise(graph, self._request.calibration) if self._precision == "int8" else graph

        def answered(graph: Path) -> Tensors:
            crash = trial.crash(graph, how, example, layout.trial_batches)
            if crash is not None:
                raise CrashError(crash)
            form.program = program(graph, how)
            return self._compared(form, inputs, expected)

        outputs = self._with_graph(converted, answered, describe(types, sizes))
        form.checked(inputs)
        self._forms = [*self._forms, form]
        return outputs

    def _with_graph(self, converted: Callable[[], Any], answered: Callable[[Path], Tensors], signature: str) -> Tensors:
        """What a graph answers: one that was kept, or a new one. One whose answer is wrong is not kept."""
        folder = None if self._request.cache is None else self._request.cache / self._entry(signature)
        words = None if folder is None else kept.refused(folder, self._precision)
        if words is not None:
            raise DifferenceError(words)
        path = None if folder is None else kept.find(folder)
        if path is None:
            graph = converted()
            path = None if folder is None else kept.keep(graph, folder)
            if path is None:
                with TemporaryDirectory() as scratch:
                    path = kept.keep(graph, Path(scratch) / "graph")
                    if path is None:
                        raise OSError("there is no place to write the graph to")
                    return answered(path)
        try:
            return answered(path)
        except CrashError:
            raise
        except Exception as error:
            differs = isinstance(error, DifferenceError)
            if not (differs and self._precision == "bf16"):  # the graph is float32's, too, and that may be right
                kept.remove(path.parent)
            if folder is not None and differs:
                kept.refuse(folder, self._precision, str(error))
            raise

    def _entry(self, signature: str) -> str:
        """Name of the folder of a graph. float32 and bf16 run the same graph."""
        digest = hashlib.sha256(f"{GRAPHS} {signature}".encode())
        form = "int8" if self._precision == "int8" else "float32"
        if form == "int8":
            for tensor in (tensor for inputs in self._request.calibration for tensor in inputs):
                digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.detach().contiguous().numpy().tobytes())
        version = openvino().__version__.partition("-")[0]
        return f"{self._request.key}-{form}-{version}-{digest.hexdigest()[:16]}"

    def _compared(self, form: Form, inputs: Tensors, expected: Tensors) -> Tensors:
        outputs = form.answer(inputs)
        found = compare(expected, outputs)
        exact = self._precision == "float32"
        if found == NOTHING_COMMON or (exact and found.largest_relative > LARGEST_RELATIVE):
            raise DifferenceError(
                f"its answer differs by {found.largest_relative:.2g} of the largest value, more than {LARGEST_RELATIVE:g}"
                if found != NOTHING_COMMON
                else "its answer has another shape, or other values that are not finite"
            )
        if found.cosine < LEAST_COSINE:
            raise DifferenceError(
                f"its answer has a cosine of {found.cosine:.2g} with the plain one, less than {LEAST_COSINE:g}"
            )
        self.difference = found if self.difference is None else worse(self.difference, found)
        return outputs

    def _leave_plain(self, inputs: Tensors, why: str) -> None:
        """Compute inputs of this kind by torch from now on, and say so once."""
        sizes: list[tuple[int | None, ...]] = [tuple(tensor.shape) for tensor in inputs]
        batched = bool(inputs) and all(tensor.ndim for tensor in inputs) and len({len(tensor) for tensor in inputs}) == 1
        if batched:
            sizes = [(None, *of_one[1:]) for of_one in sizes]
        types = tuple(tensor.dtype for tensor in inputs)
        self._forms = [*self._forms, Form(Layout(batched=batched), types, tuple(sizes), program=None)]
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self._name} runs in torch, not compiled by OpenVINO: {why}", stacklevel=6)


def _finite(tensor: torch.Tensor) -> bool:
    """Whether it holds neither NaN nor infinity: by the sum, a tenth of the time, and by all elements where the sum is neither.

    By NumPy: torch's threads would go on spinning for a while, on the cores that OpenVINO's are about to use.
    """
    if tensor.dtype != torch.float32:
        return not tensor.is_floating_point() or bool(tensor.isfinite().all())
    with np.errstate(all="ignore"):
        return bool(np.isfinite(tensor.detach().numpy().sum())) or bool(tensor.isfinite().all())


def _refuse(inputs: Tensors) -> None:
    for value in inputs:
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
            given = f"one on {value.device}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise UsageError(f"a module compiled by OpenVINO takes tensors on the CPU, got {given}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        raise UsageError("a module compiled by OpenVINO gives no gradients: open the model without that kernel to train it")
