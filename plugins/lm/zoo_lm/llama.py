"""Llama (Touvron et al. 2023, arXiv:2302.13971; grouped queries: arXiv:2307.09288; stretched positions: arXiv:2407.21783).

The reference is `LlamaForCausalLM` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.api import UsageError, load_strict, refuse_nonfinite
from zoo.nn import Attention, Block, Decoder, Gated, RMSNorm, Rotary, Stack
from zoo_lm import renaming
from zoo_lm.bytes import byte_tokenizer
from zoo_lm.checks import require_positive
from zoo_lm.folder import hub_folder, read_config, read_tensors, read_tokenizer
from zoo_lm.renaming import State

ATTENTION_AND_NORMS = {
    "model.embed_tokens": "embedding",
    "model.layers.*.self_attn.q_proj": "stack.blocks.*.attention.query",
    "model.layers.*.self_attn.k_proj": "stack.blocks.*.attention.key",
    "model.layers.*.self_attn.v_proj": "stack.blocks.*.attention.value",
    "model.layers.*.self_attn.o_proj": "stack.blocks.*.attention.output",
    "model.layers.*.input_layernorm": "stack.blocks.*.attention_norm",
    "model.layers.*.post_attention_layernorm": "stack.blocks.*.feed_forward_norm",
    "model.norm": "stack.norm",
    "lm_head": "head",
}
NAMES = {
    **ATTENTION_AND_NORMS,
    "model.layers.*.mlp.gate_proj": "stack.blocks.*.feed_forward.gate",
    "model.layers.*.mlp.up_proj": "stack.blocks.*.feed_forward.up",
    "model.layers.*.mlp.down_proj": "stack.blocks.*.feed_forward.down",
}
SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context",
}
OPTIONAL = {"num_key_value_heads": (int,), "head_dim": (int,), "rms_norm_eps": (int, float), "rope_theta": (int, float)}
UNSAID = {
    "bos_token_id": 1,
    "eos_token_id": 2,
}  # of `LlamaConfig`, where a file does not say them; null says that there is none
LARGEST = 1 << 20  # of any whole number in a configuration
PLAIN = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}
SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
NOT_TRAINED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def build(
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    context: int,
    kv_heads: int | None = None,
    head_width: int | None = None,
    theta: float = 10_000.0,
    epsilon: float = 1e-5,
    scaling: Mapping[str, Any] | None = None,
    tied: bool = False,
) -> nn.Module:
    """The decoder with random weights.

    width: W. hidden: width inside the feed-forward. context: the most tokens that it reads and writes together.
    kv_heads: as many as heads when None. head_width: width / heads when None.
    theta, scaling: of the rotary positions, see `zoo.nn.rotary_frequencies`. epsilon: of the norms.
    tied: the head is the embedding.
    Raises UsageError for numbers that contradict each other.
    """
    require_positive(hidden=hidden)
    return rotary_decoder(
        lambda: Gated(width, hidden, activation="silu"),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_width=head_width,
        vocabulary=vocabulary,
        context=context,
        theta=theta,
        epsilon=epsilon,
        scaling=scaling,
        tied=tied,
    )


def rotary_decoder(
    feed_forward: Callable[[], nn.Module],
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_width: int | None,
    vocabulary: int,
    context: int,
    theta: float,
    epsilon: float,
    scaling: Mapping[str, Any] | None = None,
    tied: bool = False,
) -> Decoder:
    """The shape that Llama and its descendants share, with any feed-forward; arguments as those of `build`."""
    require_positive(layers=layers, heads=heads, kv_heads=kv_heads, vocabulary=vocabulary, context=context)
    blocks = [
        Block(
            attention_norm=RMSNorm(width, epsilon=epsilon),
            attention=Attention(width, heads=heads, kv_heads=kv_heads, head_width=head_width),
            feed_forward_norm=RMSNorm(width, epsilon=epsilon),
            feed_forward=feed_forward(),
        )
        for _ in range(layers)
    ]
    return Decoder(
        embedding=nn.Embedding(vocabulary, width),
        stack=Stack(
            blocks,
            norm=RMSNorm(width, epsilon=epsilon),
            rotary=Rotary(head_width or width // heads, positions=context, theta=theta, scaling=scaling),
            causal=True,
        ),
        context=context,
        head=None if tied else nn.Linear(width, vocabulary, bias=False),
        tokenizer=byte_tokenizer(vocabulary),
    )


def from_transformers(state: State) -> dict[str, torch.Tensor]:
    """Names of `LlamaForCausalLM` -> ours. A head that equals the embedding is a tied one and left out."""
    ours = renaming.rename(renaming.without(state, NOT_TRAINED), NAMES)
    return renaming.drop_tied(ours, "head.weight", "embedding.weight")


def to_transformers(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those of `LlamaForCausalLM`, a tied head included."""
    return renaming.rename(renaming.add_tied(state, "head.weight", "embedding.weight"), renaming.inverted(NAMES))


