"""Tensors are written whole or not at all, and the disk's refusal is one of the system's errors."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from zoo.weights import writing
from zoo.weights.writing import write_module, write_tensors


def test_old_or_new_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(3)}, metadata={"kind": "test"})
    write_tensors(path, {"x": torch.zeros(3)})
    path.chmod(0o640)
    tied = nn.Module()
    tied.one = nn.Linear(2, 2)
    tied.two = tied.one
    write_module(path, tied)
    assert set(load_file(path)) == {"one.weight", "one.bias"}
    assert (path.stat().st_mode & 0o777, list(tmp_path.iterdir())) == (0o640, [path])

    def refused(tensors: object, at: Path, metadata: object) -> None:
        at.with_name(".tmpXYZ").write_bytes(b"half")  # as the library does
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writing, "save_file", refused)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_tensors(path, {"x": torch.ones(3)})
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert (set(load_file(path)), list(tmp_path.iterdir())) == ({"one.weight", "one.bias"}, [path])
