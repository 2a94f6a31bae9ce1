"""Reading a torch checkpoint: a zip or a pickle of tensors, unpickled with `weights_only=True`, and nothing that inflates."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import serialization

from zoo.errors import WeightsError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
STATE_KEYS = ("model_state_dict", "state_dict")  # under which checkpoints keep their tensors beside other numbers
MAX_INFLATION = 1.05  # a checkpoint stores its tensors uncompressed; more is a decompression bomb


def is_torch_checkpoint(head: bytes) -> bool:
    """Whether a file begins as a zip, or as the pickle that torch wrote before 1.6. A safetensors file may begin as that does, by its length."""
    return head.startswith(ZIP) or (head.startswith(PICKLE) and head[8:9] != b"{")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor. Of a checkpoint that holds its tensors as `state_dict` or `model_state_dict`, those are meant.

    Raises WeightsError for a damaged one, for one that inflates, and for one that holds more than tensors.
    """
    state = _unpickled(path)
    if isinstance(state, Mapping):
        state = next((state[key] for key in STATE_KEYS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} must hold a flat mapping of names to tensors, got {type(state).__name__}")
    stored_bytes = _stored_bytes(path, state)
    if stored_bytes > MAX_INFLATION * path.stat().st_size:
        raise WeightsError(f"{path} declares {stored_bytes:,} bytes of tensors in {path.stat().st_size:,}: refused")
    return dict(state)


def read_settings(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors, as the `dims` of openai-whisper. Raises WeightsError as `read_tensors`."""
    state = _unpickled(path, mapped=True)
    if not isinstance(state, Mapping):
        return {}
    return {
        str(key): value
        for key, value in state.items()
        if key not in STATE_KEYS and not isinstance(value, (torch.Tensor, torch.nn.Parameter))
    }


def _unpickled(path: Path, *, mapped: bool = False) -> Any:
    """What the file holds, by torch's own reader of tensors. mapped: leave the tensors in the file, where its format allows that."""
    _refuse_inflation(path)
    load = _torch_load()
    with path.open("rb") as file:
        mapped = mapped and file.read(len(ZIP)) == ZIP
    try:
        return load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as tensors alone ({reason})") from error


def _refuse_inflation(path: Path) -> None:
    """Raise WeightsError for a zip that is damaged, or declares more bytes than the file has."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path} is a damaged torch checkpoint: {error}") from error
    if declared > MAX_INFLATION * path.stat().st_size:
        raise WeightsError(f"{path} would inflate from {path.stat().st_size:,} to {declared:,} bytes: refused")


def _torch_load() -> Callable[..., Any]:
    """The function of torch itself: what a plugin put in the place of `torch.load` may unpickle more than tensors.

    Raises WeightsError when even the original is out of reach.
    """
    load: Callable[..., Any] = serialization.load
    if getattr(load, "__globals__", None) is not vars(serialization):  # what a wrapper cannot imitate
        owner = getattr(load, "__globals__", {}).get("__name__", type(load).__name__)
        raise WeightsError(
            f"torch.load was replaced by {owner}, so no checkpoint can be read safely: use the weights as safetensors, "
            "or leave out the plugin that did it (zoo disable)"
        )
    return load


def _stored_bytes(path: Path, state: Mapping[str, torch.Tensor]) -> int:
    """Bytes that the tensors declare. Tied weights share a storage and count once; a stride that repeats elements counts."""
    sizes: dict[int, int] = {}
    repeated = 0
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(
                f"{path} must hold dense tensors on the CPU, got {key} as {tensor.layout} on {tensor.device}"
            )
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        spanned = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() > spanned:
            repeated += (tensor.numel() - spanned) * tensor.element_size()
    return sum(sizes.values()) + repeated
