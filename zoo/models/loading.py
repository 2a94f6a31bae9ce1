"""The tensors of a file -> a module, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zoo.nn.kernels.contract import Published
from zoo.registry.activation import resolve
from zoo.registry.lookup import Found, Registry
from zoo.weights.plugin_formats import read_weights
from zoo.weights.strict_load import load_strict, refuse_nonfinite

_RANDOM_FILLS = frozenset(
    ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")
)


class NoRandomParameters(TorchFunctionMode):
    """Leaves out the random filling of parameters that a strict load overwrites: a third of the time of building."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")  # as torch.nn.init passes it
        if isinstance(filled, torch.nn.Parameter) and getattr(func, "__name__", "") in _RANDOM_FILLS:
            return filled
        return func(*args, **kwargs)


def load(
    module: torch.nn.Module, path: Path, found: Found, registry: Registry, *, trusted: bool, keep_blocks: bool
) -> Mapping[str, Published]:
    """Fill a module from a file, its parameters that the file holds in blocks included.

    trusted: whether a hash vouches for the file. keep_blocks: leave weights that the file holds in blocks out, for a kernel; those are returned,
    by name. Raises StateMismatchError with what differs, WeightsError for a file that cannot be read or holds NaN.
    """
    owner = registry.owner(found.card)
    state: dict[str, Any] = read_weights(path, registry)
    origin = f"{found.name}" if trusted else str(path)
    keys = found.weights.keys if found.weights else found.card.keys
    own = module.state_dict().keys()
    if keys is not None and state.keys() != own:
        renamed = resolve(owner, keys, registry.manager)(state)
        # A file in the module's own names that lacks one, or has one too many, is reported in those names.
        state = max(renamed, state, key=lambda candidate: len(own & candidate.keys()))
    if not trusted:
        refuse_nonfinite(state, origin)
    return load_strict(module, state, origin, release=True, keep_blocks=keep_blocks)
