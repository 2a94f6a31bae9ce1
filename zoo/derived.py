"""Tensors that are computed once from known inputs and kept on disk, keyed by everything that shapes them.

The key is a hash of content, never a name: other weights, other code or another dtype make another key, so nothing stale
can be read. A file that is damaged, missing or unwritable only costs the computation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zoo.settings import cache_dir


def derived(
    kind: str, inputs: Mapping[str, Any], compute: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The tensors that `compute` returns, from disk if they were computed before from the same inputs.

    kind: what they are, part of the key. inputs: anything JSON can write; models enter by `Built.identity`.
    """
    content = json.dumps({"kind": kind, "inputs": inputs}, sort_keys=True, ensure_ascii=False)
    path = cache_dir() / "derived" / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        pass
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in compute().items()}
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError):
        temporary.unlink(missing_ok=True)
    return tensors
