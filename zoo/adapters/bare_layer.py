"""Torch's attention and encoder layers as they are without adapters: with no hook of ours they take the path that they took before.

Torch has fused kernels for both, which it leaves where a hook stands on a layer or its parameters are frozen; their last digits are others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from zoo.nn.extension import ATTRIBUTE


def bare(module: nn.Module, *, frozen: set[int]) -> Any:
    """A twin of a module without our hooks, down to its last part; all tensors are the same.

    frozen: `Adapted.frozen`: for parameters that are trained torch takes no fused kernel while gradients flow.
    """
    twin = _twin(module)
    if any(id(parameter) in frozen for parameter in module.parameters()):
        for part in twin.modules():
            # In training both take the other path, and without dropout to the same end.
            if isinstance(part, nn.MultiheadAttention) and not part.training:
                part.training, part.dropout = True, 0.0
            elif isinstance(part, nn.TransformerEncoderLayer):
                part.training = True  # its dropout is in modules of their own
    return twin


def _twin(module: nn.Module) -> Any:
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        hooks = getattr(module, name)
        twin.__dict__[name] = type(hooks)((key, hook) for key, hook in hooks.items() if not _is_ours(hook))
    if _is_ours(twin.__dict__.get("forward")):
        del twin.__dict__["forward"]
    twin.__dict__["_modules"] = {
        name: None if part is None else _twin(part) for name, part in module.__dict__["_modules"].items()
    }
    return twin


def _is_ours(method: Any) -> bool:
    return hasattr(getattr(method, "__self__", None), ATTRIBUTE)


class FusedLayer:
    """A `torch.nn.TransformerEncoderLayer` with adapted layers inside: where a call changes none of them, it runs as without adapters."""

    def __init__(self, extension: Any, layer: nn.TransformerEncoderLayer) -> None:
        """extension: the `Adapted` of the model."""
        self.zoo_extension = extension
        self.layer = layer

    def attach(self) -> None:
        self.layer.forward = self._forward  # type: ignore[method-assign]

    def detach(self) -> None:
        del self.layer.forward

    def _forward(self, *args: Any, **arguments: Any) -> Any:
        extension, layer = self.zoo_extension, self.layer
        own: Any = layer
        if not extension.changes_in(layer):
            own = bare(layer, frozen=extension.frozen())
        return type(layer).forward(own, *args, **arguments)


def encoder_layers(model: nn.Module, adapted: Iterable[nn.Module]) -> list[nn.TransformerEncoderLayer]:
    """Torch's encoder layers of a model that hold one of these layers."""
    inside = {id(layer) for layer in adapted}
    return [
        part
        for part in model.modules()
        if isinstance(part, nn.TransformerEncoderLayer) and any(id(one) in inside for one in part.modules())
    ]
