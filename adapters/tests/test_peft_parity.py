"""Each method against HF PEFT, on the same weights: its files here, ours there, gradients, and how many parameters are trained."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft_cases import (
    CONFIGS,
    TOKENS,
    gradients_agree,
    our_adapters,
    our_llama,
    peft_model,
    reference_llama,
    saved,
    shaken,
)
from tiny_tower import tower

import zoo
from zoo.errors import StateMismatchError, UsageError, WeightsError

TOLERANCE = 1e-5


def logits_of(model: Any) -> torch.Tensor:
    """Of the tokens alone: PEFT gives logits of a prompt's virtual tokens, too."""
    return model(input_ids=TOKENS).logits[:, -TOKENS.shape[1] :]


@pytest.mark.parametrize("case", CONFIGS)
def test_their_files_give_their_numbers_here(case: str, tmp_path: Path) -> None:
    theirs = peft_model(case)
    ours = our_llama(reference_llama())
    adapters = our_adapters(ours)
    before = ours(TOKENS)
    adapters.load(saved(theirs, tmp_path), name="theirs")
    with torch.no_grad():
        expected, found = logits_of(theirs), ours(TOKENS)
    assert (expected - before).abs().max() > 0.01, "the adapter does something"
    assert (expected - found).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("case", CONFIGS)
def test_our_files_give_our_numbers_there(case: str, tmp_path: Path) -> None:
    ours = our_llama(reference_llama())
    adapters = our_adapters(ours)
    adapters.load(saved(peft_model(case), tmp_path / "theirs"), name="own")
    shaken(adapters["own"], seed=5)
    adapters.export("own", tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(reference_llama(), tmp_path / "ours").eval()
    with torch.no_grad():
        expected, found = logits_of(theirs), ours(TOKENS)
    assert (expected - found).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("case", CONFIGS)
def test_gradients_are_theirs(case: str, tmp_path: Path) -> None:
    theirs = peft_model(case)
    ours = our_llama(reference_llama())
    adapters = our_adapters(ours)
    adapters.load(saved(theirs, tmp_path), name="own")
    weights = torch.randn(2, TOKENS.shape[1], 61, generator=torch.Generator().manual_seed(3))
    (logits_of(theirs) * weights).sum().backward()
    (ours(TOKENS) * weights).sum().backward()
    if case != "prefix projected":  # the network that made the table is not in the file
        gradients_agree(theirs, adapters, tmp_path, TOLERANCE)


COUNTED = {
    "lora": ("lora", {"r": 4, "targets": ["query", "key", "value", "output"]}),
    "lora all": ("lora", {"r": 3, "targets": "all-linear"}),
    "lora embedding": ("lora", {"r": 4, "targets": ["embedding", "query", "head"]}),
    "dora": ("dora", {"r": 4, "targets": ["query", "key", "value", "output", "up"]}),
    "ia3": ("ia3", {}),
    "prefix": ("prefix", {"count": 5}),
    "prefix projected": ("prefix", {"count": 5, "hidden": 8}),
    "prompt": ("prompt", {"count": 5}),
}


@pytest.mark.parametrize("case", COUNTED)
def test_as_many_parameters_are_trained(case: str) -> None:
    method, options = COUNTED[case]
    adapters = zoo.adapt(our_llama(reference_llama()), method, **options)
    trained, every = peft.get_peft_model(reference_llama(), CONFIGS[case]()).get_nb_trainable_parameters()
    found = sum(adapters.trainable().values())
    if case == "prefix projected":  # theirs keeps the width of the keys and values for the rows that the network reads
        assert found == 5 * 32 + 32 * 8 + 8 + 8 * 96 + 96
        return
    assert found == trained
    assert f"{trained:,} of {every:,} parameters are trained" in adapters.describe()


@pytest.mark.parametrize("how", ["linear", "cat", "svd"])
def test_combining_is_theirs(how: str, tmp_path: Path) -> None:
    theirs = peft_model("lora")
    theirs.add_adapter("second", CONFIGS["lora"]())
    theirs.set_adapter("second")
    shaken(theirs, seed=2)
    theirs.save_pretrained(tmp_path, selected_adapters=["default", "second"])
    theirs.add_weighted_adapter(
        ["default", "second"], [0.7, 0.4], "both", combination_type=how, svd_rank=3 if how == "svd" else None
    )
    theirs.set_adapter("both")
    ours = our_llama(reference_llama())
    adapters = our_adapters(ours)
    adapters.load(tmp_path, name="first")
    adapters.load(tmp_path / "second", name="second")
    names = {"linear": "sum", "cat": "concatenation", "svd": "svd"}
    adapters.combine("both", {"first": 0.7, "second": 0.4}, how=names[how], r=3 if how == "svd" else None)
    adapters.use("both")
    with torch.no_grad():
        expected, found = logits_of(theirs), ours(TOKENS)
    assert (expected - found).abs().max() < 5 * TOLERANCE * expected.abs().max()


TOWERS: dict[str, tuple[Any, str, dict[str, Any]]] = {  # with the same, built here
    "lora attention": (
        lambda: peft.LoraConfig(r=4, target_modules=["attn"]),
        "lora",
        {"r": 4, "targets": ["attn.in_proj", "attn.out_proj"]},
    ),
    "lora attention, feed-forward": (
        lambda: peft.LoraConfig(r=4, target_modules=["attn", "c_fc"]),
        "lora",
        {"r": 4, "targets": ["attn.in_proj", "attn.out_proj", "c_fc"]},
    ),
    "lora convolution": (
        lambda: peft.LoraConfig(r=4, target_modules=["conv1", "c_proj"]),
        "lora",
        {"r": 4, "targets": ["conv1", "c_proj"]},
    ),
    "rslora": (
        lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules=["c_fc"]),
        "lora",
        {"r": 4, "rank_stabilised": True, "targets": ["c_fc"]},
    ),
    "dora": (lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["c_fc"]), "dora", {"r": 4, "targets": ["c_fc"]}),
    "ia3": (
        lambda: peft.IA3Config(target_modules=["c_fc", "c_proj"], feedforward_modules=["c_proj"]),
        "ia3",
        {"targets": ["c_fc"], "feed_forward": ["c_proj"]},
    ),
}


