"""Cards, towers, weights and errors of the open_clip plugin."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_reference import TEXTS, shaken
from PIL import Image
from safetensors.torch import save_file
from zoo_clip import keys
from zoo_clip.family import family

import zoo
from zoo.errors import StateMismatchError, UsageError, WeightsMissingError
from zoo.models.contracts import DualEncoder, Encoder

OWN = ("clip/tiny", "clip/tiny-image", "clip/tiny-text")


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, an empty cache of ours and an empty cache of the hub."""
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", OWN)
def test_the_card_tells_the_truth(name: str) -> None:
    card = zoo.find(name).card
    module = zoo.build(name, weights=None)
    assert isinstance(module, DualEncoder if name == "clip/tiny" else Encoder)
    assert sum(parameter.numel() for parameter in module.parameters()) == card.parameters
    assert set(dict(module.named_modules())) >= set(card.keep_float32)
    with torch.no_grad():
        if name == "clip/tiny":
            assert module.embed("text", TEXTS).shape == (len(TEXTS), card.embedding_width)
            assert module.embed("text", []).shape == (0, card.embedding_width)
            return
        item = Image.new("RGB", (9, 9)) if card.modalities == ("image",) else "a cat"
        encoded = module(module.preprocess([item]))
    assert encoded.tokens_BTD.shape == (1, card.tokens["count"] or 4, card.tokens["width"])
    assert encoded.pooled_BD.shape == (1, card.embedding_width)


def test_towers_are_the_dual_encoders(tmp_path: Path, pictures: list[Image.Image]) -> None:
    """Tokens and embedding of each tower, from the file of the whole; rows do not depend on their neighbours."""
    config: dict[str, Any] = dict(zoo.find("clip/tiny").card.variant)
    torch.manual_seed(3)
    model = shaken(open_clip.CLIP(config["embedding_width"], config["vision"], config["text"]))
    save_file({f"module.{key}": tensor for key, tensor in model.state_dict().items()}, tmp_path / "whole.safetensors")
    whole, image, text = (zoo.build(name, weights=tmp_path / "whole.safetensors") for name in OWN)
    with torch.no_grad():
        for modality, tower, items in (("image", image, pictures), ("text", text, TEXTS)):
            inputs = tower.preprocess(items)
            encoded, single = tower(inputs), tower(inputs[1:2])
            count = single.tokens_BTD.shape[1]
            unit_BE = torch.nn.functional.normalize(encoded.pooled_BD, dim=-1)
            assert torch.allclose(unit_BE, whole.encode(modality, inputs), atol=1e-5)
            assert torch.allclose(single.tokens_BTD, encoded.tokens_BTD[1:2, :count], atol=1e-5)
            assert torch.allclose(single.pooled_BD, encoded.pooled_BD[1:2], atol=1e-5)
        expected = model.visual.forward_intermediates(
            image.preprocess(pictures), indices=1, normalize_intermediates=True, output_fmt="NLC"
        )["image_intermediates"][-1]
        assert torch.allclose(image(image.preprocess(pictures)).tokens_BTD, expected, atol=1e-5)
        encoded = text(text.preprocess(TEXTS))
        lengths = (text.preprocess(TEXTS) != 0).sum(1)
    assert encoded.mask_BT.sum(1).tolist() == lengths.tolist()
    assert encoded.mask_BT[:, :2].all()


def test_text_that_is_padded_more_stays_as_it_is() -> None:
    tower = zoo.build("clip/tiny-text", weights=None)
    with torch.no_grad():
        short, long = tower(tower.preprocess(["a cat"])), tower(tower.preprocess(["a cat", "many " * 100]))
    assert (short.tokens_BTD.shape[1], long.tokens_BTD.shape[1]) == (4, 77)
    assert long.mask_BT[0].tolist() == [True] * 4 + [False] * 73
    assert torch.allclose(short.tokens_BTD, long.tokens_BTD[:1, :4], atol=1e-5)


def test_siglip_reads_its_padding() -> None:
    numbers = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 49408}
    tower = zoo.build("clip/ViT-B-16-SigLIP-text", weights=None, text=numbers, embedding_width=32, tokenizer="clip")
    encoded = tower(tower.preprocess(["a cat"]))
    assert encoded.tokens_BTD.shape == (1, 64, 32)
    assert encoded.mask_BT.all()


