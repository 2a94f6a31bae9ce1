"""SmolLM2 as transformers has it, with our weights under its names."""

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from zoo.adapters.peft import their_name
from zoo.models.build import Built

PUBLISHED = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NORMS = {
    "stack.blocks.*.attention_norm": "model.layers.*.input_layernorm",
    "stack.blocks.*.feed_forward_norm": "model.layers.*.post_attention_layernorm",
    "stack.norm": "model.norm",
}


def transformers_smollm(built: Built) -> Any:
    """`LlamaForCausalLM` in evaluation; every weight is given, the head is the embedding."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    names = {**built.found.card.module_names, **NORMS}
    state = {}
    for key, tensor in built.module.state_dict().items():
        module, _, name = key.rpartition(".")
        state[f"{their_name(module, names)}.{name}"] = tensor
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model
