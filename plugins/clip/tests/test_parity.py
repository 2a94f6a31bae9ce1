"""Our numbers are open_clip's, on the same random weights, for every kind of tower."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_reference import TEXTS, shaken
from PIL import Image

import zoo
from zoo.models.contracts import DualEncoder
from zoo.tasks.classify import classify

CLOSE = 1e-5
SMALL_VISION = {"layers": 2, "width": 64, "head_width": 32, "image_size": 64, "patch_size": 16}
SMALL_TEXT = {"layers": 2, "width": 32, "heads": 2}
slow = pytest.mark.skipif("ZOO_SLOW_TESTS" not in os.environ, reason="minutes and gigabytes: ZOO_SLOW_TESTS=1 runs it")


def small_preprocess(size: int, resize: str = "shortest") -> dict[str, Any]:
    numbers = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    return {"size": size, "crop": 1.0, "resize": resize, "interpolation": "bicubic", **numbers}


def make_reference(name: str, embed_dim: int, **changes: dict[str, Any]) -> Any:
    """open_clip's model of a name with smaller towers, made by its own classes."""
    config = open_clip.get_model_config(name)
    config["embed_dim"] = embed_dim
    for part, numbers in changes.items():
        config[part] |= numbers
    kind = open_clip.CLIP
    if config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    torch.manual_seed(1)
    return shaken(kind(**config))


def check(encoder: Any, expected: tuple[torch.Tensor, torch.Tensor], images: list[Image.Image]) -> None:
    assert isinstance(encoder, DualEncoder)
    with torch.no_grad():
        image_BE, text_BE = encoder.embed("image", images), encoder.embed("text", TEXTS)
        one_by_one = torch.cat([encoder.embed("text", [text]) for text in TEXTS])
    assert (image_BE - expected[0]).abs().max() < CLOSE
    assert (text_BE - expected[1]).abs().max() < CLOSE
    assert (one_by_one - text_BE).abs().max() < CLOSE
    for rows in expected:  # models that answer every input alike would agree whatever they compute
        assert torch.pdist(rows).min() > 5 * CLOSE
    torch.testing.assert_close(image_BE.norm(dim=-1), torch.ones(len(image_BE)))


def check_probabilities(built: Any, model: Any, images_BE: torch.Tensor, pictures: list[Image.Image]) -> None:
    """Over labels by softmax, as `zoo classify` answers, and of each label alone by the sigmoid that SigLIP is trained with."""
    labels = ["cat", "dog", "rocket", "coffee"]
    texts = [f"a photo of a {label}" for label in labels]
    with torch.no_grad():
        text_CE = model.encode_text(
            open_clip.tokenizer._tokenizer(texts, context_length=model.context_length), normalize=True
        )
        logits_BC = model.logit_scale.exp() * images_BE @ text_CE.T
        logits_BC = logits_BC if model.logit_bias is None else logits_BC + model.logit_bias
        module = built.module
        scores_BC = module.embed("image", pictures) @ module.embed("text", texts).T
        sigmoid_BC = (module.logit_scale * scores_BC + module.logit_bias).sigmoid()
    outcome = classify(pictures, labels, model=built, templates=["a photo of a {}"])
    ours_BC = torch.tensor([[answer.scores[label] for label in labels] for answer in outcome.results])
    assert (ours_BC - logits_BC.softmax(-1)).abs().max() < CLOSE
    assert (sigmoid_BC - logits_BC.sigmoid()).abs().max() < CLOSE


@slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "RN50"])
def test_full_size(name: str, saved, reference, pictures) -> None:
    """Embeddings and zero-shot probabilities; the weights pass through a file, as published ones do."""
    model = shaken(open_clip.create_model(name))
    expected = reference(model, pictures)
    built = zoo.open_model(f"clip/{name}", weights=saved(model))
    check(built.module, expected, pictures)
    check_probabilities(built, model, expected[0], pictures)


def test_the_activation_matters(saved, reference, pictures) -> None:
    """With the other activation the same weights give other vectors: the tests above could fail."""
    model = make_reference("ViT-B-32-quickgelu", 32, vision_cfg=SMALL_VISION, text_cfg=SMALL_TEXT)
    expected = reference(model, pictures)
    path = saved(model)
    arguments = {"vision": SMALL_VISION, "text": SMALL_TEXT, "embedding_width": 32, "preprocess": small_preprocess(64)}
    check(zoo.build("clip/ViT-B-32.openai", weights=path, **arguments), expected, pictures)
    plain = zoo.build("clip/ViT-B-32.laion2b_s34b_b79k", weights=path, **arguments)
    with torch.no_grad():
        for modality, items, rows in (("image", pictures, expected[0]), ("text", TEXTS, expected[1])):
            assert (plain.embed(modality, items) - rows).abs().max() > 100 * CLOSE


