"""Which adapters the rows of a batch take, and what they do together at a layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from zoo.adapters.adapter import Adapter, Held, mixed_before_by_rows, mixed_by_rows
from zoo.errors import UsageError

_version_of = attrgetter("_version")  # the counter that autograd relies on
Layer = Any  # `zoo.adapters.adapted.AdaptedLayer`: a layer of a model, with the places whose outputs are its own


class Choice:
    """Which adapters the rows of a batch take: the same for all (`everywhere`), or one or none for each row (`rows` of a `mix`).

    A mix is laid out for running, as its adapters were then; what is everywhere follows its parameters, and gradients flow to them.
    `count` is how many rows it was chosen for where all take the same; None: for any number.
    """

    def __init__(
        self,
        everywhere: Sequence[Adapter] = (),
        *,
        mix: Mix | None = None,
        rows: Sequence[int] = (),
        count: int | None = None,
    ) -> None:
        self.everywhere = tuple(everywhere)
        self.mix = mix
        self.rows = tuple(rows)
        self.count = count
        self.checked = -1  # when it was last made sure that its adapters can be used (`Adapted.epoch`)
        self._numbers: dict[torch.device, torch.Tensor] = {}
        self._changes: dict[tuple[Layer, str], tuple[tuple[float, ...], list[Any]]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Choice:
        """The same of copied adapters; what was worked out is not theirs."""
        everywhere, mix = copy.deepcopy(self.everywhere, memo), copy.deepcopy(self.mix, memo)
        return Choice(everywhere, mix=mix, rows=self.rows, count=self.count)

    @property
    def batch(self) -> int | None:
        """Rows that it is for; None when it is for any number."""
        return len(self.rows) or self.count

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All that some row takes."""
        return self.everywhere if self.mix is None else self.mix.adapters

    def adapters_of(self, row: int) -> tuple[Adapter, ...]:
        """What one row takes."""
        if not self.rows:
            return self.adapters
        number = self.rows[row]
        return self.adapters[number : number + 1]

    def select(self, rows: Sequence[int]) -> Choice:
        """The same for these rows, in this order."""
        if self.rows and self.mix is not None:
            return self.mix.choice([self.rows[row] for row in rows])
        return self if self.count is None else self._counted(len(rows))

    def only(self, row: int) -> Choice:
        """What one row takes, for all rows of another batch."""
        if self.rows and self.mix is not None:
            return self.mix.all_alike(self.rows[row])
        return self if self.count is None else self._counted(None)

    def _counted(self, count: int | None) -> Choice:
        return Choice(self.everywhere, mix=self.mix, count=count)

    def number(self, device: torch.device) -> torch.Tensor:
        """int[B], the number of each row's adapter in the mix."""
        if device not in self._numbers:
            with torch.inference_mode(mode=False):  # so that calls with gradients can take it, too
                self._numbers[device] = torch.tensor(self.rows, device=device)
        return self._numbers[device]

    def changes(self, layer: Layer, what: str, weight_name: str) -> list[Any]:
        """What is done at a layer, one after another: (input, numbers) -> input for "before", (input, output, numbers) -> output for "after"."""
        if self.mix is not None:
            return self.mix.changes(layer, what, weight_name)
        scales = tuple(adapter.scale for adapter in self.everywhere)
        found = self._changes.get((layer, what + weight_name))
        if found is None or found[0] != scales:
            by_rows: Any = mixed_by_rows if what == "after" else mixed_before_by_rows
            changes = []
            for adapter in self.everywhere:
                held = layer.held([adapter], what, weight_name)
                if held:
                    changes.append(by_rows(held if what == "after" else held[0][1], [adapter.scale]))
            found = self._changes[layer, what + weight_name] = (scales, changes)
        return found[1]

    def virtual_count(self, row: int) -> int:
        """Tokens that a decoder reads before those of a row."""
        return sum(adapter.virtual_count for adapter in self.adapters_of(row))

    def key(self, row: int) -> str:
        """Of the content of what a row takes, as of `Adapter.key`; empty where it takes none."""
        return "+".join(adapter.key for adapter in self.adapters_of(row))


