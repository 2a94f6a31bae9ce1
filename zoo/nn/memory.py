"""Memory: what goes back to the system, and what copies have in common."""

from __future__ import annotations

import copy
import ctypes
import sys
from typing import Any

from torch import nn


def give_back_memory() -> None:
    """Give what was freed back to the system, where the C library would keep it for later. Linux alone needs it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def copy_sharing(module: nn.Module, memo: dict[int, Any], *shared: object) -> Any:
    """A deep copy of a module that has some of its values in common with it: for its `__deepcopy__`.

    shared: what nobody writes to and cannot be copied, as a weight that oneDNN or another library laid out.
    """
    memo.update((id(value), value) for value in shared)
    other = module.__class__.__new__(module.__class__)
    memo[id(module)] = other
    other.__dict__.update({name: copy.deepcopy(value, memo) for name, value in module.__dict__.items()})
    return other
