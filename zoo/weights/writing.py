"""Tensors as safetensors files, whole or not at all.

The library writes into a file of its own beside the one that it is given, which a killed process would leave there: it gets a folder.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file, save_model
from torch import nn

from zoo.registry.atomic_write import atomic_write_apart

_CODE = re.compile(r"os error (\d+)")


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None, durable: bool = True
) -> None:
    """Write tensors by name. durable: as of `atomic_write`. Raises OSError where the disk refuses, which leaves the older file."""
    _write(path, lambda temporary: save_file(dict(tensors), temporary, dict(metadata or {})), durable=durable)


def write_module(path: Path, module: nn.Module) -> None:
    """Write the state of a module, what two names share once. Raises OSError as `write_tensors`."""
    _write(path, lambda temporary: save_model(module, str(temporary)), durable=True)


def _write(path: Path, save: Callable[[Path], None], *, durable: bool) -> None:
    with atomic_write_apart(path, durable=durable) as temporary:
        try:
            save(temporary)
        except SafetensorError as error:
            code = _CODE.search(str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
