"""GGUF files: those that the library writes, the published one, and damaged and hostile ones."""

import os
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from zoo.errors import UsageError, WeightsError
from zoo.weights.formats.gguf import read_gguf
from zoo.weights.formats.gguf_blocks import BLOCKS, TYPES, dequantise, quantised_type
from zoo.weights.formats.read import read_state_dict

HAVE_CODE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, keys


def numbers(rows: int = 6, columns: int = 512, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def write(path: Path, fill: Callable[[GGUFWriter], None], *, alignment: int | None = None) -> Path:
    writer = GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fill(writer: GGUFWriter) -> None:
    """A little of everything; the damage below finds its places by these names."""
    writer.add_uint8("number.uint8", 200)
    writer.add_int64("number.int64", -(2**40))
    writer.add_float32("number.float32", 0.5)
    writer.add_float64("number.float64", 1e300)
    writer.add_bool("number.bool", True)
    writer.add_string("text", "Grüße, 世界")
    writer.add_array("texts", ["a", "", "Ġthe", "🎉"])
    writer.add_array("numbers", [3, 1, -2])
    writer.add_array("fractions", [0.25, 0.5])
    writer.add_array("flags", [True, False])
    writer.add_tensor("norm", numbers(1, 64)[0])
    writer.add_tensor("half", numbers(2, 32).astype(np.float16))
    writer.add_tensor("cube", numbers(2 * 3, 4).reshape(2, 3, 4))
    for kind in ("Q4_1", "Q8_0", "BF16"):
        number = GGMLQuantizationType[kind]
        writer.add_tensor(f"weight.{kind}", quantize(numbers(), number), raw_dtype=number)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.gguf", fill)


def test_what_the_library_writes_is_read(small: Path) -> None:
    read = read_gguf(small)
    metadata = dict(read.metadata)
    assert {key: metadata.pop(key).tolist() for key in ("numbers", "fractions", "flags")} == {
        "numbers": [3, 1, -2],
        "fractions": [0.25, 0.5],
        "flags": [True, False],
    }
    assert metadata == {
        "general.architecture": "llama",
        "number.uint8": 200,
        "number.int64": -(2**40),
        "number.float32": 0.5,
        "number.float64": 1e300,
        "number.bool": True,
        "text": "Grüße, 世界",
        "texts": ("a", "", "Ġthe", "🎉"),
    }
    assert type(metadata["number.bool"]) is bool
    assert type(metadata["number.uint8"]) is int
    assert {name: (tensor.type, tensor.shape, tuple(tensor.data.shape)) for name, tensor in read.tensors.items()} == {
        "norm": ("F32", (64,), (1, 256)),
        "half": ("F16", (2, 32), (2, 64)),
        "cube": ("F32", (2, 3, 4), (6, 16)),
        "weight.Q4_1": ("Q4_1", (6, 512), (6, 320)),
        "weight.Q8_0": ("Q8_0", (6, 512), (6, 544)),
        "weight.BF16": ("BF16", (6, 512), (6, 1024)),
    }


@pytest.mark.parametrize("alignment", [8, 256])
def test_another_alignment(tmp_path: Path, alignment: int) -> None:
    read = read_gguf(write(tmp_path / "aligned.gguf", fill, alignment=alignment))
    assert torch.equal(read.tensors["norm"].data.view(torch.float32), torch.from_numpy(numbers(1, 64)))


def test_version_2_is_read(small: Path) -> None:
    damage(small, lambda content: set_u32(content, 4, 2))
    assert len(read_gguf(small).tensors) == 6


def test_a_state_dict_has_numbers_under_names_and_blocks_under_names_with_their_type(small: Path) -> None:
    state = read_state_dict(small)
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()} == {
        "norm": (torch.float32, (64,)),
        "half": (torch.float16, (2, 32)),
        "cube": (torch.float32, (2, 3, 4)),
        "weight.Q4_1:Q4_1": (torch.uint8, (6, 320)),
        "weight.Q8_0:Q8_0": (torch.uint8, (6, 544)),
        "weight.BF16": (torch.bfloat16, (6, 512)),
    }
    assert torch.equal(state["half"], torch.from_numpy(numbers(2, 32)).half())
    assert torch.equal(state["cube"].flatten(), torch.from_numpy(numbers(6, 4)).flatten())
    assert torch.equal(state["weight.BF16"], torch.from_numpy(numbers()).bfloat16())
    assert [quantised_type(key) for key in ("a.b:Q4_1", "a.b", "a:F32", "a:b")] == [
        ("a.b", "Q4_1"),
        ("a.b", None),
        ("a:F32", None),
        ("a:b", None),
    ]


