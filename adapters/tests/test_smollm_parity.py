"""SmolLM2, the published weights, against HF PEFT on transformers' class with the same: its files here, ours there, gradients and counts."""

import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft_cases import gradients_agree, shaken
from smollm_reference import PUBLISHED, transformers_smollm

import zoo
from zoo.adapters.adapt import adapters_of
from zoo.models.build import Built
from zoo.weights.cache import blobs_dir

TASK = {"task_type": "CAUSAL_LM"}
CONFIGS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], **TASK),
    "rslora": lambda: peft.LoraConfig(r=8, use_rslora=True, target_modules=["k_proj", "gate_proj"], **TASK),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "o_proj"], **TASK),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK
    ),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=6, **TASK),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=6, **TASK),
}


@pytest.fixture(scope="module")
def built() -> Built:
    if not (blobs_dir() / PUBLISHED).is_file():
        pytest.skip("the weights are not on this machine; bring them with: zoo fetch smollm/135m-instruct")
    return zoo.open_model("smollm/135m-instruct")


@pytest.fixture(scope="module")
def reference(built: Built) -> Any:
    return transformers_smollm(built)


SLOWLY = os.environ.get("ZOO_SLOW_TESTS") == "1"  # the tiny Llama of test_peft_parity.py has every kind at each push


@pytest.mark.parametrize("case", CONFIGS if SLOWLY else [case for case in CONFIGS if case in ("rslora", "prefix")])
def test_files_go_both_ways_and_gradients_are_theirs(case: str, built: Built, reference: Any, tmp_path: Path) -> None:
    decoder: Any = built.module
    tokens = torch.tensor([decoder.tokenizer.encode("The capital of France is Paris, and that of Italy")])
    torch.manual_seed(0)
    theirs = peft.get_peft_model(reference, CONFIGS[case]())
    shaken(theirs)
    virtual = case in ("prefix", "prompt")
    if virtual:  # they begin far greater than keys and embeddings are, and rounding grows with them
        with torch.no_grad():
            theirs.prompt_encoder["default"].embedding.weight.mul_(0.1)
    theirs.eval()
    theirs.save_pretrained(tmp_path / "theirs")
    adapters = adapters_of(built)
    adapters.load(tmp_path / "theirs", name=case)
    assert sum(adapters.trainable().values()) == theirs.get_nb_trainable_parameters()[0]
    expected, found = theirs(input_ids=tokens).logits[:, -tokens.shape[1] :], decoder(tokens)
    with torch.no_grad(), adapters.using(None):
        assert (found - decoder(tokens)).abs().max() > 0.1, "it does something"
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    adapters.export(case, tmp_path / "ours")
    if case == "prompt":  # its gradient in float32 is 5e-5 from that in float64, on either side
        for parameter in (*theirs.parameters(), *decoder.parameters(), *adapters.parameters()):
            parameter.data = parameter.data.double()
        expected, found = theirs(input_ids=tokens).logits[:, -tokens.shape[1] :], decoder(tokens)
    for logits in (expected, found):
        torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    # Through 30 layers in float32, summed in other orders: up to 2.1e-5 where oneDNN has AMX, below 1e-5 elsewhere.
    gradients_agree(theirs, adapters, tmp_path, 5e-5)
    if case == "prompt":
        reference.float(), decoder.float()
        found = found.float()
    base = reference if virtual else theirs.unload()
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    with torch.no_grad():
        back = again(input_ids=tokens).logits[:, -tokens.shape[1] :]
        assert (back - found).abs().max() < 1e-5 * expected.abs().max()
    if not virtual:
        again.unload()
    adapters.use()
    adapters.remove(case)
