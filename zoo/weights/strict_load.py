"""Loading a state dict into a module, strictly, and refusing numbers that no model has."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from zoo.errors import StateMismatchError, WeightsError
from zoo.weights.formats.gguf_blocks import Blocks


def load_strict(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor | Blocks],
    origin: str,
    *,
    release: bool = False,
    keep_blocks: bool = False,
) -> dict[str, Blocks]:
    """Load a state dict whose keys, shapes and kinds of numbers match the module's exactly; floating point may differ in width.

    release: take each tensor out of `state`, a dict, once it is loaded, so that the weights never stand in memory twice.
    keep_blocks: leave the tensors of the module alone that the file holds in blocks; those blocks are returned, by name.
    Raises StateMismatchError with the difference.
    """
    own = module.state_dict()
    require_fit(own, state, origin)
    blocks = {}
    for key, tensor in own.items():
        value = state.pop(key) if release and isinstance(state, dict) else state[key]
        if isinstance(value, torch.Tensor):
            tensor.copy_(value)
        elif keep_blocks:
            blocks[key] = value
        else:
            tensor.copy_(value.dequantise())
    return blocks


def require_fit(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor | Blocks], origin: str) -> None:
    """Compare tensors with those that they are to replace, by names, shapes and kinds of numbers; nothing is copied.

    Raises StateMismatchError with the difference.
    """
    lines = [f"  missing     {key} {list(own[key].shape)}" for key in own if key not in state]
    lines += [f"  unexpected  {key} {list(state[key].shape)}" for key in state if key not in own]
    lines += [
        f"  shape       {key} {list(state[key].shape)}, the model has {list(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    lines += [
        f"  dtype       {key} {state[key].dtype}, the model has {own[key].dtype}"
        for key in own
        if key in state and own[key].shape == state[key].shape and _kind(own[key].dtype) != _kind(state[key].dtype)
    ]
    if lines:
        shown = lines[:12]
        rest = [f"  ... and {len(lines) - len(shown)} more"] if len(lines) > len(shown) else []
        summary = f"{origin} does not fit the model: {len(lines)} of {len(own)} tensors differ"
        raise StateMismatchError("\n".join([summary, *shown, *rest]))


def refuse_nonfinite(state: Mapping[str, torch.Tensor | Blocks], origin: str) -> None:
    """Raise WeightsError when a tensor holds NaN or infinity. For bytes that no hash vouches for."""
    for key, value in state.items():
        tensor = value if isinstance(value, torch.Tensor) else value.dequantise()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{origin} holds NaN or infinity in {key}: refused")


def _kind(dtype: torch.dtype) -> str:
    """What a number is, whatever its width: weights may be stored in fewer bits, never as another kind of number."""
    if dtype.is_floating_point:
        return "floating point"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype == torch.bool else "integer"
