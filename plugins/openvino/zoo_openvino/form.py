"""One compiled form of a module: which inputs it takes, and how far that was checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from zoo_openvino.conversion import Sizes, Tensors

TRACED_ROWS = 2  # one row would be taken for one that every other row shares
TYPES = (torch.float32, torch.int64, torch.int32, torch.bool, torch.uint8)
WHOLE = (torch.int64, torch.int32, torch.bool)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the axes of inputs are read.

    batched: the first axis of all is the batch. length: of the second axis of token ids or masks, which are the inputs of whole numbers
    with two axes, and of every other input whose second axis is as long; None where there are none.
    rows: the graph reads one row at a time, because the module has its batch size in its code.
    """

    batched: bool
    length: int | None = None
    rows: bool = False

    def sizes(self, inputs: Tensors) -> tuple[Sizes, ...]:
        """The sizes of a graph's inputs, None where any will do."""
        return tuple(tuple(self._size(axis, size) for axis, size in enumerate(tensor.shape)) for tensor in inputs)

    def _size(self, axis: int, size: int) -> int | None:
        if axis == 0 and self.batched:
            return 1 if self.rows else None
        return None if axis == 1 and size == self.length else size

    @property
    def generality(self) -> int:
        """The less, the more inputs it takes."""
        return 2 if self.rows else int(self.length is None)

    @property
    def trial_batches(self) -> tuple[int, ...]:
        """Numbers of rows with which a graph is tried out; none where its first axis is no batch."""
        if not self.batched:
            return ()
        return (1,) if self.rows else (TRACED_ROWS, 1)

    def example(self, inputs: Tensors) -> Tensors:
        """Inputs to trace on."""
        if not self.batched:
            return inputs
        wanted = 1 if self.rows else TRACED_ROWS
        return tuple(torch.cat([tensor[:wanted]] * wanted)[:wanted].contiguous() for tensor in inputs)


def layouts(inputs: Tensors, outputs: Tensors) -> list[Layout]:
    """How these inputs may be read, the most general first."""
    batch = {tensor.shape[0] if tensor.ndim else None for tensor in (*inputs, *outputs)}
    if len(batch) != 1 or None in batch:
        return [Layout(batched=False)]
    lengths = {tensor.shape[1] for tensor in inputs if tensor.ndim == 2 and tensor.dtype in WHOLE}
    general = [Layout(batched=True, length=lengths.pop())] if len(lengths) == 1 else []
    return [*general, Layout(batched=True), Layout(batched=True, rows=True)]


@dataclass(slots=True)
class Form:
    """A program and the inputs that it was checked on; without a program, inputs that are not compiled.

    An axis of any size is trusted once two sizes gave the plain module's answer, the size at which it was traced among them.
    """

    layout: Layout
    types: tuple[torch.dtype, ...]
    sizes: tuple[Sizes, ...]
    program: Callable[[Tensors], Tensors] | None
    batches: set[int] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)

    def takes(self, inputs: Tensors) -> bool:
        """Whether the graph reads inputs of these types and sizes."""
        if tuple(tensor.dtype for tensor in inputs) != self.types:
            return False
        if [tensor.ndim for tensor in inputs] != [len(sizes) for sizes in self.sizes]:
            return False
        free = self.layout.batched
        for tensor, sizes in zip(inputs, self.sizes, strict=True):
            for axis, (given, size) in enumerate(zip(tensor.shape, sizes, strict=True)):
                if size is not None and given != size and not (axis == 0 and free):
                    return False
        return _one_batch(inputs) if free else True

    def trusts(self, inputs: Tensors) -> bool:
        """Whether it was checked as far as these inputs need."""
        return self.program is None or (
            _settled(self.batches, _batch(self.layout, inputs)) and _settled(self.lengths, _length(self, inputs))
        )

    def trusts_all(self) -> bool:
        """Whether nothing is left to check, or to compile: inputs without a batch, and texts of one length, may come in other sizes."""
        reads = zip(self.types, self.sizes, strict=True)
        one_length = any(dtype in WHOLE and len(sizes) == 2 and sizes[1] is not None for dtype, sizes in reads)
        length_open = self.layout.length is not None and len(self.lengths) < 2
        return self.layout.batched and len(self.batches) > 1 and not one_length and not length_open

    def checked(self, inputs: Tensors) -> None:
        """The answer to these inputs was right."""
        for seen, size in ((self.batches, _batch(self.layout, inputs)), (self.lengths, _length(self, inputs))):
            if size is not None:
                seen.add(size)

    def answer(self, inputs: Tensors) -> Tensors:
        """Run the program, row by row where it reads single rows."""
        if self.program is None:
            raise ValueError("a form without a program has no answer")
        if not self.layout.batched:
            return self.program(inputs)
        if not len(inputs[0]):  # OpenVINO is not asked for nothing: one row of zeros tells the shapes
            empty = self.program(tuple(tensor.new_zeros(1, *tensor.shape[1:]) for tensor in inputs))
            return tuple(output[:0].clone() for output in empty)
        if not self.layout.rows or len(inputs[0]) == 1:
            return self.program(inputs)
        rows = [self.program(row) for row in zip(*(torch.split(tensor, 1) for tensor in inputs), strict=True)]
        return tuple(torch.cat(outputs) for outputs in zip(*rows, strict=True))


def describe(types: Sequence[torch.dtype], sizes: Sequence[Sizes]) -> str:
    """`float32[*, 3, 224, 224]`, one after another."""
    return ", ".join(
        f"{str(dtype).removeprefix('torch.')}[{', '.join('*' if size is None else str(size) for size in of_one)}]"
        for dtype, of_one in zip(types, sizes, strict=True)
    )


def _one_batch(inputs: Tensors) -> bool:
    return len({len(tensor) for tensor in inputs}) == 1


def _settled(seen: set[int], size: int | None) -> bool:
    return size is None or len(seen) > 1 or size in seen


def _batch(layout: Layout, inputs: Tensors) -> int | None:
    return len(inputs[0]) if layout.batched else None


def _length(form: Form, inputs: Tensors) -> int | None:
    if form.layout.length is None:
        return None
    return next(
        tensor.shape[1] for tensor, sizes in zip(inputs, form.sizes, strict=True) if len(sizes) > 1 and sizes[1] is None
    )
