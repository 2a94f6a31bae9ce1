"""Modules of a model that an adapter trains whole, in weights of its own ("modules_to_save" of HF PEFT): heads, embeddings, norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from zoo.errors import UsageError

if TYPE_CHECKING:
    from zoo.adapters.target_modules import Place


def is_norm(module: Any) -> bool:
    """Whether a module does nothing but stretch and shift what it normalises: a vector as its weight, one or none as its bias, and no more."""
    own = dict(module.named_parameters())
    plain = set(own) <= {"weight", "bias"} and "weight" in own and not any(True for _ in module.buffers())
    return plain and all(one.ndim == 1 for one in own.values()) and "Norm" in type(module).__name__


def whole_places(model: nn.Module, places: Mapping[str, Place], targets: Sequence[str] | str) -> list[Place]:
    """The places of the modules that some target names, with all that is in them: each parameter of such a module is one place's.

    places: layers and norms by name. A target is a name, its last words, or a pattern.
    Raises UsageError for a target that names no module, and for a module with parameters of another kind.
    """
    chosen: dict[str, Place] = {}
    modules = dict(model.named_modules())
    for target in [targets] if isinstance(targets, str) else targets:
        exact = target in modules and bool(target)
        named = [
            name
            for name in modules
            if name == target or (not exact and (fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")))
        ]
        if not named:
            raise UsageError(f"no module is called {target!r}, which whole names to be trained by itself")
        for name in named:
            inside = {
                one: place
                for one, place in places.items()
                if (one == name or one.startswith(f"{name}.")) and place.columns is None
            }
            held = {id(one) for place in inside.values() for one in place.tensors() if one is not None}
            held |= {id(getattr(place.layer, "weight", None)) for place in inside.values()}
            for parameter_name, parameter in modules[name].named_parameters():
                if id(parameter) not in held:
                    raise UsageError(
                        f"{name} cannot be trained whole: its {parameter_name} is of no layer, convolution, embedding or norm; name "
                        f"those in it that are"
                    )
            chosen |= inside
    return list(chosen.values())
