"""Files mapped into memory, whose pages can be given back once they were read."""

from __future__ import annotations

import mmap
from typing import BinaryIO
from weakref import WeakValueDictionary

import torch

_MAPPED: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # address of the first byte -> the file


def map_file(file: BinaryIO) -> mmap.mmap:
    """A file that is not empty, mapped. Raises OSError."""
    # Copy-on-write and not read-only: torch has no read-only tensors, and a write must not crash or reach the file.
    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    _MAPPED[torch.frombuffer(buffer, dtype=torch.uint8, count=1).data_ptr()] = buffer
    return buffer


def forget_pages(tensor: torch.Tensor) -> None:
    """Give back the memory of a tensor that is a piece of a mapped file and was not written to; it is read anew when it is needed.

    Nothing happens to a tensor that is none. What was written to it would be lost.
    """
    if not tensor.numel() or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = tensor.data_ptr()
    for start, buffer in list(_MAPPED.items()):
        if start <= first < start + len(buffer):
            begin = (
                -(-(first - start) // mmap.PAGESIZE) * mmap.PAGESIZE
            )  # whole pages: its neighbours may be read at this moment
            end = (first - start + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if tensor.is_contiguous() and end > begin:
                buffer.madvise(mmap.MADV_DONTNEED, begin, end - begin)
            return
