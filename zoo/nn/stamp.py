"""Whether a module is still as it was: what was computed by it holds only while it is."""

from itertools import count
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from zoo.nn.extension import extensions_in

_numbers = count()
_number_of: Any = WeakIdKeyDictionary()  # an address may come again, a number does not


def stamp_of(*modules: nn.Module) -> int:
    """A number that changes when a tensor of the modules is exchanged, cast, moved or written to, when one of their submodules or an active
    extension is, and when they change between training and evaluation. It means something within one process.

    What goes round torch's own count of writes is not seen: `.data`, and writes to a model that was built under inference mode.
    """
    parts = [part for module in modules for part in module.modules()]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    extensions = (extension.stamp() for extension in extensions_in(*modules))
    return hash((tuple((id(type(part)), part.training) for part in parts), tuple(map(_version, tensors)), *extensions))


class Unchanged:
    """Whether the parameters, buffers and submodules of a module are those that it had when this was made; quicker to ask than `stamp_of`.

    What goes round torch's own count of writes is not seen, as there.
    """

    def __init__(self, module: nn.Module, *, writes: bool) -> None:
        """writes: whether it counts, too, that one was written to, or that a part changed between training and evaluation."""
        self.tables: list[tuple[dict[str, Any], int]] = []
        self.values: list[tuple[dict[str, Any], str, Any]] = []
        self.written: list[tuple[torch.Tensor, int]] = []
        self.modes: list[tuple[dict[str, Any], bool]] = []
        for part in module.modules():
            for table in (part._parameters, part._buffers, part._modules):  # noqa: SLF001 - looking up names takes ten times as long
                self.tables.append((table, len(table)))
                self.values += [(table, name, value) for name, value in table.items()]
            if writes:
                tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
                self.written += [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]  # noqa: SLF001 - as in `writes_of`
                self.modes.append((part.__dict__, part.training))

    def __bool__(self) -> bool:
        return (
            all(len(table) == count for table, count in self.tables)
            and all(table.get(name) is value for table, name, value in self.values)
            and all(tensor._version == count for tensor, count in self.written)  # noqa: SLF001 - as in `writes_of`
            and all(fields["training"] == mode for fields, mode in self.modes)
        )


def writes_of(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; 0 for one made in inference mode, where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - the counter that autograd relies on


def _version(tensor: Any) -> tuple[int, int, torch.dtype, int]:
    if tensor not in _number_of:
        _number_of[tensor] = next(_numbers)
    place = tensor.data_ptr() if tensor.layout == torch.strided else 0  # one that oneDNN laid out has none to tell
    return _number_of[tensor], writes_of(tensor), tensor.dtype, place