SIGLIP_VISION = {"timm_model_name": "test_vit", "image_size": 160}
SIGLIP_TEXT = {"layers": 2, "width": 64, "heads": 4, "vocab_size": 49408}
COCA = {"vision": {**SMALL_VISION, "attn_pooler_heads": 4}, "text": SMALL_TEXT}
SMALL: list[tuple[str, int, dict[str, Any], dict[str, Any], str]] = [
    ("ViT-B-32", 32, SMALL_VISION, SMALL_TEXT, "shortest"),
    ("ViT-B-16-SigLIP", 64, SIGLIP_VISION, SIGLIP_TEXT, "squash"),
    ("ViT-B-16-SigLIP2", 96, {**SIGLIP_VISION, "timm_model_name": "test_vit3"}, SIGLIP_TEXT, "squash"),
    ("coca_ViT-B-32", 32, COCA["vision"], COCA["text"], "shortest"),
    ("RN50", 32, {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "head_width": 8}, SMALL_TEXT, "shortest"),
    ("convnext_base", 32, {"timm_model_name": "test_convnext", "image_size": 160}, SMALL_TEXT, "shortest"),
    ("EVA02-B-16", 32, {"timm_model_name": "eva02_tiny_patch14_224"}, SMALL_TEXT, "shortest"),
    ("MobileCLIP-B", 32, {"timm_model_name": "test_vit", "image_size": 160}, SMALL_TEXT, "shortest"),
    ("ViT-H-14-CLIPA", 32, SMALL_VISION, {**SMALL_TEXT, "vocab_size": 49408}, "longest"),
    ("ViT-L-14-worldwide", 32, SMALL_VISION, {**SMALL_TEXT, "vocab_size": 49408, "eos_id": 49407}, "shortest"),
]


@pytest.mark.parametrize(("name", "width", "vision", "text", "resize"), SMALL, ids=[row[0] for row in SMALL])
def test_every_kind_of_tower(
    name: str, width: int, vision: dict[str, Any], text: dict[str, Any], resize: str, saved, reference, pictures
) -> None:
    model = make_reference(name, width, vision_cfg=vision, text_cfg=text)
    expected = reference(model, pictures, resize_mode=resize)
    size = vision.get("image_size", 224)
    built = zoo.open_model(
        f"clip/{name}",
        weights=saved(model),
        vision=vision,
        text=text,
        embedding_width=width,
        tokenizer="clip",
        preprocess=small_preprocess(size, resize),
    )
    encoder: Any = built.module
    check(encoder, expected, pictures)
    check_probabilities(built, model, expected[0], pictures)
    assert encoder.logit_scale.item() == pytest.approx(model.logit_scale.exp().item())
    assert encoder.logit_bias.item() == pytest.approx(0.0 if model.logit_bias is None else model.logit_bias.item())
    assert not any("decoder" in key for key in encoder.state_dict())


def test_a_hugging_face_text_tower(tmp_path: Path, saved, reference, pictures) -> None:
    from transformers import RobertaConfig

    numbers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=49408, max_position_embeddings=90, pad_token_id=0, **numbers)
    config.save_pretrained(tmp_path / "roberta")
    text = {"hf_model_name": str(tmp_path / "roberta"), "hf_tokenizer_name": "", "hf_model_pretrained": False}
    config = open_clip.get_model_config("roberta-ViT-B-32")
    config |= {"embed_dim": 32}
    config["vision_cfg"] |= SMALL_VISION
    config["text_cfg"] |= text
    model = shaken(open_clip.CustomTextCLIP(**config))
    model.context_length = 77
    expected = reference(model, pictures)
    built = zoo.open_model(
        "clip/roberta-ViT-B-32",
        weights=saved(model),
        vision=SMALL_VISION,
        text=text,
        embedding_width=32,
        tokenizer="clip",
        preprocess=small_preprocess(64),
    )
    check(built.module, expected, pictures)
    check_probabilities(built, model, expected[0], pictures)


@slow
@pytest.mark.parametrize(
    ("name", "resize"), [("ViT-B-16-SigLIP", "squash"), ("coca_ViT-B-32", "shortest"), ("ViT-L-14", "shortest")]
)
def test_full_size_slowly(name: str, resize: str, saved, reference, pictures) -> None:
    changes = {"text_cfg": {"vocab_size": 49408}} if "SigLIP" in name else {}
    model = make_reference(name, open_clip.get_model_config(name)["embed_dim"], **changes)
    expected = reference(model, pictures, resize_mode=resize)
    encoder = zoo.build(
        f"clip/{name}",
        weights=saved(model),
        tokenizer="clip",
        text=changes.get("text_cfg"),
        preprocess=small_preprocess(224, resize),
    )
    check(encoder, expected, pictures)


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_open_clips(resize: str, interpolation: str, photos: Path) -> None:
    numbers = {**small_preprocess(96, resize), "interpolation": interpolation, "fill": 9}
    encoder = zoo.build("clip/tiny-image", weights=None, preprocess=numbers, vision={**SMALL_VISION, "image_size": 96})
    transform = open_clip.image_transform(96, is_train=False, resize_mode=resize, interpolation=interpolation, fill_color=9)
    images = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    images += [images[0].resize(size) for size in ((100, 30), (31, 90), (96, 96), (20, 21))]
    assert torch.equal(encoder.preprocess(images), torch.stack([transform(image) for image in images]))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("openai-80", open_clip.zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES),
        ("openai-7", open_clip.zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES),
    ],
)
def test_templates_are_the_published_ones(name: str, rows: list[Callable[[str], str]]) -> None:
    from zoo.data.templates import template_set

    assert list(template_set(name)) == [row("{}") for row in rows]


def test_label_embeddings_are_open_clips_classifier(pictures) -> None:
    """open_clip's own zero-shot classifier, over the seven templates: the mean of unit vectors, with length one again."""
    from zoo.data.templates import template_set
    from zoo.tasks.label_scores import label_embeddings

    built = zoo.open_model("clip/tiny", weights=None)
    labels = ["cat", "dog", "rocket"]

    class Peer(torch.nn.Module):
        def encode_text(self, ids: torch.Tensor, normalize: bool = False) -> torch.Tensor:
            return built.module.encode("text", ids)

    templates = open_clip.zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES
    weight_EC = open_clip.build_zero_shot_classifier(Peer(), open_clip.tokenize, labels, templates)
    assert (label_embeddings(built, labels, template_set("openai-7")) - weight_EC.T).abs().max() < CLOSE