@pytest.mark.parametrize("case", TOWERS)
def test_a_tower_of_open_clip(case: str, tmp_path: Path) -> None:
    config, method, options = TOWERS[case]
    theirs = peft.get_peft_model(tower(), config()).eval()
    shaken(theirs)
    ours = tower()
    adapters = our_adapters(ours, {})
    adapters.load(saved(theirs, tmp_path / "theirs"), name="own")
    assert sum(adapters.trainable().values()) == theirs.get_nb_trainable_parameters()[0]
    assert sum(zoo.adapt(tower(), method, **options).trainable().values()) == theirs.get_nb_trainable_parameters()[0]
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    adapters.export("own", tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(tower(), tmp_path / "ours").eval()
    expected, found = theirs(pixels), ours(pixels)
    with torch.no_grad():
        assert (expected - tower()(pixels)).abs().max() > 0.01
        assert (expected - found).abs().max() < TOLERANCE * expected.abs().max()
        assert (expected - back(pixels)).abs().max() < TOLERANCE * expected.abs().max()
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    gradients_agree(theirs, adapters, tmp_path, TOLERANCE)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    adapters = our_adapters(our_llama(reference_llama()))
    with pytest.raises(WeightsError, match="it has no adapter_config.json; one of ours is a file"):
        adapters.load(tmp_path, name="x")
    folder = saved(peft_model("lora"), tmp_path / "lora")
    adapters.module_names = {}
    with pytest.raises(
        StateMismatchError, match=r"24 tensors are those of no place in this model.*\n  unexpected  model.layers.0"
    ):
        adapters.load(folder, name="x")
    config = folder / "adapter_config.json"
    text = config.read_text()
    adapters = our_adapters(our_llama(reference_llama()))
    config.write_text(text.replace('"bias": "none"', '"bias": "all"'))
    with pytest.raises(UsageError, match="made with bias='all', which is not read: it takes 'none'"):
        adapters.load(folder, name="x")
    config.write_text(text.replace('"peft_type": "LORA"', '"peft_type": "BOFT"'))
    with pytest.raises(UsageError, match="is a 'BOFT' of PEFT, which no installed method reads"):
        adapters.load(folder, name="x")
    config.write_text("{")
    with pytest.raises(WeightsError, match="is no JSON"):
        adapters.load(folder, name="x")