def test_writing_to_a_tensor_does_not_reach_the_file(small: Path) -> None:
    before = small.read_bytes()
    read_state_dict(small)["norm"].zero_()
    assert small.read_bytes() == before


def test_a_name_that_looks_like_another_tensors_key_is_refused(tmp_path: Path) -> None:
    def twice(writer: GGUFWriter) -> None:
        kind = GGMLQuantizationType.Q4_1
        writer.add_tensor("a", quantize(numbers(1, 32), kind), raw_dtype=kind)
        writer.add_tensor("a:Q4_1", numbers(1, 32))

    with pytest.raises(WeightsError, match="tensor 'a:Q4_1': stands for two tensors"):
        read_state_dict(write(tmp_path / "twice.gguf", twice))


# ---------------------------------------------------------------------------------------------------- numbers


def test_the_types_are_the_librarys() -> None:
    ours = {number: (weights, size_bytes) for number, (_, weights, size_bytes) in TYPES.items()}
    theirs = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    assert {number: theirs[number] for number in ours} == ours
    assert {name for name, _, _ in TYPES.values()} == {GGMLQuantizationType(number).name for number in ours}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *HAVE_CODE])
def test_dequantised_numbers_are_the_librarys_to_the_last_bit(kind: str) -> None:
    number = GGMLQuantizationType[kind]
    blocks = quantize(numbers(40, 2048), number).view(np.uint8).reshape(40, -1)  # more than one chunk
    ours = dequantise(torch.from_numpy(blocks), kind)
    assert ours.dtype == torch.float32
    assert np.array_equal(ours.numpy(), dequantize(blocks, number).view(np.float32))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinite scales
@pytest.mark.parametrize("kind", HAVE_CODE)
def test_any_bytes_are_dequantised_as_the_library_does(kind: str) -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (7, 5 * BLOCKS[kind][1]), dtype=np.uint8)
    ours = dequantise(torch.from_numpy(blocks), kind)
    assert np.array_equal(ours.numpy(), dequantize(blocks, GGMLQuantizationType[kind]), equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # as above
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_NL"])
def test_other_types_go_through_the_library(kind: str) -> None:
    blocks = np.random.default_rng(1).integers(0, 60, (3, 2 * BLOCKS[kind][1]), dtype=np.uint8)
    ours = dequantise(torch.from_numpy(blocks), kind)
    assert ours.shape == (3, 2 * BLOCKS[kind][0])
    assert np.array_equal(ours.numpy(), dequantize(blocks, GGMLQuantizationType[kind]), equal_nan=True)


def test_slices_and_empty_tensors_are_dequantised() -> None:
    blocks = torch.from_numpy(quantize(numbers(9, 64), GGMLQuantizationType.Q4_1))
    whole = dequantise(blocks, "Q4_1")
    assert torch.equal(dequantise(blocks[1::3], "Q4_1"), whole[1::3])
    assert torch.equal(dequantise(blocks[5:], "Q4_1"), whole[5:])
    odd = torch.cat((torch.zeros(1, dtype=torch.uint8), blocks.flatten()))[1:].view_as(blocks)
    assert torch.equal(dequantise(odd, "Q4_1"), whole)
    assert dequantise(blocks[:0], "Q4_1").shape == (0, 64)


def test_what_cannot_be_dequantised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="no GGUF type is called 'Q9', the types are F32, F16"):
        dequantise(torch.zeros(1, 20, dtype=torch.uint8), "Q9")
    with pytest.raises(UsageError, match=r"must be uint8\[rows, a multiple of 20\], got torch.uint8\[1, 21\]"):
        dequantise(torch.zeros(1, 21, dtype=torch.uint8), "Q4_1")
    with pytest.raises(UsageError, match=r"got torch.float32\[20\]"):
        dequantise(torch.zeros(20), "Q4_1")
    with pytest.raises(WeightsError, match="the library gguf cannot dequantise Q8_K"):
        dequantise(torch.zeros(1, 292, dtype=torch.uint8), "Q8_K")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(WeightsError, match=r"not installed: pip install 'modalzoo\[gguf\]'"):
        dequantise(torch.zeros(1, 144, dtype=torch.uint8), "Q4_K")