SMALL_VISION = {"layers": 2, "width": 64, "head_width": 32, "image_size": 64, "patch_size": 16}
SMALL_TEXT = {"layers": 2, "width": 32, "heads": 2}
TIMM = {"timm_model_name": "test_vit", "image_size": 160}
KINDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ViT-B-32", SMALL_VISION, SMALL_TEXT),
    ("coca_ViT-B-32", {**SMALL_VISION, "attn_pooler_heads": 4}, SMALL_TEXT),
    ("RN50", {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "head_width": 8}, SMALL_TEXT),
    ("ViT-B-16-SigLIP", TIMM, {**SMALL_TEXT, "vocab_size": 49408}),
    ("convnext_base", {**TIMM, "timm_model_name": "test_convnext"}, SMALL_TEXT),
    ("ViT-H-14-CLIPA", SMALL_VISION, {**SMALL_TEXT, "vocab_size": 49408}),
]


@pytest.mark.parametrize(("name", "vision", "text"), KINDS, ids=[row[0] for row in KINDS])
def test_gradient_reaches_every_parameter(name: str, vision: dict[str, Any], text: dict[str, Any]) -> None:
    width = 64 if "SigLIP" in name else 32
    size = vision["image_size"]
    preprocess = {**zoo.find("clip/tiny").card.preprocess, "size": size}
    pixels = torch.randn(2, 3, size, size)
    arguments: dict[str, Any] = {"weights": None, "embedding_width": width}
    dual = zoo.build(f"clip/{name}", preprocess=preprocess, vision=vision, text=text, tokenizer="clip", **arguments)
    image = zoo.build(f"clip/{name}-image", preprocess=preprocess, vision=vision, **arguments)
    words = zoo.build(f"clip/{name}-text", text=text, tokenizer="clip", **arguments)
    ids = words.preprocess(["a cat", "two dogs and a rocket"])
    scores = dual.logit_scale * dual.encode("image", pixels) @ dual.encode("text", ids).T + dual.logit_bias
    (scores.square().sum()).backward()
    for tower, inputs in ((image, pixels), (words, ids)):
        encoded = tower(inputs)
        (encoded.tokens_BTD.square().sum() + encoded.pooled_BD.square().sum()).backward()
    for module in (dual, image, words):
        unreached = [
            key for key, parameter in module.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
        assert unreached == []
    with torch.no_grad():
        assert torch.allclose(image(pixels).tokens_BTD[1:], image(pixels[1:]).tokens_BTD, atol=1e-4)


@pytest.mark.parametrize(("name", "vision", "text"), KINDS, ids=[row[0] for row in KINDS])
def test_bfloat16(name: str, vision: dict[str, Any], text: dict[str, Any], pictures, tmp_path: Path) -> None:
    width = 64 if "SigLIP" in name else 32
    preprocess = {**zoo.find("clip/tiny").card.preprocess, "size": vision["image_size"]}
    arguments: dict[str, Any] = {"embedding_width": width, "preprocess": preprocess, "vision": vision, "text": text}
    arguments |= {"tokenizer": "clip"}
    exact = zoo.build(f"clip/{name}", weights=None, **arguments)
    save_file(exact.state_dict(), tmp_path / "own.safetensors")
    rounded = zoo.build(f"clip/{name}", weights=tmp_path / "own.safetensors", dtype=torch.bfloat16, **arguments)
    assert rounded.temperature.log_scale.dtype == torch.float32
    assert torch.equal(rounded.logit_scale, exact.logit_scale)
    assert next(rounded.text_tower.parameters()).dtype == torch.bfloat16
    with torch.no_grad():
        for modality, items in (("image", pictures), ("text", TEXTS)):
            ours, expected = rounded.embed(modality, items), exact.embed(modality, items)
            assert ours.dtype == torch.float32
            assert torch.nn.functional.cosine_similarity(ours, expected).min() >= 0.999


def test_every_name_and_tag_of_open_clip_is_there() -> None:
    cards = {card.name.partition("/")[2]: card for card in zoo.cards("clip/*")}
    architectures = set(open_clip.list_models())
    assert architectures <= set(cards)
    assert {f"{name}{tower}" for name in architectures for tower in ("-image", "-text")} <= set(cards)
    for tower in ("", "-image", "-text"):
        listed = {(name, row.tag) for name in architectures for row in cards[name + tower].weights}
        assert listed == set(open_clip.list_pretrained())
    for name in architectures:
        assert cards[name].embedding_width == open_clip.get_model_config(name)["embed_dim"]


def test_rows_say_where_from_and_how() -> None:
    openai = zoo.find("clip/ViT-B-32.openai").weights
    assert openai.files[0].sources[0] == "hf:timm/vit_base_patch32_clip_224.openai@main/open_clip_model.safetensors"
    assert not any("openaipublic" in source for source in openai.files[0].sources)
    assert openai.variant == {"trained_quick_gelu": True}
    scales = {
        name: zoo.find(f"clip/{name}").weights.score_scale
        for name in ("ViT-B-32.openai", "ViT-B-32-quickgelu.openai", "ViT-B-32.laion2b_s34b_b79k", "ViT-B-16.openai")
    }
    assert list(scales.values()) == ["laion-english", "laion-english", None, None]
    assert zoo.find("clip/ViT-B-32").weights.variant == {"trained_quick_gelu": False}
    assert zoo.find("clip/ViT-B-32-quickgelu").weights.tag == "openai"
    assert zoo.find("clip/roberta-ViT-B-32").weights.variant == {"trained_quick_gelu": True}
    siglip = zoo.find("clip/ViT-B-16-SigLIP.webli").weights.preprocess
    assert (siglip["resize"], siglip["mean"], siglip["size"]) == ("squash", [0.5] * 3, 224)
    vitamin = zoo.find("clip/ViTamin-S.datacomp1b").weights.files[0].sources
    assert vitamin == (
        "hf:jienengchen/ViTamin-S@main/pytorch_model.safetensors",
        "hf:jienengchen/ViTamin-S@main/pytorch_model.bin",
    )
    assert zoo.find("clip/ViT-B-32.laion2b_s34b_b79k").weights.licence == "MIT"


def test_patterns() -> None:
    assert [card["name"] for card in family("ViT-B-32")] == ["ViT-B-32"]
    assert [card["name"] for card in family("RN50-*")] == [
        "RN50-image",
        "RN50-text",
        "RN50-quickgelu",
        "RN50-quickgelu-image",
        "RN50-quickgelu-text",
    ]
    assert list(family("no_such_architecture")) == []
    assert dict(next(family("ViT-B-32-image"))["tokens"]) == {"count": 49, "width": 768}
    with pytest.raises(zoo.ZooError, match="no installed plugin provides 'clip/ViT-B-33'"):
        zoo.find("clip/ViT-B-33")


def test_the_wrong_activation_is_refused() -> None:
    message = (
        r"quick_gelu=False asks for GELU, but these weights of ViT-B-32 were trained with QuickGELU "
        r"\(trained_quick_gelu=True\): leave quick_gelu out, or, .* give trained_quick_gelu=False"
    )
    with pytest.raises(UsageError, match=message):
        zoo.build("clip/ViT-B-32.openai", weights=None, quick_gelu=False)
    for tower in ("-image", "-text"):
        with pytest.raises(UsageError, match="quick_gelu=True asks for QuickGELU, but these weights of ViT-B-32"):
            zoo.build(f"clip/ViT-B-32{tower}.laion2b_s34b_b79k", weights=None, quick_gelu=True)


def test_a_rows_activation_is_for_its_own_weights() -> None:
    """Random weights, and files of the user's own, get the architecture's activation, even where no row was trained with it."""
    own = {
        card["name"]: bool(open_clip.get_model_config(card["name"]).get("quick_gelu", False))
        for card in family("*")
        if card["kind"] == "dual_encoder" and card["weights"]
    }
    without = [name for name in own if zoo.find(f"clip/{name}").weights.variant["trained_quick_gelu"] != own[name]]
    assert {"RN50", "RN101", "ViT-H-14-378", "ViT-L-14-336"} <= set(without)
    numbers = {"text": {**SMALL_TEXT, "vocab_size": 49408}, "embedding_width": 32, "tokenizer": "clip", "weights": None}
    for name in without:
        (kind,) = {type(block.mlp.gelu) for block in zoo.build(f"clip/{name}-text", **numbers).tower.transformer.resblocks}
        assert (kind is open_clip.transformer.QuickGELU) == own[name], name
    torch.manual_seed(0)
    identities = {zoo.open_model(f"clip/RN50-text{tag}", **numbers).identity for tag in ("", ".openai")}
    assert len(identities) == 2
    assert isinstance(zoo.build("clip/RN50-text", quick_gelu=False, **numbers), torch.nn.Module)


def test_weights_that_are_not_here(unplugged: None) -> None:
    with pytest.raises(WeightsMissingError, match=r"Connect once and run: zoo fetch clip/ViT-B-32.openai"):
        zoo.build("clip/ViT-B-32.openai")


def test_a_tokenizer_that_only_the_hub_has(unplugged: None) -> None:
    numbers = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 64}
    tower = zoo.build("clip/ViT-B-16-SigLIP-text", weights=None, text=numbers, embedding_width=32)
    assert tower(torch.ones(1, 64, dtype=torch.long)).pooled_BD.shape == (1, 32)
    message = (
        "the tokenizer of ViT-B-16-SigLIP needs tokenizer_config.json of the Hugging Face repository timm/ViT-B-16-SigLIP, "
        "which is not in the hub's cache: the network is switched off .* Connect once and run: hf download"
    )
    with pytest.raises(WeightsMissingError, match=message):
        tower.preprocess(["a cat"])


