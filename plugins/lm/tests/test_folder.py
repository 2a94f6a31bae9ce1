"""Folders as transformers saves them: opened, they give its numbers; what is wrong in them is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_reference import CONTEXT, VOCABULARY, batch, llama_reference
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from zoo_lm.folder import hub_folder
from zoo_lm.json_tokenizer import JsonTokenizer
from zoo_lm.llama import open_folder, open_hub

from zoo.decoding.generation import generate
from zoo.errors import StateMismatchError, UsageError, WeightsError, WeightsMissingError
from zoo.models.contracts import Decoder
from zoo.models.contracts import Tokenizer as Contract

TEXTS = ["", "hello", " two  spaces\n\tand lines", "ünïcode 🐕 漢字", "<|end|> is no end", "\0\x7f"]
CORPUS = ["hello hello hello world", "two spaces and lines", "is no end"] * 5


def saved(folder: Path, **options: Any) -> Any:
    model = llama_reference(options.pop("kind", "default"), tied=options.pop("tied", False))
    model.save_pretrained(folder, **options)
    return model


def change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


def assert_same(folder: Path, reference: Any) -> None:
    decoder: Any = open_folder(folder)
    assert isinstance(decoder, Decoder)
    assert not decoder.training
    assert (decoder.context, decoder.vocabulary) == (CONTEXT, VOCABULARY)
    tokens_BT = batch().tokens_BT
    with torch.no_grad():
        assert (decoder(tokens_BT) - reference(tokens_BT).logits).abs().max() < 2e-5


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("tied", [False, True])
def test_one_file(tmp_path: Path, kind: str, tied: bool) -> None:
    assert_same(tmp_path, saved(tmp_path, kind=kind, tied=tied))


def test_several_files(tmp_path: Path) -> None:
    reference = saved(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(tmp_path, reference)


def test_a_head_of_its_own_that_equals_the_embedding(tmp_path: Path) -> None:
    reference = llama_reference()
    reference.lm_head.weight = torch.nn.Parameter(reference.model.embed_tokens.weight.detach().clone())
    reference.save_pretrained(tmp_path)
    assert_same(tmp_path, reference)
    decoder: Any = open_folder(tmp_path)
    assert decoder.head is not None


def test_configurations_of_transformers_4(tmp_path: Path) -> None:
    """`rope_theta` stood alone, and `rope_scaling` said `type` before it said `rope_type`."""
    reference = saved(tmp_path, kind="linear")
    for word in ("type", "rope_type"):
        scaling = {word: "linear", "factor": 4.0}
        change(tmp_path / "config.json", rope_parameters="gone", rope_theta=10000.0, rope_scaling=scaling)
        assert_same(tmp_path, reference)
    change(tmp_path / "config.json", num_key_value_heads="gone", num_attention_heads="gone")
    with pytest.raises(UsageError, match="got none as num_attention_heads"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 10**14}, "must have at most 1,048,576 as vocab_size, got 100,000,000,000,000"),
        ({"max_position_embeddings": 10**13}, "must have at most 1,048,576 as max_position_embeddings"),
        ({"vocab_size": 10**6}, "config.json describes an embedding of [0-9,]+ numbers, the files hold"),
        ({"head_dim": 16.0}, "must have a number above 0 as head_dim, got 16.0"),
        ({"hidden_size": -32}, "must have a number above 0 as hidden_size, got -32"),
        ({"model_type": "mistral"}, "holds a model of type 'mistral'; this reads 'llama'"),
        ({"model_type": "gone"}, "holds a model of type None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; this Llama is built with 'silu' alone"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"hidden_size": "64"}, "got none as hidden_size"),
        ({"hidden_size": True}, "got none as hidden_size"),
        ({"head_dim": "12"}, "a number above 0 as head_dim, got '12'"),
        ({"rope_parameters": ["linear"]}, r"by names and numbers, got \['linear'\]"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "kind 'dynamic'; read are default, linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "kind 'linear' with ; it takes factor"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.7}},
            "attention_factor, original_max_position_embeddings; it takes factor",
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "kind 'default'"),
    ],
)
def test_configurations_of_others(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    saved(tmp_path)
    change(tmp_path / "config.json", **fields)
    with pytest.raises(UsageError, match=message):
        open_folder(tmp_path)


def test_no_folder_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a folder that transformers saved a model in"):
        open_folder(tmp_path)
    for content, message in (
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("[" * 10**5, "JSON"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UsageError, match=message):
            open_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/model.safetensors", "..\\x.safetensors", "c:x.safetensors", "..", "x.bin"],
)
def test_an_index_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    saved(tmp_path, max_shard_size="20KB")
    path = tmp_path / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="may only name .safetensors files beside it"):
        open_folder(tmp_path)


def test_parts_that_are_missing_or_others(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    parts = sorted(set(content["weight_map"].values()))
    change(index, weight_map={**content["weight_map"], "model.norm.weight": parts[0]})
    with pytest.raises(WeightsError, match=r"does not hold the tensors .* model.norm.weight differ"):
        open_folder(tmp_path)
    change(index, weight_map={key: name for key, name in content["weight_map"].items() if key != "model.norm.weight"})
    with pytest.raises(WeightsError, match=r"does not hold the tensors .* model.norm.weight differ"):
        open_folder(tmp_path)
    (tmp_path / parts[0]).unlink()
    with pytest.raises(WeightsMissingError, match=f"lacks {parts[0]}"):
        open_folder(tmp_path)
    change(index, weight_map=["model.norm.weight"])
    with pytest.raises(WeightsError, match="must have a weight_map"):
        open_folder(tmp_path)
    index.unlink()
    with pytest.raises(WeightsMissingError, match="neither model.safetensors nor"):
        open_folder(tmp_path)


def test_tensors_of_another_size_and_nan(tmp_path: Path) -> None:
    saved(tmp_path)
    change(tmp_path / "config.json", num_hidden_layers=2)
    with pytest.raises(StateMismatchError, match="unexpected  stack.blocks.2"):
        open_folder(tmp_path)
    model = llama_reference()
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="NaN or infinity in stack.norm.weight"):
        open_folder(tmp_path)


def byte_level(vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("wörld", normalized=False)])
    return tokenizer


def byte_fallback(vocabulary: int) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>"]
    entries = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrd", "he", "ll", "▁he", "▁hell"]
    merges = [("h", "e"), ("l", "l"), ("▁", "he"), ("▁he", "ll")]
    numbers = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(special)
    return tokenizer


def opened(tokenizer: Tokenizer, path: Path, vocabulary: int = 400) -> JsonTokenizer:
    tokenizer.save(str(path))
    start, end = (tokenizer.token_to_id(name) for name in ("<|start|>", "<|end|>"))
    return JsonTokenizer(path, start_id=start, end_ids=(end,) if end is not None else (2,), vocabulary=vocabulary)


@pytest.mark.covers("A18")
@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_tokenizers(make: Any, tmp_path: Path) -> None:
    original = make(300)
    tokenizer = opened(original, tmp_path / "tokenizer.json")
    assert isinstance(tokenizer, Contract)
    for text in [*TEXTS, "hello wörld</s>"]:
        ids = tokenizer.encode(text)
        shown = f" {text}" if make is byte_fallback and text else text
        assert tokenizer.decode(ids) == shown
        assert b"".join(map(tokenizer.token_bytes, ids)) == shown.encode()
        assert not set(ids) & tokenizer.control  # what a user wrote is never a control token
        if "<" not in text:
            assert ids == original.encode(text, add_special_tokens=False).ids
    assert all(tokenizer.token_bytes(token) == b"" for token in tokenizer.control)
    assert tokenizer.token_bytes(399) == b""
    with pytest.raises(UsageError, match="from 0 to 399, got 400"):
        tokenizer.token_bytes(400)
    with pytest.raises(UsageError, match="got NoneType"):
        tokenizer.encode(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lone surrogate"):
        tokenizer.encode("\ud83d")


def test_tokenizers_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UsageError, match=r"has \d+ tokens, the model has 20: it is another's"):
        opened(byte_level(300), path, vocabulary=20)
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UsageError, match="as ByteLevel or ByteFallback does, its decoder is null"):
        opened(words, path)
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"is no readable tokenizer.json"):
        JsonTokenizer(path, start_id=None, end_ids=(), vocabulary=9)


def test_a_folder_with_a_tokenizer(tmp_path: Path) -> None:
    saved(tmp_path)
    change(tmp_path / "generation_config.json", eos_token_id="gone")
    words = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    words.decoder = decoders.ByteLevel()
    words.save(str(tmp_path / "tokenizer.json"))
    decoder: Any = open_folder(tmp_path)
    assert decoder.tokenizer.encode("abc") == [0, 1, 2]
    assert (decoder.tokenizer.vocabulary, decoder.tokenizer.start_id, decoder.tokenizer.end_ids) == (VOCABULARY, None, (1,))
    change(tmp_path / "generation_config.json", eos_token_id=[2, 0])
    decoder = open_folder(tmp_path)
    assert decoder.tokenizer.end_ids == (2, 0)
    change(tmp_path / "config.json", bos_token_id="first")
    with pytest.raises(UsageError, match="must be whole numbers, got 'first'"):
        open_folder(tmp_path)


def hub_cache(folder: Path, repository: str, **options: Any) -> Any:
    """The hub's own cache as huggingface_hub lays it out, with one model in it, and the reference that was saved."""
    home = folder / f"models--{repository.replace('/', '--')}"
    reference = saved(home / "snapshots" / "0123abc", **options)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abc")
    return reference


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_the_cache_of_the_hub_works_without_a_network(tmp_path: Path, monkeypatch: Any, options: Any) -> None:
    reference = hub_cache(tmp_path, "somebody/llama", **options)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same(hub_folder("somebody/llama"), reference)
    tokens_BT = batch().tokens_BT
    with torch.no_grad():
        assert (open_hub("somebody/llama")(tokens_BT) - reference(tokens_BT).logits).abs().max() < 2e-5
    with pytest.raises(WeightsMissingError, match="the network is switched off"):
        open_hub("somebody/else")
    next((tmp_path / "models--somebody--llama" / "snapshots" / "0123abc").glob("*.safetensors")).unlink()
    with pytest.raises(WeightsMissingError, match="the network is switched off"):
        open_hub("somebody/llama")


