"""Whether a module is still as it was: what was computed by it holds only while it is."""

from typing import Any

from torch import nn


def stamp_of(*modules: nn.Module) -> int:
    """A number that changes when a tensor of the modules is exchanged, or written to. It means something within one process."""
    return hash(tuple(_version(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())))


def _version(tensor: Any) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - the counter that autograd relies on
