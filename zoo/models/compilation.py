"""A model whose whole computations run by a kernel that compiles modules: its methods are replaced, one by one."""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.models.encoded import Encoded
from zoo.nn.extension import extensions_in
from zoo.nn.kernels.contract import Compile, CompileRequest
from zoo.nn.stamp import Unchanged
from zoo.weights.cache import compiled_dir

if TYPE_CHECKING:
    from zoo.registry.card import Card

# Kind of card -> methods that take prepared inputs, and how many arguments come before those.
METHODS = {"encoder": {"forward": 0, "logits": 0}, "dual_encoder": {"encode": 1, "features": 1}}
COMPILED = "zoo_compiled"  # of a module: method -> its CompiledMethod
Calibration = Mapping[str, Sequence[tuple[torch.Tensor, ...]]]
_tracing: contextvars.ContextVar[bool] = contextvars.ContextVar("zoo_tracing", default=False)


def compile_model(module: nn.Module, model: Card, build: Compile, *, key: str, calibration: Calibration) -> None:
    """Let the methods of an encoder compute by a kernel, in place. Raises UsageError for a kind that has none to compile.

    calibration: method, and what comes before its tensors (`encode-image`), -> inputs of it, for formats that need real ones.
    """
    if model.kind not in METHODS:
        raise UsageError(
            f"a kernel that compiles whole modules is for {', '.join(METHODS)}; {model.name} is of kind {model.kind}: leave it out"
        )
    for method, before in METHODS[model.kind].items():
        if hasattr(type(module), method):
            compile_method(module, method, build, key=key, before=before, calibration=calibration)


def compile_method(
    owner: nn.Module,
    method: str,
    build: Compile,
    *,
    key: str,
    before: int = 0,
    calibration: Calibration = MappingProxyType({}),
) -> None:
    """Let one method of a module compute by a kernel, in place; each form is compiled when it is first called.

    build: `Kernel.compile`. key: sha256 of what shapes the module's numbers. before: arguments that choose what is computed (a modality); tensors follow, or a
    tuple of them. The plain method answers where gradients are asked, adapters stand on the module, it is no longer as it was, an argument is named, and
    in copies of the module.
    Raises UsageError for a module that runs by a kernel already.
    """
    compiled = owner.__dict__.setdefault(COMPILED, {})
    if method in compiled:
        raise UsageError("the model runs by a kernel already: build it anew for another")
    call = CompiledMethod(owner, method, _Builder(build, key, before, calibration))
    compiled[method] = owner.__dict__[method] = call


class _Builder(NamedTuple):
    build: Compile
    key: str
    before: int
    calibration: Calibration


class CompiledMethod:
    """A method of a module, compiled for each form of call when it first comes. forms: what was compiled so far."""

    def __init__(self, owner: nn.Module, method: str, builder: _Builder | None) -> None:
        """builder: None in a copy, whose numbers have no key: it computes plainly."""
        self.owner, self.method, self.builder = owner, method, builder
        self.forms: dict[tuple[Any, ...], nn.Module] = {}
        self.unchanged = None if builder is None else Unchanged(owner, writes=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledMethod:
        return CompiledMethod(copy.deepcopy(self.owner, memo), self.method, None)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """As the plain method."""
        owner, builder = self.owner, self.builder
        tensors = None if builder is None or named else _tensors(arguments[builder.before :])
        plainly = _tracing.get() or torch.is_grad_enabled() or not self.unchanged or extensions_in(owner)
        if builder is None or tensors is None or plainly:
            return getattr(type(owner), self.method)(owner, *arguments, **named)
        choice, joined = arguments[: builder.before], isinstance(arguments[builder.before], tuple)
        form = (*choice, joined, len(tensors))
        if form not in self.forms:
            name = "-".join((self.method, *map(str, form)))
            inputs = builder.calibration.get("-".join((self.method, *map(str, choice))), ())
            request = CompileRequest(key=f"{builder.key}-{name}", cache=compiled_dir(), calibration=inputs)
            self.forms[form] = builder.build(_Plain(owner, self.method, choice, joined=joined), request)
        given = self.forms[form](*tensors)
        return Encoded(*given) if isinstance(given, tuple) and len(given) == 3 else given


def compiled_parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What was compiled of a model so far: the form of a call -> the compiled module."""
    for part in module.modules():
        for method, call in part.__dict__.get(COMPILED, {}).items():
            yield from (("-".join(map(str, (method, *form))), compiled) for form, compiled in call.forms.items())


class _Plain(nn.Module):
    """A method as a module that takes and gives tensors alone, which compilers ask for."""

    def __init__(self, owner: nn.Module, method: str, choice: Sequence[Any], *, joined: bool) -> None:
        super().__init__()
        self.owner, self.method, self.choice, self.joined = owner, method, choice, joined

    def forward(self, *tensors: torch.Tensor) -> Any:
        """What the method takes, tensor by tensor -> float[B, ...]; of an `Encoded` its tokens, mask and pooled vectors."""
        with _plainly():
            inputs = (tensors,) if self.joined else tensors
            given = getattr(type(self.owner), self.method)(self.owner, *self.choice, *inputs)
        return (given.tokens_BTD, given.mask_BT, given.pooled_BD) if isinstance(given, Encoded) else given


@contextmanager
def _plainly() -> Iterator[None]:
    """No compiled method answers for what runs inside."""
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def _tensors(arguments: Sequence[Any]) -> tuple[torch.Tensor, ...] | None:
    """The tensors of a call; None for one that holds anything else."""
    inputs = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple) else arguments
    return tuple(inputs) if inputs and all(isinstance(one, torch.Tensor) for one in inputs) else None