@pytest.mark.covers("A18")
def test_control_tokens_in_a_text_are_text_for_a_tokenizer_of_the_hub_too(tmp_path: Path, monkeypatch) -> None:
    """One of transformers, as the towers of SigLIP and of Roberta have."""
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from zoo_clip.tokenizer import Tokenizer as Reader

    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "a", "cat", "<", "/", "s", ">"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    saved = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    saved.save_pretrained(tmp_path)
    monkeypatch.setattr("zoo_clip.tokenizer.need_hub_file", lambda *_, **__: None)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_, **__: HFTokenizer(str(tmp_path), context_length=9))
    (ids,) = Reader("a tokenizer of the hub", "somebody/something", 9)(["a </s> cat"]).tolist()
    assert ids[:6] == [words[word] for word in ("a", "<", "/", "s", ">", "cat")]


def test_a_text_tower_that_only_the_hub_has(unplugged: None, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match=r"needs config.json of the Hugging Face repository roberta-base"):
        zoo.build("clip/roberta-ViT-B-32", weights=None)
    with pytest.raises(WeightsMissingError, match="needs config.json, and the folder .* has no such file"):
        zoo.build("clip/roberta-ViT-B-32", weights=None, text={"hf_model_name": str(tmp_path)})


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo_clip.hub.find_spec", lambda _name: None)
    message = r"roberta-ViT-B-32 needs transformers, which is not installed: pip install 'modalzoo-clip\[transformers\]'"
    with pytest.raises(UsageError, match=message):
        zoo.build("clip/roberta-ViT-B-32", weights=None)


