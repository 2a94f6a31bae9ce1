"""Reading a safetensors file: a length of eight bytes, a header as JSON, and the tensors' bytes.

The library reads; its header is looked at before, for what the library lets through: names that occur twice, of which one tensor would
win, and headers so long that reading them takes a minute.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from zoo.errors import WeightsError
from zoo.registry.documents import parse_json

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 << 20  # 65,536 tensors take half of it
MAX_TENSORS = 1 << 16


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as a header of JSON does, after its length. GGUF counts its tensors there: 123 are a brace, too."""
    return head[8:9] == b"{" and not head.startswith(b"GGUF")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor. Raises WeightsError for a file that is not valid."""
    check_header(path)
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


def check_header(path: Path) -> None:
    """Raises WeightsError for a header that is too long, has too many tensors, is no JSON, or has a name twice; OSError as `open` does."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise WeightsError(
                f"{path} is not a valid safetensors file: its header has {length:,} bytes, at most {MAX_HEADER_BYTES:,} are read"
            )
        header = file.read(length)
    try:
        names = parse_json(header, unique=True)
    except ValueError as error:
        raise WeightsError(f"{path} is not a valid safetensors file: its header cannot be read ({error})") from None
    if isinstance(names, dict) and len(names) > MAX_TENSORS + 1:  # with its metadata
        raise WeightsError(
            f"{path} is not a valid safetensors file: it has {len(names):,} tensors, at most {MAX_TENSORS:,} are read"
        )
