"""Pages of mapped files: given back when they were read, and read again when they are wanted."""

import re
from pathlib import Path

import pytest
import torch

from zoo.weights.formats.mapped import forget_pages, map_file

SIZE_BYTES = 1 << 22


def resident_kib(tensor: torch.Tensor) -> int:
    """Of the mapping that begins where a tensor does."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    found = re.search(rf"(?m)^{tensor.data_ptr():x}-.*\n(?:.*\n)*?Rss: +(\d+) kB", text)
    assert found
    return int(found[1])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (SIZE_BYTES // 256))
    with path.open("rb") as file:
        whole = torch.frombuffer(map_file(file), dtype=torch.uint8)
    total = int(whole.sum())
    assert resident_kib(whole) == SIZE_BYTES // 1024
    forget_pages(whole[100 : SIZE_BYTES // 2])
    left = resident_kib(whole)
    assert SIZE_BYTES // 2048 <= left <= SIZE_BYTES // 2048 + 8, "the half that was named, and whole pages of it alone"
    assert int(whole.sum()) == total


def test_a_tensor_of_no_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE_BYTES))
    with path.open("rb") as file:
        whole = torch.frombuffer(map_file(file), dtype=torch.uint8)
    own = torch.ones(SIZE_BYTES, dtype=torch.uint8)
    forget_pages(own)
    forget_pages(own[:0])
    assert bool(own.all())
    assert not whole.any()
    every_second = whole[::2]
    forget_pages(every_second)  # what lies between is not its own
    assert not every_second.any()
