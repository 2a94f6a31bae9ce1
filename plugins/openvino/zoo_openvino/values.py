"""Whether a module decides by the values of its inputs: a trace would keep the decision of its example for every later input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

# item(), int(), bool() and torch.equal come down to the first two; the size of what the others give is a matter of values.
_READS = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "equal", "nonzero", "_unique2", "unique_consecutive", "unique_dim", "masked_select", "bincount",
        "repeat_interleave.Tensor",
    )
)  # fmt: skip
_LEFT_TORCH = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr")  # methods that hand the values to somebody else


class ValueReadError(Exception):
    """The module's code reads a value that comes of its inputs."""


class _Followed(TorchDispatchMode):
    """Follows what is computed from some tensors, and notes when a number is taken out of it."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: str | None = None
        self._followed: Any = WeakTensorKeyDictionary()
        for tensor in tensors:
            self._followed[tensor] = True

    def follows(self, tensor: Any) -> bool:
        """Whether a tensor comes of the inputs."""
        return isinstance(tensor, torch.Tensor) and tensor in self._followed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        follows = any(tensor in self._followed for tensor in given)
        schema = func._schema  # noqa: SLF001 - an operator's description has no public name
        name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
        if follows and (schema.name in _READS or name in _READS or (schema.name == "aten::index" and _by_mask(args))):
            self.read = self.read or schema.name
        output = func(*args, **(kwargs or {}))
        if follows:
            written = given if schema.is_mutable else []
            for tensor in (*written, *(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))):
                self._followed[tensor] = True
        return output


def _by_mask(arguments: Sequence[Any]) -> bool:
    """Whether a tensor is indexed by truth values."""
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])


class _Handed(TorchFunctionMode):
    """Notes when what is followed leaves torch as numbers."""

    def __init__(self, followed: _Followed) -> None:
        super().__init__()
        self.followed = followed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = getattr(func, "__name__", "")
        if name in _LEFT_TORCH and self.followed.follows(args[0]):
            self.followed.read = self.followed.read or f"Tensor.{name}"
        return func(*args, **(kwargs or {}))


def answer_by_torch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[Any, str | None]:
    """The module's output, and the operator by which it read a value of its inputs; None where it read none."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _Followed(inputs) as followed,
        _Handed(followed),
    ):  # in that mode no operator is seen
        output = module(*inputs)
    return output, followed.read
