"""The hooks by which the parts of adapters reach one layer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.adapters.adapted_attention import attend
from zoo.adapters.adapter import Adapter, Held
from zoo.adapters.bare_layer import bare
from zoo.adapters.routing import Choice
from zoo.adapters.target_modules import Place
from zoo.errors import UsageError


class AdaptedLayer:
    """The hooks on one layer of a model, and the places whose outputs are its own."""

    def __init__(self, extension: Any, layer: nn.Module) -> None:
        """extension: the `Adapted` of the model, which knows what was chosen."""
        self.zoo_extension = extension
        self.layer = layer
        self.places: dict[str, Place] = {}
        self.changes_input = False
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Let calls of the layer come by here."""
        if isinstance(self.layer, nn.MultiheadAttention):
            self.layer.forward = self._attend  # type: ignore[method-assign]  # it calls no layer that a hook could stand on
        self._handles = [
            self.layer.register_forward_pre_hook(self._before, with_kwargs=True),
            self.layer.register_forward_hook(self._after, with_kwargs=True),
        ]

    def detach(self) -> None:
        """Leave the layer as it was."""
        for handle in self._handles:
            handle.remove()
        if isinstance(self.layer, nn.MultiheadAttention):
            del self.layer.forward

    def __call__(self, weight_name: str, input_BX: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        """What comes of the outputs of one weight of the layer."""
        choice: Choice = self.zoo_extension.running()
        changes = choice.changes(self, "after", weight_name)
        if not changes:
            return output_BN
        number_B = self._numbers(choice, output_BN)
        try:
            for change in changes:
                output_BN = change(input_BX, output_BN, number_B)
        except RuntimeError as error:
            self._explain(choice, output_BN, error)
            raise
        return output_BN

    def changed_by(self, choice: Choice) -> bool:
        """Whether a call under this choice changes what the layer gives."""
        names = {place.weight_name for place in self.places.values()}
        return any(choice.changes(self, what, name) for name in names for what in ("before", "after"))

    def _attend(self, *args: Any, **arguments: Any) -> Any:
        if not self.changed_by(self.zoo_extension.running()):
            own = bare(self.layer, frozen=self.zoo_extension.frozen())
            return type(self.layer).forward(own, *args, **arguments)
        return attend(self.layer, self, *args, **arguments)

    def held(self, adapters: Sequence[Adapter], what: str, weight_name: str) -> Held:
        """Of each place that reads a weight, its columns and the part of each adapter that has `what`; places without any are left out."""
        found = []
        for name, place in self.places.items():
            if place.weight_name == weight_name:
                parts = [adapter.part(name) if adapter.scale != 0.0 else None for adapter in adapters]
                parts = [part if hasattr(part, what) else None for part in parts]
                if any(part is not None for part in parts):
                    found.append((place.columns, parts))
        return found

    def _before(
        self, _layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.changes_input:
            return None
        choice: Choice = self.zoo_extension.running()
        original = changed = args[0] if args else next(iter(named.values()))
        for change in choice.changes(self, "before", "weight"):
            changed = change(changed, self._numbers(choice, changed))
        if changed is original:
            return None
        return ((changed, *args[1:]), named) if args else ((), {**named, next(iter(named)): changed})

    def _after(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if isinstance(layer, nn.MultiheadAttention):
            return output
        if len(layer._forward_hooks) > 1:  # noqa: SLF001 - somebody else may hold the output
            output = output.clone()
        return self("weight", args[0] if args else next(iter(named.values())), output)

    def _numbers(self, choice: Choice, rows_BX: torch.Tensor) -> torch.Tensor | None:
        if not choice.rows:  # all are alike
            return None
        name, place = next(iter(self.places.items()))
        if len(rows_BX) != choice.batch or not place.keeps_rows:
            raise UsageError(
                f"{name} was called with {len(rows_BX)} rows for a batch of {choice.batch}: it does not keep the rows of a batch apart, so "
                f"they cannot take different adapters; leave it out of the targets, or ask row by row"
            )
        return choice.number(rows_BX.device)

    def _explain(self, choice: Choice, output_BN: torch.Tensor, error: RuntimeError) -> None:
        """Raise UsageError where an adapter lies on another device than the model."""
        adapters = choice.adapters
        away = next(
            (one.device for adapter in adapters for one in adapter.parameters() if one.device != output_BN.device), None
        )
        if away is not None:
            raise UsageError(
                f"an adapter lies on {away}, the model on {output_BN.device}: move it, adapters.to({str(output_BN.device)!r})"
            ) from error
