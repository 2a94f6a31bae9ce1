"""What a Whisper file says of its sizes, which no tensor shows: heads, and which of them follow the words."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import zoo
from zoo.errors import WeightsError

DIMS = {"n_mels": 80, "n_vocab": 51865, "n_audio_ctx": 1500, "n_audio_state": 32, "n_audio_head": 2, "n_audio_layer": 2,
        "n_text_ctx": 128, "n_text_state": 32, "n_text_head": 2, "n_text_layer": 2}  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: tensor.contiguous() for key, tensor in zoo.build("whisper/random", weights=None).state_dict().items()}


def test_dims_of_a_checkpoint(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"dims": DIMS, "model_state_dict": state}, path)
    zoo.build("whisper/random", weights=path)
    torch.save({"dims": {**DIMS, "n_audio_head": 4, "n_text_head": 4}, "model_state_dict": state}, path)
    with pytest.raises(WeightsError, match="n_audio_head is 4, the model has 2; n_text_head is 4, the model has 2"):
        zoo.build("whisper/random", weights=path)
    with pytest.raises(WeightsError, match="n_audio_head is 4, the model has 2"):
        zoo.build("whisper/random-encoder", weights=path)


def test_the_header_of_a_ggml_file(tmp_path: Path) -> None:
    numbers = [51865, 1500, 32, 4, 2, 128, 32, 4, 2, 80, 1]
    (tmp_path / "ggml.bin").write_bytes(b"lmgg" + struct.pack("<11i", *numbers) + bytes(64))
    with pytest.raises(WeightsError, match="n_audio_head is 4, the model has 2; n_text_head is 4, the model has 2"):
        zoo.build("whisper/random", weights=tmp_path / "ggml.bin")


def test_the_config_of_transformers_and_of_ctranslate2(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    (tmp_path / "config.json").write_text(json.dumps({"alignment_heads": [[1, 1]]}))
    model: Any = zoo.build("whisper/random", weights=path)
    assert model.alignment_heads == ((1, 1),)
    config = {"model_type": "whisper", "encoder_attention_heads": 4, "decoder_attention_heads": 2, "scale_embedding": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="encoder_attention_heads is 4, the model has 2; scale_embedding is True"):
        zoo.build("whisper/random", weights=path)
