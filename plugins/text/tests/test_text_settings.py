"""What lies beside the weights of a sentence encoder decides, or is refused."""

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
    folder = tmp_path_factory.mktemp("sentences")
    save_file(zoo.build("text/minilm-tiny", weights=None).state_dict(), folder / "model.safetensors")
    (folder / "1_Pooling").mkdir()
    return folder


def test_a_folder_says_where_texts_are_cut(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": False}))
    encoder: Any = zoo.build("text/minilm-tiny", weights=folder)
    assert encoder.preprocess(["a long text of many letters"])[0].shape == (1, 9)
    (folder / "sentence_bert_config.json").unlink()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"model_type": "bert", "num_attention_heads": 8}, "num_attention_heads is 8, the model has 4"),
        ("config.json", {"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, the model is built with 1e-12 alone"),
        ("config.json", {"model_type": "mpnet"}, "model_type is 'mpnet', the model is built with 'bert' alone"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling_mode_cls_token is True"),
    ],
)
def test_what_the_model_cannot_keep_is_refused(folder: Path, name: str, content: dict[str, Any], message: str) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        zoo.build("text/minilm-tiny", weights=folder)
    (folder / name).unlink()
