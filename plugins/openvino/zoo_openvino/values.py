"""Whether a module decides by the values of its inputs: a trace would keep the decision of its example for every later input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

_READS = ("aten::_local_scalar_dense", "aten::equal")  # item(), int(), bool() and torch.equal all come down to these


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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        follows = any(tensor in self._followed for tensor in given)
        schema = func._schema  # noqa: SLF001 - an operator's description has no public name
        if follows and schema.name in _READS:
            self.read = self.read or schema.name
        output = func(*args, **(kwargs or {}))
        if follows:
            written = given if schema.is_mutable else []
            for tensor in (*written, *(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))):
                self._followed[tensor] = True
        return output


def answer_by_torch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[Any, str | None]:
    """The module's output, and the operator by which it read a value of its inputs; None where it read none."""
    with torch.inference_mode(False), torch.no_grad(), _Followed(inputs) as followed:  # in that mode no operator is seen
        output = module(*inputs)
    return output, followed.read