# ---------------------------------------------------------------------------------------------------- damage


def damage(path: Path, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def set_u32(content: bytearray, at: int, value: int) -> None:
    struct.pack_into("<I", content, at, value)


def set_u64(content: bytearray, at: int, value: int) -> None:
    struct.pack_into("<Q", content, at, value)


def after(content: bytearray, name: str) -> int:
    """The place after a key or the name of a tensor, which its length precedes."""
    encoded = name.encode()
    return content.index(len(encoded).to_bytes(8, "little") + encoded) + 8 + len(encoded)


def offset_of(content: bytearray, name: str, dimensions: int) -> int:
    return after(content, name) + 4 + 8 * dimensions + 4


def many_dimensions(content: bytearray) -> None:
    set_u32(content, after(content, "norm"), 2**32 - 1)


def nested(content: bytearray) -> None:
    set_u32(content, after(content, "texts") + 4, 9)


def wide(content: bytearray) -> None:
    place = after(content, "cube") + 4
    for dimension in range(3):
        set_u64(content, place + 8 * dimension, 2**63)


def overlapping(content: bytearray) -> None:
    set_u64(content, offset_of(content, "half", 2), 0)


def duplicate_name(content: bytearray) -> None:
    place = after(content, "half")
    content[place - 4 : place] = b"norm"


def duplicate_key(content: bytearray) -> None:
    place = after(content, "number.uint8")
    content[place - 12 : place] = b"number.uint8"
    place = after(content, "number.float32")  # as long as another key with other letters
    content[place - 14 : place] = b"number.float64"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.__setitem__(slice(4), b"GGML"), "is not a GGUF file: it begins with b'GGML', expected b'GGUF'"),
        (lambda content: set_u32(content, 4, 1), "version: is 1, it must be 2 or 3"),
        (lambda content: set_u32(content, 4, 3 << 24), "version: is big endian: convert it"),
        (lambda content: set_u64(content, 8, 2**40), "number of tensors: is 1,099,511,627,776, at most 65,536 are read"),
        (lambda content: set_u64(content, 8, 60_000), "number of tensors: 60,000: needs 1,440,000 bytes at byte 24"),
        (lambda content: set_u64(content, 16, 2**60), "number of metadata keys: is 1,152,921,504,606,846,976, at most"),
        (lambda content: set_u64(content, 16, 60_000), "number of metadata keys: 60,000: needs 780,000 bytes"),
        (lambda content: set_u64(content, 24, 2**63), "metadata key 0: needs 9,223,372,036,854,775,808 bytes at byte 32"),
        (lambda content: set_u64(content, after(content, "text") + 4, 2**63), "metadata 'text': needs 9,223,372,036,854,775,808"),
        (lambda content: set_u64(content, after(content, "texts") + 8, 2**63), "length of metadata 'texts': is 9,223,372"),
        (lambda content: set_u64(content, after(content, "texts") + 8, 10**6), "'texts': 1,000,000: needs 8,000,000 bytes"),
        (lambda content: set_u64(content, after(content, "texts") + 16, 2**63), r"metadata 'texts'\[0\]: needs 9,223,372"),
        (lambda content: set_u64(content, after(content, "numbers") + 8, 2**62), "metadata 'numbers': needs 18,446,744"),
        (nested, "metadata 'texts': is an array of arrays, which is not read"),
        (lambda content: set_u32(content, after(content, "texts") + 4, 13), "element type of metadata 'texts': is 13, expected 0"),
        (lambda content: set_u32(content, after(content, "text"), 77), "type of metadata 'text': is 77, expected 0 to 12"),
        (lambda content: content.__setitem__(after(content, "number.bool") + 4, 2), "'number.bool': is a bool of 2, expected 0 or 1"),
        (lambda content: content.__setitem__(after(content, "text") + 12, 255), "'text': is no UTF-8 .invalid start byte at byte"),
        (lambda content: content.__setitem__(after(content, "texts") + 24, 255), r"'texts'\[0\]: is no UTF-8 .invalid start byte"),
        (duplicate_key, "metadata key 'number.float64': occurs twice"),
        (many_dimensions, "number of dimensions of tensor 'norm': is 4294967295, at most 4 are legal"),
        (wide, r"tensor 'cube': F32\[9223372036854775808, .*\] ends at byte .*, the file at .*: it is cut short"),
        (lambda content: set_u64(content, after(content, "norm") + 4, 0), r"shape of tensor 'norm': is \[0\], each dimension"),
        (lambda content: set_u64(content, after(content, "weight.Q4_1") + 4, 48), r"\[6, 48\], of Q4_1 the last must be a multiple of 32"),
        (lambda content: set_u32(content, offset_of(content, "norm", 1) - 4, 4), "type of tensor 'norm': is number 4, which no type has"),
        (lambda content: set_u64(content, offset_of(content, "norm", 1), 8), "offset of tensor 'norm': is 8, expected a multiple of the alignment 32"),
        (lambda content: set_u64(content, offset_of(content, "norm", 1), 2**63), "tensor 'norm': F32.64. ends at byte 9,223,372"),
        (overlapping, "tensor '(norm|half)': overlaps the tensor '(half|norm)' in the file"),
        (duplicate_name, "tensor 'norm': occurs twice"),
    ],
)  # fmt: skip
@pytest.mark.covers("A9")
def test_damage_is_named(small: Path, change: Callable[[bytearray], None], message: str) -> None:
    damage(small, change)
    tracemalloc.start()
    with pytest.raises(WeightsError, match=message) as caught:
        read_gguf(small)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(str(small))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize(
    ("alignment", "shown"), [(2**31, "2147483648"), (0, "0"), (1, "1"), (24, "24"), (2**17, "131072"), (None, "a tuple")]
)
def test_an_alignment_without_sense_is_refused(tmp_path: Path, alignment: int | None, shown: str) -> None:
    def odd(writer: GGUFWriter) -> None:
        if alignment is None:
            writer.add_array("general.alignment", ["x" * 1000] * 1000)
        else:
            writer.add_uint32("general.alignment", alignment)
        writer.add_tensor("norm", numbers(1, 64)[0])

    message = f"metadata 'general.alignment': is {shown}, expected a power of two from 8 to 65536"
    with pytest.raises(WeightsError, match=message):
        read_gguf(write(tmp_path / "odd.gguf", odd))


