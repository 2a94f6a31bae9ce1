"""Whether parameters are still as they were drawn, and the sha256 of what no file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.nn.stamp import writes_of


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One tensor at some time: sha256 of its numbers (empty where a file holds them), its format, how often it was written to, and
    whether it is a parameter, else a buffer.
    """

    sha256: str
    dtype: torch.dtype
    writes: int
    parameter: bool


def snapshot(tensors: Iterable[tuple[str, torch.Tensor]], *, hashed: bool = True) -> dict[str, Snapshot]:
    """Each tensor by its name, as it is now. hashed: False where a file says what they hold."""
    return {
        name: Snapshot(
            tensor_sha256(tensor) if hashed else "", tensor.dtype, writes_of(tensor), isinstance(tensor, nn.Parameter)
        )
        for name, tensor in tensors
    }


def saved_numbers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a file of weights holds, by name: the parameters, and the buffers that are saved (the means of a BatchNorm)."""
    yield from module.named_parameters()
    yield from saved_buffers(module)


def saved_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = module.state_dict(keep_vars=True)
    return ((name, tensor) for name, tensor in module.named_buffers() if name in saved)


def was_trained(module: nn.Module, before: Mapping[str, Snapshot]) -> bool:
    """Whether a parameter of a module holds other numbers than before. A cast changes no number that was learnt.

    Buffers alone are no training: they follow whatever a model was shown.
    """
    return _differ(module.named_parameters(), before)


def buffers_differ(module: nn.Module, before: Mapping[str, Snapshot]) -> bool:
    """Whether a buffer that is saved holds other numbers than before."""
    return _differ(saved_buffers(module), before)


def _differ(tensors: Iterable[tuple[str, torch.Tensor]], before: Mapping[str, Snapshot]) -> bool:
    """Those that are no longer there, as a kernel exchanges them, say nothing. Drawn ones are compared by their hash, others by the count
    of writes to them.
    """
    for name, tensor in tensors:
        known = before.get(name)
        if known is None:
            continue
        written = writes_of(tensor) != known.writes
        if written if not known.sha256 or known.dtype != tensor.dtype else tensor_sha256(tensor) != known.sha256:
            return True
    return False


def snapshot_sha256(tensors: Mapping[str, Snapshot]) -> str:
    """sha256 over names and hashes."""
    return hashlib.sha256("\n".join(f"{name} {one.sha256}" for name, one in tensors.items()).encode()).hexdigest()


def tensors_sha256(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names and contents, as `snapshot_sha256` of the same."""
    return snapshot_sha256(snapshot(tensors))


def tensor_sha256(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's format, shape and numbers, wherever it lies and however it is laid out."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if tensor.device.type != "meta":  # which holds none
        numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(numbers)
    return digest.hexdigest()