def test_wrong_arguments_and_inputs() -> None:
    encoder = zoo.build("clip/tiny", weights=None)
    cases = [
        (lambda: encoder.encode("sound", None), "this encoder reads 'image' and 'text', got 'sound'"),
        (lambda: encoder.preprocess("video", []), "got 'video'"),
        (lambda: encoder.encode("image", torch.zeros(1, 3, 32, 32)), r"float\[B, 3, 64, 64\] as preprocess returns them"),
        (lambda: encoder.encode("text", torch.zeros(1, 78, dtype=torch.long)), r"int\[B, 77\] as preprocess returns them"),
        (lambda: encoder.encode("text", torch.zeros(1, 7)), "got torch.float32"),
        (lambda: encoder.preprocess("text", ["a", 3]), "a text must be a str, item 1 is int"),
        (lambda: zoo.build("clip/tiny", weights=None, tokenizer="bert"), 'tokenizer must be "clip" or left out'),
        (lambda: zoo.build("clip/tiny", weights=None, text=SMALL_TEXT | {"vocab_size": 9}), "has 49408 entries"),
        (lambda: zoo.build("clip/tiny", weights=None, vision=SMALL_VISION | {"image_size": 96}), "images of 64 pixels"),
        (lambda: zoo.build("clip/tiny", weights=None, vision={}), "without arch, the builder needs"),
        (lambda: zoo.build("clip/tiny", weights=None, arch="ViT-B-33"), "has no architecture 'ViT-B-33'; did you mean ViT-B"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()


def test_what_checkpoints_contain() -> None:
    one = torch.ones(())
    state = {
        "module.visual.proj": one,
        "text_projection": one,
        "transformer.resblocks.0.ln_1.weight": one,
        "text.ln_final.weight": one,
        "text.transformer.embeddings.position_ids": one,
        "text_decoder.ln_final.weight": one,
        "logit_scale": torch.ones(1),
        "logit_bias": torch.ones(1),
        "context_length": one,
        "surprise": one,
    }
    renamed = keys.dual_encoder(state)
    assert set(renamed) == {
        "image_tower.proj", "text_tower.text_projection", "text_tower.transformer.resblocks.0.ln_1.weight",
        "text_tower.ln_final.weight", "temperature.log_scale", "temperature.bias", "surprise",
    }  # fmt: skip
    assert renamed["temperature.log_scale"].shape == ()
    assert set(keys.image_tower(state)) == {"tower.proj", "surprise"}
    assert {"tower.text_projection", "surprise"} < set(keys.text_tower(state))


def test_half_precision_files_and_strict_loading(tmp_path: Path) -> None:
    config = zoo.find("clip/tiny").card.variant
    state = open_clip.CLIP(config["embedding_width"], config["vision"], config["text"]).half().state_dict()
    save_file(state, tmp_path / "half.safetensors")
    encoder = zoo.build("clip/tiny", weights=tmp_path / "half.safetensors")
    assert encoder.image_tower.proj.dtype == torch.float32
    assert torch.equal(encoder.image_tower.proj, state["visual.proj"].float())
    save_file({**state, "surprise": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(StateMismatchError, match=r"unexpected  surprise \[1\]"):
        zoo.build("clip/tiny", weights=tmp_path / "more.safetensors")
    save_file({key: tensor for key, tensor in state.items() if key != "visual.proj"}, tmp_path / "less.safetensors")
    with pytest.raises(StateMismatchError, match=r"missing     tower.proj \[64, 32\]"):
        zoo.build("clip/tiny-image", weights=tmp_path / "less.safetensors")


@pytest.mark.skipif(
    os.environ.get("ZOO_SLOW_TESTS") != "1", reason="13 s, and the kit asks the same of a small card: ZOO_SLOW_TESTS=1"
)
def test_the_process_is_left_as_it_was() -> None:
    script = """
import logging, os, random, sys, warnings
import torch, zoo
zoo.cards()
assert not {"open_clip", "zoo_clip"} & set(sys.modules), "listing imports nothing"
import zoo.models.build
def state():
    return dict(os.environ), list(warnings.filters), torch.get_rng_state().tolist(), torch.get_default_dtype(), \\
        torch.get_num_threads(), list(logging.root.handlers), random.getstate()
before = state()
import zoo_clip.dual, zoo_clip.towers, zoo_clip.tokenizer as tokenizer
tokenizer.Tokenizer("ViT-B-32", None, 77)(["a cat"])
for old, new, what in zip(before, state(), "environment filters random dtype threads handlers python".split()):
    assert old == new, what
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_command_line(zoo, photos: Path) -> None:
    run = zoo(
        "classify", str(photos / "chelsea.jpg"), "--model", "clip/tiny", "--weights", "none",
        "--labels", "cat,dog", "--templates", "zoo-9", "--dtype", "bfloat16", "--no-close-calls",
    )  # fmt: skip
    assert (run.returncode, "chelsea.jpg" in run.stdout) == (0, True), run.stderr