def test_an_endless_name_is_cut_in_the_message(tmp_path: Path) -> None:
    def long(writer: GGUFWriter) -> None:
        writer.add_string("k" * 100_000, "v")

    path = write(tmp_path / "long.gguf", long)
    damage(path, lambda content: set_u32(content, after(content, "k" * 100_000), 99))
    with pytest.raises(WeightsError, match=r"metadata 'kkkk.*\.\.\.: is 99") as caught:
        read_gguf(path)
    assert len(str(caught.value)) < 400


@pytest.mark.covers("A9")
def test_too_much_header_and_too_many_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "much.gguf", lambda writer: writer.add_array("texts", ["abc"] * 1000))
    monkeypatch.setattr("zoo.weights.formats.gguf.MAX_STRINGS", 999)
    with pytest.raises(WeightsError, match="length of metadata 'texts': is 1,000, at most 999 are read"):
        read_gguf(path)
    monkeypatch.setattr("zoo.weights.formats.gguf.MAX_STRINGS", 1000)
    monkeypatch.setattr("zoo.weights.formats.gguf.MAX_HEADER_BYTES", 9000)
    with pytest.raises(
        WeightsError, match=r"'texts'\[\d+\]: needs \d bytes .*, a header of at most 9,000 bytes has \d left"
    ):
        read_gguf(path)
    monkeypatch.undo()
    assert read_gguf(path).metadata["texts"] == ("abc",) * 1000


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(WeightsError, match="empty is not a GGUF file: it is empty"):
        read_gguf(tmp_path / "empty")
    with pytest.raises(WeightsError, match="missing cannot be read as a GGUF file: .*No such file"):
        read_gguf(tmp_path / "missing")
    with pytest.raises(WeightsError, match="cannot be read as a GGUF file: .*[Dd]irectory"):
        read_gguf(tmp_path)


