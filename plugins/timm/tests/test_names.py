"""A name of timm means what it means in timm, for all of its names; and what every architecture gives are tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from zoo_timm.encoders import image_encoder
from zoo_timm.family import family

import zoo
from zoo.errors import UsageError, WeightsError
from zoo.media.image import to_pixels


@pytest.fixture(scope="module")
def cards() -> dict[str, dict[str, Any]]:
    return {card["name"]: card for card in family("*")}


def test_a_name_without_a_tag_means_timms_default_weights(cards: dict[str, dict[str, Any]]) -> None:
    """All names, by list: what `timm.create_model(name, pretrained=True)` loads is the first row, to the file and the classes."""
    assert cards.keys() == set(timm.list_models())
    compared = 0
    for name, card in cards.items():
        config = get_pretrained_cfg(name)
        if not card["weights"]:
            continue
        row = card["weights"][0]
        assert row["tag"] == (config.tag or "default"), name
        assert row["variant"] == {"num_classes": config.num_classes}, name
        assert row["file"][0]["sources"][0].startswith(f"hf:{config.hf_hub_id}@main/"), name
        compared += 1
    assert compared > 1000


def test_the_architectures_own_numbers_prepare_what_has_no_weights_of_the_card(cards: dict[str, dict[str, Any]]) -> None:
    for name, card in cards.items():
        config = get_pretrained_cfg(name).to_dict()
        resolved = timm.data.resolve_data_config(pretrained_cfg=config)
        own = card.get("preprocess")
        if own is None:
            assert config["crop_mode"] == "border" or config["input_size"][1] != config["input_size"][2], name
            continue
        assert (own["size"], own["crop"], own["interpolation"]) == (
            resolved["input_size"][1], resolved["crop_pct"], resolved["interpolation"],
        ), name  # fmt: skip
        assert (tuple(own["mean"]), tuple(own["std"])) == (tuple(resolved["mean"]), tuple(resolved["std"])), name


def test_random_weights_under_a_name_are_prepared_as_timm_prepares_them(photos: Path) -> None:
    """Of these the first tag of the alphabet has another mean, or crop, than the architecture."""
    image = Image.open(photos / "house.jpg").convert("RGB")
    for name in ("vit_tiny_patch16_224", "test_vit"):
        config = get_pretrained_cfg(name).to_dict()
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
        found: Any = zoo.build(f"timm/{name}", weights=None)
        assert (found.preprocess([image])[0] - transform(image)).abs().max() < 1e-5


def test_local_weights_are_not_prepared_by_a_row_that_nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    row = zoo.find("timm/convnext_base.clip_laion2b_augreg").weights
    assert row is not None
    assert row.preprocess["mean"][0] != 0.485
    untagged, tagged = (zoo.open_model(name, weights=None).found for name in ("timm/test_vit", "timm/test_vit.r160_in1k"))
    assert (untagged.weights.preprocess, bool(tagged.weights.preprocess)) == ({}, True)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arch", "count", "width"),
    [
        ("crossvit_9_240", 196, 256),
        ("crossvit_15_dagger_408", 576, 384),
        ("coat_tiny", 49, 152),
        ("coat_lite_tiny", 49, 320),
        ("efficientvim_m1", 16, 320),
        ("efficientvim_m4_dist", 16, 512),
        ("volo_d1_224", 196, 384),
        ("qwen3_vit_88m_enc", 2304, 768),
        ("mobilenetv5_300m_enc", 256, 2048),
    ],
)
def test_features_that_are_lists_or_have_no_head_become_tokens(arch: str, count: int, width: int) -> None:
    with torch.device("meta"), torch.no_grad():
        encoder = image_encoder(arch=arch).eval()
        encoded = encoder(torch.empty(2, *get_pretrained_cfg(arch).input_size))
    assert encoded.tokens_BTD.shape == (2, count, width)
    assert encoded.mask_BT.shape == (2, count)
    assert encoded.pooled_BD.shape[0] == 2


@torch.inference_mode()
def test_the_tokens_of_a_list_are_the_last_map_of_timm() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 240, 240)
    encoder: Any = image_encoder(arch="crossvit_tiny_240", num_classes=3).eval()
    maps = encoder.backbone.forward_features(pixels)
    encoded = encoder(pixels)
    assert torch.equal(encoded.tokens_BTD, maps[-1][:, 1:])
    assert torch.equal(encoded.pooled_BD, torch.cat([one[:, 0] for one in maps], 1))
    assert torch.equal(encoder.logits(pixels), encoder.backbone(pixels))


def test_images_that_are_prepared_in_a_way_the_zoo_has_not_are_the_callers() -> None:
    encoder: Any = image_encoder(arch="test_vit", preprocess=None)
    with pytest.raises(UsageError, match="make the pixels with timm.data.create_transform and give them to forward"):
        encoder.preprocess([Image.new("RGB", (9, 9))])
    assert not zoo.find("timm/deepseek_vit_412m").card.preprocess


# ---------------------------------------------------------------------------- config.json beside the weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("test_vit", num_classes=5)
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def describe(folder: Path, **changes: Any) -> None:
    prepared = {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear", "crop_pct": 0.5,
                "crop_mode": "center", "num_classes": 5}  # fmt: skip
    config = {"architecture": "test_vit", "num_classes": 5, "pretrained_cfg": prepared, **changes}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_config_beside_the_weights_decides_outputs_and_preparation(folder: Path, photos: Path, caplog: Any) -> None:
    describe(folder)
    encoder: Any = zoo.build("timm/test_vit", weights=folder)
    image = Image.open(photos / "house.jpg").convert("RGB")
    numbers = {
        "size": 160,
        "crop": 0.5,
        "resize": "shortest",
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.6, 0.7],
    }
    assert torch.equal(encoder.preprocess([image]), to_pixels([image], numbers))
    assert len(encoder.labels) == 5
    assert "preprocess.crop = 0.5, which is taken in place of" in caplog.text
    assert "num_classes = 5" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "test_vit2"},
            "config.json is that of another model: architecture is 'test_vit2', the model is 'test_vit'",
        ),
        ({"model_args": {"qk_norm": True}}, "config.json has model_args={'qk_norm': True}, which are not known here"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "config.json prepares images in a way that is not known here"),
        ({"pretrained_cfg": {"mean": "grey"}}, "config.json prepares images in a way that is not known here"),
    ],
)
def test_a_config_that_the_model_cannot_keep_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    describe(folder, **changes)
    with pytest.raises(WeightsError, match=message):
        zoo.build("timm/test_vit", weights=folder / "model.safetensors")


def test_a_config_that_is_damaged_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"config.json lies beside the weights and is no valid JSON"):
        zoo.build("timm/test_vit", weights=folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config.json must hold a JSON object, got list"):
        zoo.build("timm/test_vit", weights=folder)


def test_no_classifier_in_the_config_is_none_in_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "model.safetensors")
    describe(tmp_path, num_classes=0)
    encoder: Any = zoo.build("timm/test_vit", weights=tmp_path)
    assert encoder.labels == []