def open_folder(folder: Path) -> nn.Module:
    """The decoder of a folder that transformers saved a Llama in, in float32 and eval mode, with its tokenizer. One without `tokenizer.json` knows its
    start and its ends, and takes and gives token ids alone.

    Read are `config.json`, the safetensors that it or an index names, and `tokenizer.json`; nothing in the folder is run.
    Raises UsageError for a folder without them and for a configuration that this architecture does not have, WeightsError for
    tensors that do not fit.
    """
    config = read_config(folder, "llama")
    arguments = _arguments(config)
    state = read_tensors(folder)
    described, held = arguments["vocabulary"] * arguments["width"], sum(tensor.numel() for tensor in state.values())
    if described > held:  # nothing is made room for that the files do not fill
        raise UsageError(
            f"{folder}: config.json describes an embedding of {described:,} numbers, the files hold {held:,} in all"
        )
    module = build(**arguments)
    ours = from_transformers(state)
    if not config.get("tie_word_embeddings") and "lm_head.weight" in state:
        ours["head.weight"] = state["lm_head.weight"]  # a head of its own, even while it equals the embedding
    refuse_nonfinite(ours, str(folder))
    load_strict(module, ours, str(folder))
    decoder: Any = module
    decoder.tokenizer = read_tokenizer(folder, {**UNSAID, **config})
    return module.eval()


def open_hub(repository: str, *, revision: str | None = None) -> nn.Module:
    """As `open_folder`, for a model of the Hugging Face hub by its name, as `HuggingFaceTB/SmolLM2-360M-Instruct`.

    Raises WeightsMissingError, too, when neither the hub nor its cache has the files.
    """
    return open_folder(hub_folder(repository, revision=revision))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` -> arguments of `build`, with the defaults of `LlamaConfig`. Raises UsageError."""
    for field, plain in PLAIN.items():
        if config.get(field, plain) not in (plain, None):
            raise UsageError(f"config.json has {field}={config[field]!r}; this Llama is built with {plain!r} alone")
    missing = [field for field in SIZES if type(config.get(field)) is not int]
    if missing:
        raise UsageError(f"config.json must have whole numbers as {', '.join(SIZES)}, got none as {', '.join(missing)}")
    for field, kinds in (*((field, (int,)) for field in SIZES), *OPTIONAL.items()):
        value = config.get(field)
        if value is not None and (type(value) not in kinds or not 0 < value < float("inf")):
            raise UsageError(f"config.json must have a number above 0 as {field}, got {value!r:.80}")
        if kinds == (int,) and value is not None and value > LARGEST:
            raise UsageError(f"config.json must have at most {LARGEST:,} as {field}, got {value:,}")
    theta, scaling = positions_of(config)
    for name, number in (scaling or {}).items():
        if name != "kind" and type(number) not in (int, float):
            raise UsageError(f"config.json must have a number as {name} of its rotary positions, got {number!r:.80}")
    return {
        **{argument: config[field] for field, argument in SIZES.items()},
        "kv_heads": config.get("num_key_value_heads"),
        "head_width": config.get("head_dim"),
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "theta": theta,
        "scaling": scaling,
        "tied": bool(config.get("tie_word_embeddings", False)),
    }


def positions_of(config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """The rotary base and scaling, as transformers 5 writes them (`rope_parameters`) or as it did before (`rope_scaling`)."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping) or not all(
        isinstance(value, (str, int, float, type(None))) for value in found.values()
    ):
        raise UsageError(f"config.json must describe rotary positions by names and numbers, got {found!r:.120}")
    given = dict(found)
    theta = given.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    given = {field: value for field, value in given.items() if value is not None and (field, value) != ("truncate", True)}
    if kind == "default" and not given:
        return theta, None
    if kind not in SCALINGS:
        raise UsageError(f"config.json has rotary positions of kind {kind!r}; read are default, {', '.join(SCALINGS)}")
    if "original_max_position_embeddings" in SCALINGS[kind]:
        given.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    optional = {"beta_fast", "beta_slow"} if kind == "yarn" else set()
    if set(SCALINGS[kind]) - given.keys() or given.keys() - set(SCALINGS[kind]) - optional:
        raise UsageError(
            f"config.json has rotary positions of kind {kind!r} with {', '.join(given)}; it takes {', '.join(SCALINGS[kind])}"
        )
    return theta, {"kind": kind, **given}