class Mix:
    """Adapters that share a batch. What they do together at a layer is laid out once, however the rows change."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)
        self._changes: dict[tuple[Layer, str], tuple[list[torch.Tensor], tuple[Any, ...], list[Any]]] = {}
        self._alone: dict[int, Mix] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Mix:
        return Mix(copy.deepcopy(self.adapters, memo))

    def choice(self, rows: Sequence[int]) -> Choice:
        """Rows of these numbers; the number of adapters stands for none."""
        if len(set(rows)) > 1 or len(rows) == 1:
            return Choice(mix=self, rows=rows)
        return self.all_alike(rows[0], len(rows))

    def all_alike(self, number: int, count: int | None = None) -> Choice:
        """One number for all of so many rows; None: of any number."""
        if number == len(self.adapters):
            return Choice(count=count)
        if len(self.adapters) == 1:
            return Choice(mix=self, count=count)
        if number not in self._alone:
            self._alone[number] = Mix([self.adapters[number]])
        return Choice(mix=self._alone[number], count=count)

    def changes(self, layer: Layer, what: str, weight_name: str) -> list[Any]:
        """As `Choice.changes`, one function for each kind of part; laid out anew when a number of them, or of the layer, was written to."""
        scales = tuple(adapter.scale for adapter in self.adapters)
        found = self._changes.get((layer, what + weight_name))
        if found is None or _state_of(found[0], scales) != found[1] or torch.is_grad_enabled():
            held = layer.held(self.adapters, what, weight_name)
            training = torch.is_grad_enabled() or any(
                part is not None and part.training for _, parts in held for part in parts
            )
            changes = self._laid_out(held, what, scales, training=training)
            if training:
                return changes
            tensors = [one for _, parts in held for part in parts if part is not None for one in part.parameters()]
            tensors = [one for one in (*tensors, *layer.layer.parameters()) if not one.is_inference()]
            found = self._changes[layer, what + weight_name] = (tensors, _state_of(tensors, scales), changes)
        return found[2]

    def _laid_out(self, held: Held, what: str, scales: Sequence[float], *, training: bool) -> list[Any]:
        changes = []
        for kind in dict.fromkeys(type(part) for _, parts in held for part in parts if part is not None):
            own = [(columns, [part if type(part) is kind else None for part in parts]) for columns, parts in held]
            own = [(columns, parts) for columns, parts in own if any(part is not None for part in parts)]
            if what == "after":
                make = None if training else own_of(kind, "mixed", "after")
                changes.append((make or mixed_by_rows)(own, scales))
            else:
                make = None if training else own_of(kind, "mixed_before", "before")
                changes.append((make or mixed_before_by_rows)(own[0][1], scales))
        return changes


def require_rows(model: nn.Module, given: Sequence[Any], batch: int) -> None:
    """Raise UsageError for a call of a model whose arguments have tensors, and none with so many rows."""
    # Torch's own attention and recurrent layers have the batch second without it; what holds them may, too.
    first = all(getattr(part, "batch_first", True) for part in model.modules())
    counts = [size for value in given for one in _tensors(value) for size in one.shape[: 1 if first else 2]]
    if counts and batch not in counts:
        raise UsageError(f"adapters are chosen for {batch} rows, the batch has {counts[0]}")


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in an argument of a model. A list may be one of rows, whose tensors have none."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ()
    return [tensor for one in inner for tensor in _tensors(one)]


def own_of(kind: type, name: str, beside: str) -> Any:
    """What a class has under a name, unless what stands beside it was overridden since."""
    holders = [one for one in kind.__mro__ if name in vars(one) or beside in vars(one)]
    return getattr(kind, name, None) if holders and name in vars(holders[0]) else None


def _state_of(tensors: Sequence[torch.Tensor], scales: tuple[float, ...]) -> tuple[Any, ...]:
    """What changes when a tensor is written to or moved, as torch counts."""
    return (*scales, *map(_version_of, tensors))