def test_a_file_without_anything_is_legal(tmp_path: Path) -> None:
    (tmp_path / "bare.gguf").write_bytes(HEADER.pack(b"GGUF", 3, 0, 0))
    read = read_gguf(tmp_path / "bare.gguf")
    assert (dict(read.metadata), dict(read.tensors)) == ({}, {})


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(small: Path) -> None:
    content = small.read_bytes()
    # The last tensor's bytes end the file, up to the padding of its alignment.
    places = random.Random(0).sample(range(1, len(content) - 32), 50)
    for place in places:
        small.write_bytes(content[:place])
        with pytest.raises(WeightsError, match="needs .* bytes at byte|cut short|is not a GGUF file"):
            read_gguf(small)


@pytest.mark.covers("A9")
def test_flipped_bytes_are_read_or_refused_and_nothing_else(small: Path) -> None:
    content = small.read_bytes()
    header_bytes = content.index(b"weight.BF16") + 50
    chance = random.Random(0)
    refused = 0
    for number in range(300):
        mutant = bytearray(content)
        for _ in range(1 + number % 2):
            mutant[chance.randrange(header_bytes)] ^= 1 << chance.randrange(8) if number % 3 else chance.randrange(1, 256)
        small.write_bytes(mutant)
        try:
            for key, tensor in read_state_dict(small).items():
                kind = quantised_type(key)[1]
                if kind is not None and kind in HAVE_CODE:
                    dequantise(tensor, kind)
        except WeightsError as error:
            refused += 1
            assert str(error).startswith(str(small))  # noqa: PT017 - reading it is right, too
    assert 60 < refused < 280


@pytest.mark.covers("A9")
def test_the_worst_legal_header_is_read_in_bounded_memory_and_time(tmp_path: Path) -> None:
    """As many short texts, and about as many keys, as the limits let through. Time grows as an eighth of them shows, and not with
    the square: both are read by one process, so that a busy machine slows both.
    """
    texts, keys = (1 << 21) - 1, 60_000
    for name, share in (("whole", 1), ("eighth", 8)):
        with (tmp_path / f"{name}.gguf").open("wb") as file:
            file.write(HEADER.pack(b"GGUF", 3, 0, keys // share + 1))
            file.write(
                struct.pack("<Q1sIIQ", 1, b"k", 9, 8, texts // share) + (b"\x02" + bytes(7) + b"ab") * (texts // share)
            )
            for number in range(keys // share):
                file.write(struct.pack("<Q8sIB", 8, f"{number:08}".encode(), 0, 1))
    script = (
        "import resource, sys, time; from pathlib import Path; from zoo.weights.formats.gguf import read_gguf\n"
        "def seconds(name):\n"
        "    start = time.process_time(); read = read_gguf(Path(sys.argv[1], name)); spent = time.process_time() - start\n"
        "    return spent, len(read.metadata['k'])\n"
        "eighth = min(seconds('eighth.gguf')[0] for _ in range(3))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; whole, count = seconds('whole.gguf')\n"
        "print(count, whole / eighth, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    count, times, grown_kib = run.stdout.split()
    assert int(count) == texts
    assert float(times) < 8 * 4  # the square would be 64
    assert int(grown_kib) < 600_000


def test_the_library_agrees_on_what_is_in_the_file(small: Path) -> None:
    theirs = gguf.GGUFReader(small)
    ours = read_gguf(small)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].shape == tuple(int(size) for size in tensor.shape[::-1])
        assert ours.tensors[tensor.name].type == tensor.tensor_type.name
        assert ours.tensors[tensor.name].data.numpy().tobytes() == tensor.data.tobytes()