def test_a_folder_without_a_tokenizer_ends_where_the_model_ends(tmp_path: Path) -> None:
    """The end is named in config.json, or in generation_config.json, which transformers prefers; with neither it is LlamaConfig's."""
    reference = saved(tmp_path)
    prompt = batch().tokens_BT[:1, :4]
    with torch.no_grad():
        free = reference.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 4:].tolist()
    generation = tmp_path / "generation_config.json"
    kept = generation.read_text()
    for place, end in ((tmp_path / "config.json", free[2]), (generation, [free[1]])):
        generation.unlink(missing_ok=True)
        if place == generation:
            generation.write_text(kept)
        change(place, eos_token_id=end)
        decoder: Any = open_folder(tmp_path)
        (answer,) = generate(decoder, [prompt[0].tolist()], max_tokens=8)
        theirs = (
            type(reference).from_pretrained(tmp_path).generate(prompt, max_new_tokens=8, do_sample=False)[0, 4:].tolist()
        )
        assert [*answer.ids, *decoder.tokenizer.end_ids] == theirs
        assert answer.finish == "end"
    assert (decoder.tokenizer.start_id, decoder.tokenizer.vocabulary) == (reference.config.bos_token_id, VOCABULARY)
    assert isinstance(decoder.tokenizer, Contract)
    with pytest.raises(UsageError, match="has no tokenizer.json, so it turns no text into token ids"):
        decoder.tokenizer.encode("a")
    generation.unlink()
    change(tmp_path / "config.json", eos_token_id="gone", bos_token_id="gone")
    assert open_folder(tmp_path).tokenizer.end_ids == (2,)  # type: ignore[union-attr]
    change(tmp_path / "config.json", eos_token_id=None, bos_token_id=None)
    assert open_folder(tmp_path).tokenizer is None
