"""State dicts under another library's names -> ours, and back: tensors are renamed, split and joined by tables of names.

A name in a table is that of a module (its `.weight` or `.bias` follows by itself) or of a parameter. `*` is a number, and the
numbers of one side are those of the other, in the same order. What no table knows is passed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch

from zoo.api import StateMismatchError

State = Mapping[str, torch.Tensor]
Tensors = Sequence[torch.Tensor]


def rename(state: State, table: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Their names -> ours. Raises StateMismatchError when two tensors end up with one name."""
    rows = [(_pattern(theirs), ours) for theirs, ours in table.items()]
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = next((_filled(ours, match) for row, ours in rows if (match := row.fullmatch(key))), key)
        if name in renamed:
            raise StateMismatchError(f"two tensors are {name} in this model, the second is {key}: leave one of them out")
        renamed[name] = tensor
    return renamed


def inverted(table: Mapping[str, str]) -> dict[str, str]:
    """Ours -> theirs."""
    return {ours: theirs for theirs, ours in table.items()}


def with_bare_names(table: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The same table, which also knows their names without the prefix: those of a model that was saved without its head."""
    return {**table, **{theirs.removeprefix(prefix): ours for theirs, ours in table.items()}}


def without(state: State, pattern: str) -> dict[str, torch.Tensor]:
    """Without the keys that match: buffers that old files hold and no model trains."""
    return {key: tensor for key, tensor in state.items() if not re.fullmatch(pattern, key)}


def drop_tied(state: State, second: str, first: str) -> dict[str, torch.Tensor]:
    """Without `second` if it equals `first`. One that differs is no tie and stays."""
    tied = second in state and first in state and torch.equal(state[second], state[first])
    return {key: tensor for key, tensor in state.items() if not (tied and key == second)}


def add_tied(state: State, second: str, first: str) -> dict[str, torch.Tensor]:
    """With `second`, which is the very tensor of `first`, unless there is one already."""
    return {**state, second: state[first]} if first in state and second not in state else dict(state)


def split(
    state: State, joined: str, parts: Sequence[str], cut: Callable[[torch.Tensor], Tensors]
) -> dict[str, torch.Tensor]:
    """Each tensor called `joined` becomes several: what `cut` makes of it, under the names `parts`."""
    pattern = _pattern(joined)
    result: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        match = pattern.fullmatch(key)
        names = [_filled(part, match) for part in parts] if match else [key]
        result.update(zip(names, cut(tensor) if match else [tensor], strict=True))
    return result


def join(
    state: State, parts: Sequence[str], joined: str, glue: Callable[[Tensors], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The way back from `split`. Where a part is missing the others stay as they are."""
    pattern = _pattern(parts[0])
    result = dict(state)
    for key in state:
        match = pattern.fullmatch(key)
        names = [_filled(part, match) for part in parts] if match else []
        if match and all(name in result for name in names):
            result[_filled(joined, match)] = glue([result.pop(name) for name in names])
    return result


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"(\d+)") + r"(|\.weight|\.bias)")


def _filled(name: str, match: re.Match[str]) -> str:
    """The name with its numbers and the parameter that followed."""
    *numbers, parameter = match.groups()
    for number in numbers:
        name = name.replace("*", number, 1)
    return name + parameter
