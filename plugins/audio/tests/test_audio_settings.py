"""What transformers saves beside a wav2vec 2.0 decides how sounds are prepared, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import zoo
from zoo.errors import WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("speech")
    state = zoo.build("audio/wav2vec2-tiny", weights=None).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors")
    return folder


def test_whether_sounds_are_normalised_is_the_folders(folder: Path, caplog: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 16000}))
    zoo.build("audio/wav2vec2-tiny", weights=folder)
    assert "preprocess.normalise = False, which is taken in place of True" in caplog.text
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000}))
    with pytest.raises(WeightsError, match="sampling_rate is 8000, the model is built with 16000 alone"):
        zoo.build("audio/wav2vec2-tiny", weights=folder)
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_attention_heads": 8}, "num_attention_heads is 8, the model has 4"),
        ({"do_stable_layer_norm": True}, "do_stable_layer_norm is True, the model has False"),
        ({"conv_stride": [5, 4, 4]}, r"conv_stride is \[5, 4, 4\]"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps is 0.001, the model is built with 1e-05 alone"),
    ],
)
def test_what_the_model_cannot_keep_is_refused(folder: Path, content: dict[str, Any], message: str) -> None:
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        zoo.build("audio/wav2vec2-tiny", weights=folder)
