"""What is particular to a method: how LoRA combines, drops out and takes ranks, what DoRA does with a row of zeros."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from test_adapter_edges import two
from test_adapters import TOKENS, logits, shaken
from tiny_decoder import tiny_decoder
from torch import nn
from zoo_adapters.lora import LowRank

import zoo
from zoo.adapters.adapt import adapters_of
from zoo.adapters.adapter import Adapter
from zoo.errors import UsageError


@pytest.mark.parametrize("how", ["concatenation", "svd"])
def test_a_combination_is_the_sum_of_the_changes(how: str) -> None:
    model = tiny_decoder()
    adapters = zoo.adapt(model, "lora", name="a", r=2, targets=["value"])
    zoo.adapt(model, "lora", name="b", r=3, targets=["value", "up"], rank_stabilised=True)
    shaken(adapters, "a", 1), shaken(adapters, "b", 2)
    adapters.combine("both", {"a": 0.7, "b": -0.3}, how=how, r=5 if how == "svd" else None)
    adapters.scale("a", 0.7)
    adapters.scale("b", -0.3)
    adapters.use("a", "b")
    expected = logits(model)
    adapters.use("both")
    assert (logits(model) - expected).abs().max() < 1e-5 * expected.abs().max()
    zoo.adapt(model, "ia3", name="c")
    with pytest.raises(
        UsageError, match="adapters of one method are combined, these are of adapters/ia3 and adapters/lora"
    ):
        adapters.combine("x", {"a": 1.0, "c": 1.0})
    with pytest.raises(UsageError, match="adapters/ia3 does not say how its adapters are combined"):
        adapters.combine("x", {"c": 1.0})
    with pytest.raises(UsageError, match="LoRA is combined by concatenation, svd, sum, ties, .* got 'mean'"):
        adapters.combine("x", {"a": 1.0, "b": 1.0}, how="mean")
    with pytest.raises(UsageError, match="ties_svd keeps a share of the numbers: density above 0 and at most 1, got None"):
        adapters.combine("x", {"a": 1.0, "b": 1.0}, how="ties_svd")
    with pytest.raises(UsageError, match="adapters/lora has no option 'densty'; did you mean density"):
        adapters.combine("x", {"a": 1.0, "b": 1.0}, how="ties", densty=0.5)
    with pytest.raises(UsageError, match=r"takes one rank, got ranks \[2, 3\]"):
        adapters.combine("x", {"a": 1.0, "b": 1.0}, how="sum")


def test_a_row_of_zeros_stays_one_under_dora() -> None:
    model = tiny_decoder()
    with torch.no_grad():
        model.stack.blocks[0].attention.value.weight[3] = 0.0
    expected = logits(model)
    adapters = zoo.adapt(model, "dora", targets=["value"])
    assert torch.equal(logits(model), expected)
    adapters.merge()
    assert torch.allclose(logits(model), expected, atol=1e-6)


def test_ranks_of_some_targets() -> None:
    adapters = zoo.adapt(tiny_decoder(), "lora", targets=["query", "value"], r=2, ranks={"query": 5}, alphas={"value": 4})
    part: Any = adapters["default"].part("stack.blocks.0.attention.query")
    assert len(part.down) == 5
    other: Any = adapters["default"].part("stack.blocks.0.attention.value")
    assert (len(other.down), other.scale) == (2, 2.0)
    with pytest.raises(UsageError, match="no layer is called 'qury'; did you mean query"):
        zoo.adapt(tiny_decoder(), "lora", ranks={"qury": 5})


def test_what_combining_makes_comes_back_from_its_file(tmp_path: Path) -> None:
    adapters = two("lora", "lora", first={"r": 12}, second={"r": 12})
    adapters.combine("both", {"first": 1.0, "second": 1.0})
    adapters.use("both")
    expected = logits(adapters.model)
    adapters.save("both", tmp_path / "both.safetensors")
    assert (tmp_path / "both.safetensors").stat().st_mode & 0o044, "others may read it, as any file"
    other = adapters_of(tiny_decoder())
    other.load(tmp_path / "both.safetensors", name="x")
    assert torch.equal(logits(other.model), expected)
    half = adapters_of(tiny_decoder().half())
    half.load(tmp_path / "both.safetensors", name="x")
    half.save("x", tmp_path / "half.safetensors")
    adapters_of(tiny_decoder()).load(tmp_path / "half.safetensors", name="x")


def test_dropout_is_drawn_however_it_is_chosen() -> None:
    model = tiny_decoder()
    adapters = shaken(zoo.adapt(model, "lora", name="a", dropout=0.5), "a")
    adapters.train_adapters(True)
    for choice in ("a", ["a", None]):
        with adapters.using(choice), torch.no_grad():
            assert not torch.equal(model(TOKENS)[0], model(TOKENS)[0])
    adapters.train_adapters(False)
    with adapters.using(["a", None]):
        assert torch.equal(logits(model), logits(model))


class Louder(LowRank):
    def after(self, input_BK: torch.Tensor, output_BN: torch.Tensor) -> torch.Tensor:
        return super().after(input_BK, output_BN) * 2


def test_a_class_with_an_after_of_its_own_is_not_mixed_as_its_parent() -> None:
    model = tiny_decoder()
    adapters = adapters_of(model)
    place = adapters.adapted.places["stack.blocks.0.attention.query"]
    adapters._place("x", Adapter({place.name: Louder(place, rank=2, scale=1.0, dropout=0.0)}))
    adapters.use("x")
    expected = logits(model)
    with adapters.using(["x", None]):
        assert torch.allclose(logits(model)[0], expected[0], atol=1e-6)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 1), (1, 4), (1, 1), (4, 4)])
def test_ia3_of_a_layer_of_one_output_comes_back_from_a_folder_of_peft(
    inputs: int, outputs: int, reads: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs))
    theirs = peft.get_peft_model(
        copy.deepcopy(model), peft.IA3Config(target_modules=["0"], feedforward_modules=["0"] if reads else [])
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "ia3_l" in name:
                parameter.add_(torch.randn_like(parameter))
        expected = theirs(torch.ones(2, inputs))
    theirs.save_pretrained(tmp_path)
    adapters_of(model).load(tmp_path, name="own")
    with torch.no_grad():
        assert torch.allclose(model(torch.ones(2, inputs)), expected, atol=1e-6)
