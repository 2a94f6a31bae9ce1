"""`open_clip_config.json` beside the weights: its activation and preparation are the model's, as open_clip has them, or it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from zoo_clip.family import family

import zoo
from zoo.errors import WeightsError

ARCH = "RN50"


@pytest.fixture
def folder(saved: Callable[[nn.Module], Path]) -> Path:
    torch.manual_seed(0)
    model = open_clip.create_model(
        "ViT-B-32", force_image_size=64, vision_cfg=TINY["vision_cfg"], text_cfg=TINY["text_cfg"], embed_dim=32
    )
    return saved(model).parent


TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 2, "width": 32, "heads": 2},
}
PREPARED = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear", "resize_mode": "squash"}


def describe(folder: Path, model: dict[str, Any] | None = None, prepared: dict[str, Any] | None = None) -> Path:
    content = {"model_cfg": {**TINY, **(model or {})}, "preprocess_cfg": prepared or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder / "open_clip_model.safetensors"


@torch.no_grad()
def test_the_files_activation_and_preparation_are_the_models(folder: Path, photos: Path, caplog: Any) -> None:
    path = describe(folder, {"quick_gelu": True}, PREPARED)
    ours: Any = zoo.build("clip/tiny", weights=path)
    model = open_clip.CustomTextCLIP(**TINY, quick_gelu=True).eval()
    model.load_state_dict(ours_to_theirs(path, model))
    transform = open_clip.image_transform(64, is_train=False, mean=tuple(PREPARED["mean"]), std=tuple(PREPARED["std"]),
                                          interpolation="bilinear", resize_mode="squash")  # fmt: skip
    image = Image.open(photos / "house.jpg").convert("RGB")
    assert torch.allclose(ours.preprocess("image", [image])[0], transform(image), atol=1e-5)
    expected = model.encode_image(transform(image)[None], normalize=True)
    assert torch.allclose(ours.embed("image", [image]), expected, atol=1e-5)
    assert "trained_quick_gelu = True" in caplog.text
    describe(folder)
    plain: Any = zoo.build("clip/tiny", weights=path)
    assert (plain.embed("image", [image]) - expected).abs().max() > 1e-4


def ours_to_theirs(path: Path, model: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    flat = ("transformer.", "token_embedding.", "ln_final.", "positional_embedding", "text_projection")
    state = {f"text.{key}" if key.startswith(flat) else key: tensor for key, tensor in load_file(path).items()}
    return {key: state.get(key, tensor) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "prepared", "message"),
    [
        ({"embed_dim": 64}, {}, "embed_dim is 64, the model has 32"),
        (
            {"vision_cfg": {**TINY["vision_cfg"], "head_width": 16}},
            {},
            "vision_cfg is .* head_width is 16, the model has 32",
        ),
        ({"text_cfg": {**TINY["text_cfg"], "heads": 4}}, {}, "text_cfg is .* heads is 4, the model has 2"),
        ({"text_cfg": {**TINY["text_cfg"], "no_causal_mask": True}}, {}, "no_causal_mask is True, the model has False"),
        ({"vision_cfg": {**TINY["vision_cfg"], "new": 1}}, {}, "vision_cfg is not one of open_clip"),
        ({}, {"mode": "L"}, "mode is 'L', the model is built with 'RGB' alone"),
        ({}, {"mean": [0.5]}, "must have three numbers as mean, got"),
    ],
)
def test_what_the_model_cannot_keep_is_refused(
    folder: Path, model: dict[str, Any], prepared: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        zoo.build("clip/tiny", weights=describe(folder, model, prepared))


def test_weights_of_ones_own_are_prepared_as_all_published_ones_where_those_agree() -> None:
    (siglip,) = (card for card in family("ViT-B-16-SigLIP") if card["name"] == "ViT-B-16-SigLIP")
    assert siglip["preprocess"] == siglip["weights"][0]["preprocess"]
    assert siglip["preprocess"]["mean"] == [0.5, 0.5, 0.5]
