"""State dicts under another library's names -> ours, and back, by a table of names.

A name in a table is that of a module (its `.weight` or `.bias` follows by itself) or of a parameter; `*` is the first number of
a key, that of its layer. What no table knows is passed on, so that a strict load (`zoo.api.load_strict`) shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from zoo.api import StateMismatchError

State = Mapping[str, torch.Tensor]
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def rename(state: State, table: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Their names -> ours. Raises StateMismatchError when two tensors end up with one name."""
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = _translated(key, table)
        if name in renamed:
            raise StateMismatchError(f"two tensors are {name} in this model, the second is {key}: leave one of them out")
        renamed[name] = tensor
    return renamed


def inverted(table: Mapping[str, str]) -> dict[str, str]:
    """Ours -> theirs."""
    return {ours: theirs for theirs, ours in table.items()}


def _translated(key: str, table: Mapping[str, str]) -> str:
    number = NUMBER.search(key)
    general = NUMBER.sub("*", key, count=1)
    module, dot, parameter = general.rpartition(".")
    if general in table:
        name = table[general]
    elif module in table:
        name = table[module] + dot + parameter
    else:
        return key
    return name.replace("*", number[0]) if number else name
