"""The same tiny model in transformers, adapted by HF PEFT, and ours, for tests that hold one to the other."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from zoo_lm import llama

import zoo
from zoo.adapters.adapt import Adapters, adapters_of
from zoo.weights.strict_load import load_strict

VOCABULARY = 61
NAMES = dict(zoo.find("lm/llama-tiny").card.module_names)
TOKENS = torch.tensor([[3, 17, 9, 22, 5, 41, 8], [11, 2, 58, 7, 19, 30, 6]])


def reference_llama() -> Any:
    """Random weights, large enough that each part matters."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=None, bos_token_id=None,
        eos_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def our_llama(reference: Any) -> nn.Module:
    model = llama.build(layers=3, width=32, heads=4, kv_heads=2, hidden=48, vocabulary=VOCABULARY, context=64, epsilon=1e-6)
    load_strict(model, llama.from_transformers(reference.state_dict()), "the reference")
    return model.eval()


def our_adapters(model: nn.Module, names: dict[str, str] | None = None) -> Adapters:
    adapters = adapters_of(model)
    adapters.module_names = NAMES if names is None else names
    return adapters


def shaken(module: nn.Module, seed: int = 1) -> None:
    """As if it had been trained: no parameter of the adapter is what it began as."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                size = 0.02 if "magnitude" in name or "length" in name else 0.1
                parameter.add_(size * torch.randn_like(parameter))


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=ATTENTION, task_type="CAUSAL_LM"),
    "lora all": lambda: peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
    "lora embedding": lambda: peft.LoraConfig(
        r=4, target_modules=["embed_tokens", "q_proj", "lm_head"], task_type="CAUSAL_LM"
    ),
    "rslora": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    ),
    "ranks": lambda: peft.LoraConfig(
        r=4,
        rank_pattern={"k_proj": 2},
        alpha_pattern={r"1\.self_attn\.q_proj": 3},
        target_modules=["q_proj", "k_proj"],
        task_type="CAUSAL_LM",
    ),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=[*ATTENTION, "up_proj"], task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "prefix projected": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=8, task_type="CAUSAL_LM"
    ),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}


def peft_model(case: str, seed: int = 1) -> Any:
    """HF PEFT's model, with an adapter that is not as it began."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(reference_llama(), CONFIGS[case]())
    shaken(model, seed)
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def gradients_agree(theirs: Any, adapters: Adapters, folder: Path, tolerance: float) -> None:
    """Both have been given gradients: these are written as each writes its parameters, and compared by name, to a share of the largest."""
    for parameter in adapters.parameters():
        parameter.data = parameter.grad
    for parameter in adapters.model.parameters():
        assert parameter.grad is None, "the base has no gradient"
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.grad
    theirs.save_pretrained(folder / "their gradients")
    adapters.export(adapters.active[0], folder / "our gradients")
    expected, found = (load_file(folder / f"{whose} gradients" / "adapter_model.safetensors") for whose in ("their", "our"))
    assert set(found) <= set(expected)
    more = {key for key in expected if key not in found}
    assert all(key.endswith("base_layer.weight") for key in more), "theirs writes the weights of embeddings and heads, too"
    largest = max(float(one.abs().max()) for one in expected.values())
    assert largest > 0
    for key, gradient in found.items():
        # The change of this product is there twice (zoo_adapters/peft_files.py), and theirs takes a gradient for one of the two.
        own = 2 * expected[key] if ".attn.base_layer.out_proj." in key else expected[key]
        error = float((gradient - own).abs().max() / largest)
        assert error < tolerance, (key, error)
