"""What is computed once: read back to the bit, and computed again when the file is not as it was written."""

import pytest
import torch

from zoo.registry.settings import cache_dir
from zoo.weights.derived import derived


@pytest.fixture
def calls(monkeypatch, tmp_path) -> list[int]:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    return []


def ask(calls: list[int], **inputs: object) -> dict[str, torch.Tensor]:
    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(2, dtype=torch.bfloat16)}

    return derived("test", inputs, compute)


def test_computed_once_and_equal_to_the_bit(calls) -> None:
    first, second = ask(calls, x=1), ask(calls, x=1)
    assert calls == [1]
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert tensor.dtype == second[name].dtype
    ask(calls, x=2)
    assert calls == [1, 1]


def test_what_random_weights_give_is_not_kept(calls, main, photos, capsys) -> None:
    first = derived("test", {"x": 1}, lambda: {"a": torch.ones(2)}, keep=False)
    assert torch.equal(first["a"], torch.ones(2))
    words = ("classify", str(photos / "chelsea.jpg"), "--labels", "cat,dog", "--weights", "none")
    for model in ("clip/tiny", "conse/lite0-minilm"):
        run = main(*words, "--model", model)
        assert run.returncode == 0, run.stderr
    assert not (cache_dir() / "derived").exists()


@pytest.mark.parametrize("damage", ["one bit of a number", "the header", "cut off", "empty"])
def test_a_damaged_file_costs_only_the_computation(calls, damage: str) -> None:
    expected = ask(calls, x=1)
    (path,) = (cache_dir() / "derived").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "one bit of a number":
        content[-3] ^= 1
    if damage == "the header":
        content[12] ^= 0xFF
    path.write_bytes({"cut off": content[:-5], "empty": b""}.get(damage, content))
    answer = ask(calls, x=1)
    assert calls == [1, 1]
    assert all(torch.equal(answer[name], expected[name]) for name in expected)
    ask(calls, x=1)
    assert calls == [1, 1], "it was written anew"


def test_a_folder_that_cannot_be_written_costs_only_the_computation(calls) -> None:
    (cache_dir() / "derived").write_text("a file where the folder should be")
    ask(calls, x=1)
    ask(calls, x=1)
    assert calls == [1, 1]
