"""GGUF names and row orders -> our decoder's, on tensors whose place can be told."""

from pathlib import Path

import gguf
import pytest
import torch
from gguf.quants import quantize
from zoo_smollm.keys import permuted_back, renamed

from zoo.errors import WeightsError
from zoo.weights.cache import blobs_dir
from zoo.weights.formats.gguf_blocks import Blocks, dequantise, quantised_type
from zoo.weights.formats.read import read_state_dict

PUBLISHED = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WIDTH, HEADS, KV_HEADS, HIDDEN, VOCABULARY = 576, 9, 3, 1536, 49152
BLOCK_SHAPES = {
    "attention_norm": (WIDTH,),
    "attention.query": (WIDTH, WIDTH),
    "attention.key": (WIDTH * KV_HEADS // HEADS, WIDTH),
    "attention.value": (WIDTH * KV_HEADS // HEADS, WIDTH),
    "attention.output": (WIDTH, WIDTH),
    "feed_forward_norm": (WIDTH,),
    "feed_forward.gate": (HIDDEN, WIDTH),
    "feed_forward.up": (HIDDEN, WIDTH),
    "feed_forward.down": (WIDTH, HIDDEN),
}


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    path = blobs_dir() / PUBLISHED
    if not path.is_file():
        pytest.skip("needs the published file: zoo fetch smollm/135m-instruct")
    return read_state_dict(path)


def permute(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's convert_hf_to_gguf.py does to query and key weights."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
    )


def blocks_of(weights: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(quantize(weights.numpy(), gguf.GGMLQuantizationType.Q4_1))


def numbers_of(state: dict[str, torch.Tensor], only: str = "") -> dict[str, torch.Tensor]:
    """Our names, blocks dequantised."""
    values = {name: value for name, value in renamed(state).items() if only in name}
    return {name: value.dequantise() if isinstance(value, Blocks) else value for name, value in values.items()}


@pytest.mark.parametrize(("heads", "head_width"), [(9, 64), (3, 64), (1, 2), (4, 8)])
def test_rows_are_put_back_in_order(heads: int, head_width: int) -> None:
    rows = torch.arange(heads * head_width * 5).view(-1, 5)
    assert torch.equal(permuted_back(permute(rows, heads), head_width), rows)


def test_query_and_key_rows_alone_are_put_in_order() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(192, 64), torch.randn(64, 64), torch.randn(64, 64)
    state = {
        "blk.11.attn_q.weight:Q4_1": blocks_of(permute(query, 3)),
        "blk.11.attn_k.weight": permute(key, 1).half(),
        "blk.11.attn_v.weight:Q4_1": blocks_of(value),
    }
    numbers = numbers_of(state)
    assert list(numbers) == [f"stack.blocks.11.attention.{name}.weight" for name in ("query", "key", "value")]
    assert torch.equal(numbers["stack.blocks.11.attention.query.weight"], dequantise(blocks_of(query), "Q4_1"))
    assert torch.equal(numbers["stack.blocks.11.attention.key.weight"], key.half().float())
    assert torch.equal(numbers["stack.blocks.11.attention.value.weight"], dequantise(blocks_of(value), "Q4_1"))
    narrow = renamed({"blk.0.attn_k.weight": permute(key, 8)}, head_width=8)
    assert torch.equal(narrow["stack.blocks.0.attention.key.weight"], key)


def test_unknown_keys_stay_for_the_strict_load_to_show() -> None:
    state = {
        name: torch.zeros(2) for name in ("output.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "embedding")
    }
    state["rope_freqs.weight:Q8_0"] = torch.zeros(1, 34, dtype=torch.uint8)
    names = [quantised_type(key)[0] for key in state]
    assert list(renamed(state)) == names


def test_rows_that_are_no_whole_heads_are_refused() -> None:
    message = r"blk.0.attn_k.weight must have a multiple of 64 rows, the width of a head, got \[100, 3\]: the file is of"
    with pytest.raises(WeightsError, match=message):
        renamed({"blk.0.attn_k.weight": torch.zeros(100, 3)})


def test_the_published_file_has_every_weight_and_no_other(published: dict[str, torch.Tensor]) -> None:
    numbers = renamed(published)
    expected = {"embedding.weight": (VOCABULARY, WIDTH), "stack.norm.weight": (WIDTH,)}
    for block in range(30):
        expected |= {f"stack.blocks.{block}.{name}.weight": shape for name, shape in BLOCK_SHAPES.items()}
    assert {name: tuple(tensor.shape) for name, tensor in numbers.items()} == expected
    assert {tensor.dtype for tensor in numbers.values()} == {torch.float32}
    assert sum(tensor.shape.numel() for tensor in numbers.values()) == 134_515_008


@pytest.mark.parametrize(("stored", "ours"), [("attn_q", "attention.query"), ("attn_k", "attention.key")])
def test_the_published_rows_are_in_order(published: dict[str, torch.Tensor], stored: str, ours: str) -> None:
    """The two features that a rotary position turns share a frequency and so have rows alike in length: half a head apart."""

    def differences(rows: torch.Tensor) -> float:
        lengths = rows.norm(dim=1).view(-1, 2, 32)
        return float((lengths[:, 0] - lengths[:, 1]).abs().mean())

    before = dequantise(published[f"blk.15.{stored}.weight:Q4_1"], "Q4_1")
    (after,) = numbers_of(published, f"stack.blocks.15.{ours}.weight").values()
    assert 2 * differences(after) < differences(before)


def test_local_files_of_plain_numbers_are_read_too(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "plain.gguf", "llama")
    weights = torch.randn(128, 32)
    writer.add_tensor("blk.2.attn_q.weight", permute(weights, 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    state = renamed(read_state_dict(tmp_path / "plain.gguf"))
    assert torch.equal(state["stack.blocks.2.attention.query.weight"], weights)
