"""Models of transformers and timm as they are, adapted here and by HF PEFT; and the table of kinds of layers (benchmarks/peft_matrix.py)."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from peft_cases import NAMES, TOKENS, VOCABULARY, our_adapters, reference_llama, saved, shaken
from safetensors.torch import load_file, save_file
from zoo_lm import llama

import zoo
from zoo.adapters.adapt import adapters_of
from zoo.errors import StateMismatchError, UsageError
from zoo.weights.strict_load import load_strict

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOLERANCE = 1e-5


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() < TOLERANCE * expected.abs().max())


def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("peft_matrix", BENCHMARKS / "peft_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["peft_matrix"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_cells_of_the_matrix() -> None:
    cells, layers = matrix(), ("Linear", "Conv1D (GPT-2)", "Conv2d", "Embedding")
    for number, config in enumerate(("LoRA", "modules_to_save", "DoRA", "IA3", "IA3, of the input")):
        layer = layers[number % 3]
        assert cells.cell(layer, config) == dict.fromkeys(("forward", "merge", "file"), "pass"), (config, layer)
    assert cells.cell("Conv2d, 2 groups", "LoRA")["forward"] == "pass"
    for number, how in enumerate(cells.COMBINED):
        assert cells.combination(layers[number % 4], how, (0.7, -0.4)) == "pass", how


@pytest.mark.skipif(os.environ.get("ZOO_SLOW_TESTS") != "1", reason="ZOO_SLOW_TESTS=1 asks for all of it")
def test_the_matrix_is_what_is_shown() -> None:
    found = matrix().table()
    assert "DIFFERS" not in found
    assert found == (BENCHMARKS / "results" / "peft_matrix.txt").read_text(), (
        "python benchmarks/peft_matrix.py writes it anew"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["docs/adapters.md"])
def test_the_samples_of_the_page_run(page: str) -> None:
    text = (BENCHMARKS.parent / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert any("transformers" in block for block in blocks)
    assert any("timm" in block for block in blocks)
    for block in blocks:
        exec(compile(block, page, "exec"), {"__name__": "sample"})


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=1
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


GPT2: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=True),
    "norms": lambda: peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["ln_1", "ln_f"]),
    "ia3": lambda: peft.IA3Config(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
    ),
}


@pytest.mark.parametrize("case", GPT2)
@torch.no_grad()
def test_gpt2_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(gpt2(), GPT2[case]()).eval()
    shaken(theirs)
    expected = theirs(input_ids=TOKENS).logits
    ours = gpt2()
    adapters = adapters_of(ours)
    adapters.load(saved(theirs, tmp_path / "theirs"), name="own")
    assert sum(adapters.trainable().values()) == theirs.get_nb_trainable_parameters()[0]
    assert near(ours(input_ids=TOKENS).logits, expected)
    adapters.export("own", tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(gpt2(), tmp_path / "ours").eval()
    assert near(back(input_ids=TOKENS).logits, expected)
    adapters.save("own", tmp_path / "own.safetensors")
    other = gpt2()
    adapters_of(other).load(tmp_path / "own.safetensors", name="own")
    assert torch.equal(other(input_ids=TOKENS).logits, ours(input_ids=TOKENS).logits)
    with adapters.using(["own", None]):
        mixed = ours(input_ids=TOKENS).logits
    assert near(mixed[0], expected[0])
    assert near(mixed[1], gpt2()(input_ids=TOKENS).logits[1])
    if case == "lora":  # its token embedding is the head's, too
        with pytest.raises(UsageError, match="the weight of transformer.wte is another layer's, too"):
            adapters.merge()
        return
    adapters.merge()
    assert near(ours(input_ids=TOKENS).logits, expected)
    adapters.unmerge()
    adapters.close()
    assert torch.equal(ours(input_ids=TOKENS).logits, gpt2()(input_ids=TOKENS).logits)


def test_a_slice_of_gpt2s_fused_projection() -> None:
    model = gpt2()
    adapters = zoo.adapt(model, "lora", r=2, targets=["c_attn[0/3]", "c_attn[2/3]"])
    assert sum(adapters.trainable().values()) == 2 * 2 * 2 * (24 + 24)
    shaken(adapters["default"])
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
        adapters.merge()
        assert near(model(input_ids=TOKENS).logits, expected)


def convnet() -> Any:
    torch.manual_seed(0)
    return timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=4).eval()


@torch.no_grad()
def test_a_convnet_of_timm(tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    theirs = peft.get_peft_model(
        convnet(), peft.LoraConfig(r=4, target_modules=["conv_pw"], modules_to_save=["classifier"])
    ).eval()
    shaken(theirs)
    expected = theirs(pixels)
    ours = convnet()
    adapters = adapters_of(ours)
    adapters.load(saved(theirs, tmp_path), name="own")
    assert near(ours(pixels), expected)
    with adapters.using(["own", None]):
        mixed = ours(pixels)
    assert near(mixed[0], expected[0])
    assert near(mixed[1], convnet()(pixels)[1])
    adapters.merge()
    assert near(ours(pixels), expected)
    with pytest.raises(UsageError, match="bn1 cannot be trained whole: its weight is of no layer"):
        zoo.adapt(convnet(), "lora", targets=["conv_pwl"], r=2, whole=["bn1"])


def tied_reference() -> Any:
    torch.manual_seed(0)
    model = reference_llama()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def our_tied() -> Any:
    state = {name: one for name, one in reference_llama().state_dict().items() if name != "lm_head.weight"}
    model = llama.build(
        layers=3, width=32, heads=4, kv_heads=2, hidden=48, vocabulary=VOCABULARY, context=64, epsilon=1e-6, tied=True
    )
    load_strict(model, llama.from_transformers(state), "the reference")
    return model.eval()


@pytest.fixture
def tied_folder(tmp_path: Path) -> Path:
    """An adapter on a tied model, with copies of its embedding and of its head."""
    theirs = peft.get_peft_model(tied_reference(), peft.LoraConfig(r=4, target_modules=["q_proj"])).eval()
    shaken(theirs)
    theirs.save_pretrained(tmp_path / "tied", save_embedding_layers=True)
    path = tmp_path / "tied" / "adapter_model.safetensors"
    state = load_file(path)
    state["base_model.model.lm_head.weight"] = state["base_model.model.model.embed_tokens.weight"].clone()
    save_file(state, path, metadata={"format": "pt"})
    return tmp_path / "tied"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_copy_of_the_tied_head_is_the_embedding(dtype: torch.dtype, tied_folder: Path) -> None:
    path = tied_folder / "adapter_model.safetensors"
    state = load_file(path)
    save_file(
        {name: one if "lora" in name else one.to(dtype) for name, one in state.items()}, path, metadata={"format": "pt"}
    )
    ours = our_tied()
    our_adapters(ours).load(tied_folder, name="own")
    theirs = peft.PeftModel.from_pretrained(tied_reference(), tied_folder).eval()
    if dtype == torch.float32:
        assert near(ours(TOKENS), theirs(input_ids=TOKENS).logits)


def test_another_tied_head_is_named(tied_folder: Path) -> None:
    path = tied_folder / "adapter_model.safetensors"
    state = load_file(path)
    state["base_model.model.lm_head.weight"][3] += 1
    save_file(state, path, metadata={"format": "pt"})
    adapters = our_adapters(our_tied(), NAMES)
    with pytest.raises(StateMismatchError, match="the folder holds other weights for head than this model"):
        adapters.load(tied_folder, name="own")
    adapters.load(tied_folder, name="own", other_base=True)
    config = json.loads((tied_folder / "adapter_config.json").read_text())
    (tied_folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    with pytest.raises(
        UsageError, match="adapts the head of 'head' by itself, and this model reads its head from 'embedding'"
    ):
        adapters.load(tied_folder, name="other")
