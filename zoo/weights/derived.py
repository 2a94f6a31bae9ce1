"""Tensors that are computed once from known inputs and kept on disk, keyed by everything that shapes them.

The key is a hash of content, never a name: other weights, other code or another dtype make another key, so nothing stale
can be read. Each file carries the hash of its own tensors: one that is damaged, missing or unwritable only costs the
computation.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from zoo import __version__
from zoo.registry.settings import cache_dir
from zoo.weights.cache import warn_of_others
from zoo.weights.writing import write_tensors

PATIENCE_S = 1.0


def derived(
    kind: str, inputs: Mapping[str, Any], compute: Callable[[], dict[str, torch.Tensor]], *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """The tensors that `compute` returns, on the CPU; from disk if they were computed before from the same inputs.

    kind: what they are, part of the key. inputs: anything JSON can write; models enter by `Built.identity`.
    keep: False for what comes from random weights (`Built.random`): nobody draws the same ones again, and the file would lie there for
        good. Then nothing is read or written.
    """
    if not keep:
        with _announced(kind):
            return _in_memory(compute())
    content = json.dumps({"kind": kind, "zoo": __version__, "inputs": inputs}, sort_keys=True, ensure_ascii=False)
    warn_of_others(cache_dir())
    path = cache_dir() / "derived" / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"
    kept = _read(path)
    if kept is not None:
        return kept
    with _announced(kind):
        made = compute()
    tensors = _in_memory(made)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, metadata={"kind": kind, "sha256": _digest(tensors)}, durable=False)
    return tensors


def _in_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that lie as torch lays them: in a mapped file they begin anywhere, and sums over them end in other last digits."""
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, or None when it is not there or not as it was written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = _in_memory({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - it is no mapping
            written = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return tensors if written == _digest(tensors) else None


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, formats, shapes and every byte."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _announced(kind: str) -> Iterator[None]:
    """Around the work: a line on stderr when it takes long enough for somebody to wonder."""
    timer = Timer(PATIENCE_S, lambda: print(f"preparing {kind}, once ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
