"""Reading a safetensors file: a length of eight bytes, a header as JSON, and the tensors' bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from zoo.errors import WeightsError


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as a header of JSON does, after its length. GGUF counts its tensors there: 123 are a brace, too."""
    return head[8:9] == b"{" and not head.startswith(b"GGUF")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor. Raises WeightsError for a file that is not valid."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a valid safetensors file: {error}") from error


def read_settings(path: Path) -> dict[str, str]:
    """The texts of the header's `__metadata__`. Raises WeightsError for a file that is not valid."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a valid safetensors file: {error}") from error
