"""The table of weight formats: what a plugin adds is asked last, held to the same promises, and named where nothing fits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from zoo.errors import WeightsError
from zoo.weights.formats.read import FORMATS, HEAD_BYTES, WeightFormat, read_state_dict

MAGIC = b"RAW1"


def read_raw(path: Path) -> Mapping[str, torch.Tensor]:
    """All that follows the first four bytes, as one tensor of float32."""
    return {"weight": torch.frombuffer(bytearray(path.read_bytes()[len(MAGIC) :]), dtype=torch.float32)}


def raw(name: str = "raw file", read: Any = read_raw, recognises: Any = None) -> WeightFormat:
    return WeightFormat(name, recognises or (lambda head: head.startswith(MAGIC)), read)


def refuse(_: Any) -> Any:
    raise AssertionError("a plugin was asked before the core's own formats")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.raw"
    path.write_bytes(MAGIC + torch.arange(3.0).numpy().tobytes())
    return path


def test_an_extra_format_is_read(file: Path) -> None:
    state = read_state_dict(file, [raw()])
    assert torch.equal(state.pop("weight"), torch.arange(3.0))
    assert state == {}, "a dict of its own: a load takes the tensors out of it"


def test_it_sees_how_the_file_begins_and_no_more(file: Path) -> None:
    heads: list[bytes] = []
    read_state_dict(file, [raw(recognises=lambda head: heads.append(head) or True)])
    assert heads == [file.read_bytes()[:HEAD_BYTES]]


def test_the_formats_of_the_core_are_never_asked_of_a_plugin(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.raw")
    assert list(read_state_dict(tmp_path / "a.raw", [raw(recognises=refuse)])) == ["a"]
    torch.save({"b": torch.ones(1)}, tmp_path / "b.raw")
    assert list(read_state_dict(tmp_path / "b.raw", [raw(recognises=lambda _: True, read=refuse)])) == ["b"]


def test_a_head_that_two_claim_is_refused_by_name_of_both(file: Path) -> None:
    with pytest.raises(WeightsError, match=r"is claimed as a raw file and as a rival file \(it begins with b'RAW1'\)"):
        read_state_dict(file, [raw(), raw("rival file")])


def test_what_nobody_recognises_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"none")
    with pytest.raises(
        WeightsError,
        match="is neither a safetensors file, a torch checkpoint, a GGUF file, a model.bin of CTranslate2 nor a raw file",
    ):
        read_state_dict(tmp_path / "x", [raw()])


def test_one_that_cannot_be_asked_stops_no_other(file: Path) -> None:
    def broken(head: bytes) -> bool:
        raise KeyError(head[0])

    assert list(read_state_dict(file, [raw("broken file", recognises=broken), raw()])) == ["weight"]
    with pytest.raises(WeightsError, match="whether it is a broken file could not be asked: KeyError: 82"):
        read_state_dict(file, [raw("broken file", recognises=broken)])


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda _: 1 // 0, r"cannot be read as a raw file \(ZeroDivisionError: "),
        (lambda _: [1], "must be read as a mapping of names to tensors, a raw file was list"),
        (lambda _: {"a": 1}, "must be read as names to tensors, a raw file has 'a' as int"),
        (lambda _: {7: torch.ones(1)}, "must be read as names to tensors, a raw file has 7 as Tensor"),
        (lambda _: {"a": torch.ones(1).to_sparse()}, "must hold dense tensors on the CPU, got a as torch.sparse_coo"),
        (lambda _: {"a": torch.ones(1, device="meta")}, "must hold dense tensors on the CPU, got a as .* on meta"),
    ],
)
def test_what_an_extra_format_gives_is_checked(file: Path, read: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_state_dict(file, [raw(read=read)])


def test_its_own_error_is_passed_on(file: Path) -> None:
    def damaged(path: Path) -> Mapping[str, torch.Tensor]:
        raise WeightsError(f"{path} is cut short")

    with pytest.raises(WeightsError, match=r"net\.raw is cut short$"):
        read_state_dict(file, [raw(read=damaged)])


def test_no_two_of_the_core_claim_one_file(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "many.gguf", "test")
    for number in range(ord("{")):  # counted where safetensors has the brace of its header
        writer.add_tensor(f"t{number}", torch.full((8,), float(number)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    head = (tmp_path / "many.gguf").read_bytes()[:HEAD_BYTES]
    assert head[8:9] == b"{"
    assert [known.name for known in FORMATS if known.recognises(head)] == ["GGUF file"]
    assert len(read_state_dict(tmp_path / "many.gguf")) == ord("{")
