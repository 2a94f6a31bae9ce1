"""What the tensors and options in HF PEFT's adapter files mean (peft 0.21): LORA with and without DoRA, IA3, PREFIX_TUNING, PROMPT_TUNING.

A tensor comes and goes as `<place>::<name>`; `prompt_embeddings` has no place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from zoo.api import Adapter, Base, StateMismatchError, UsageError, part_key
from zoo_adapters.lora import product_of
from zoo_adapters.whole import Whole

State = Mapping[str, torch.Tensor]
Read = tuple[str, dict[str, Any], dict[str, torch.Tensor]]

# Options that change what is computed, with the values by which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "num_transformer_submodules": (None, 1),
}
KEEPS_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # ways to begin that leave the base as it was
LOW_RANK = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_embedding_A": "down", "lora_embedding_B": "up"}
OUT = ".base_layer.out_proj"  # PEFT's name for the second product of an nn.MultiheadAttention, of which it knows one rank and alpha
TWICE = 2.0  # the change of that product: peft 0.21 adds it in `MultiheadAttention.merge`, and then lets `out_proj` merge itself
LENGTH = ("lora_magnitude_vector", "lora_magnitude_vector.weight")


class _Exchange:
    """`zoo.adapters.peft` says what it must have."""

    @staticmethod
    def read(config: Mapping[str, Any], state: State, base: Base, name_of: Callable[[str], str]) -> Read | None:
        readers = {
            "LORA": _read_lora,
            "IA3": _read_ia3,
            "PREFIX_TUNING": _read_prefix,
            "PROMPT_TUNING": _read_prompt,
        }
        reader = readers.get(str(config.get("peft_type")))
        if reader is None:
            return None
        for option, values in NEUTRAL.items():
            if option in config and config[option] not in values:
                raise UsageError(
                    f"this adapter was made with {option}={config[option]!r}, which is not read: it takes {values[0]!r}"
                )
        return reader(config, state, base, name_of)

    @staticmethod
    def write(
        adapter: Adapter, name_of: Callable[[str], str], base: Base
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        method = adapter.method.rpartition("/")[2]
        task = {"task_type": "CAUSAL_LM" if base.layers else None}
        if method in ("lora", "dora"):
            config, tensors = _write_lora(adapter, name_of, base, dora=method == "dora")
        elif method == "ia3":
            config, tensors = _write_ia3(adapter, name_of, base)
        elif method == "prefix":
            config, tensors = _write_prefix(adapter, base)
        else:
            config, tensors = _write_prompt(adapter, base)
        return {**task, **config}, tensors


exchange = _Exchange()


def _read_lora(config: Mapping[str, Any], state: State, base: Base, name_of: Callable[[str], str]) -> Read:
    if config.get("init_lora_weights") not in KEEPS_THE_BASE:
        raise UsageError(
            f"this adapter began with init_lora_weights={config['init_lora_weights']!r}, which changed the base weights, too: convert it "
            f"with PEFT first (save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    decomposed = bool(config.get("use_dora"))
    tensors, state = _whole(state, base)
    whole = _whole_options(tensors)
    ranks: dict[str, int] = {}
    unknown = []
    for key, tensor in state.items():
        place, _, name = key.rpartition("::")
        if place in base.places and name in LOW_RANK:
            inner = "product." if decomposed or base.places[place].kind == "convolution" else ""
            tensors[f"parts.{part_key(place)}.{inner}{LOW_RANK[name]}"] = tensor
            if LOW_RANK[name] == "down":
                ranks[place] = len(tensor)
        elif place in base.places and name in LENGTH and decomposed:
            tensors[f"parts.{part_key(place)}.length"] = tensor.flatten()
        else:
            unknown.append(key)
    _refuse_unknown(unknown)
    r, alpha = config.get("r", 8), float(config.get("lora_alpha", 8))
    patterns = config.get("alpha_pattern") or {}
    alphas = {}
    for place in ranks:
        name = name_of(place)
        own = float(_by_pattern(patterns, name.removesuffix(OUT), alpha))
        alphas[place] = own * TWICE if name.endswith(OUT) else own
    options = {
        "targets": sorted(ranks),
        **whole,
        "r": r,
        "alpha": alpha,
        "rank_stabilised": bool(config.get("use_rslora")),
        "dropout": float(config.get("lora_dropout") or 0.0),
        "ranks": {
            place: rank
            for place, rank in ranks.items()
            if rank != r or rank > min(base.places[place].inputs, base.places[place].outputs)
        },
        "alphas": {place: own for place, own in alphas.items() if own != alpha},
    }
    return "dora" if decomposed else "lora", options, tensors


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's `rank_pattern` and `alpha_pattern`: regular expressions for the end of a module's name."""
    found = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), None)
    return default if found is None else found


def _write_lora(
    adapter: Adapter, name_of: Callable[[str], str], base: Base, *, dora: bool
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    options = adapter.options
    if dora and adapter.scale != 1.0:
        raise UsageError(f"HF PEFT has no scale for a DoRA, this one has {adapter.scale}: set it to 1 first")
    stabilised = bool(options.get("rank_stabilised", False))
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    modules = []
    saved, saved_tensors = _write_whole(adapter, name_of, base)
    for place, part in adapter.named_parts():
        if isinstance(part, Whole):
            continue
        product = product_of(part)
        name, kind = name_of(place), base.places[place].kind
        rank = len(product.down)
        infix = "lora_embedding_{}" if kind == "embedding" else "lora_{}.weight"
        tensors[f"{name}.{infix.format('A')}"] = product.down
        tensors[f"{name}.{infix.format('B')}"] = product.up
        if dora:
            length = part.length
            if kind == "convolution":
                length = length.view(1, -1, *[1] * (product.down.ndim - 2))
            tensors[f"{name}.lora_magnitude_vector"] = length
        ranks[name] = rank
        alphas[name] = product.scale * adapter.scale * (math.sqrt(rank) if stabilised else rank)
        modules.append(name)
    modules = _whole_attentions(modules, tensors, ranks, alphas, base, name_of)
    r, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": options.get("dropout", 0.0),
        "use_rslora": stabilised,
        "use_dora": dora,
        "bias": "none",
        "fan_in_fan_out": any(place.turned for place in base.places.values()),
        "target_modules": sorted(modules),
        "modules_to_save": saved or None,
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {re.escape(name): own for name, own in alphas.items() if own != alpha},
    }
    return config, {**tensors, **saved_tensors}


def _whole_attentions(
    modules: list[str],
    tensors: dict[str, torch.Tensor],
    ranks: dict[str, int],
    alphas: dict[str, float],
    base: Base,
    name_of: Callable[[str], str],
) -> list[str]:
    """PEFT adapts both products of an `nn.MultiheadAttention`, by one rank and alpha, or none: one that is missing is added, with zeros.

    Returns the modules as PEFT names them. Raises UsageError for two ranks.
    """
    inside = {
        name_of(name): place
        for name, place in base.places.items()
        if place.weight_name != "weight" and place.columns is None
    }
    wholes = list(dict.fromkeys(name.removesuffix(OUT) for name in modules if name in inside))
    for whole in wholes:
        held = [name for name in (whole, whole + OUT) if name in ranks]
        rank = ranks[held[0]]
        if len(held) == 2 and ranks[whole + OUT] != rank:
            raise UsageError(
                f"HF PEFT knows one rank for both products of {whole}, this adapter has {rank} and {ranks[whole + OUT]}"
            )
        for name in (whole, whole + OUT):
            if name not in ranks:
                place = inside[name]
                tensors[f"{name}.lora_A.weight"] = torch.zeros(rank, place.inputs)
                tensors[f"{name}.lora_B.weight"] = torch.zeros(place.outputs, rank)
        alpha = alphas.setdefault(whole, alphas.get(whole + OUT, 1.0))
        key = f"{whole}{OUT}.lora_B.weight"
        tensors[key] = tensors[key] * (alphas.pop(whole + OUT, alpha) / (TWICE * alpha) if alpha else 0.0)
        ranks.pop(whole + OUT, None)
        ranks[whole] = rank
    return list(dict.fromkeys(name.removesuffix(OUT) if name in inside else name for name in modules))


def _read_ia3(config: Mapping[str, Any], state: State, base: Base, name_of: Callable[[str], str]) -> Read:
    tensors, state = _whole(state, base)
    whole = _whole_options(tensors)
    forwards = config.get("feedforward_modules") or []
    outputs: list[str] = []
    inputs: list[str] = []
    unknown: list[str] = []
    for key, tensor in state.items():
        place, _, name = key.rpartition("::")
        if not place or name != "ia3_l" or tensor.numel() != max(tensor.shape, default=0):
            unknown.append(key)
            continue
        # The shape is one for both of a convolution, and of a layer of one input or output.
        reads = _ends_with(forwards, name_of(place))
        if tensor.ndim == 2 and tensor.shape[0 if reads else 1] != 1:
            raise UsageError(
                f"{key} is {list(tensor.shape)}, which does not fit the folder's feedforward_modules: a stretch of inputs is [1, K], one of "
                f"outputs [N, 1]"
            )
        (inputs if reads else outputs).append(place)
        tensors[f"parts.{part_key(place)}.stretch"] = tensor.flatten()
    _refuse_unknown(unknown)
    return "ia3", {"targets": sorted(outputs), "feed_forward": sorted(inputs), **whole}, tensors


def _ends_with(modules: Any, name: str) -> bool:
    """Whether PEFT's "feedforward_modules" mean a module: one is a regular expression, several are ends of names."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name.endswith(one) for one in modules)


def _write_ia3(
    adapter: Adapter, name_of: Callable[[str], str], base: Base
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    saved, tensors = _write_whole(adapter, name_of, base)
    modules, inputs = [], []
    for place, part in adapter.named_parts():
        if isinstance(part, Whole):
            continue
        name = name_of(place)
        modules.append(name)
        stretch = 1 + adapter.scale * (part.stretch - 1)
        if hasattr(part, "before"):
            inputs.append(name)
        layer: Any = base.places[place].layer
        if base.places[place].kind == "convolution":
            tensors[f"{name}.ia3_l"] = stretch.view(1, -1, *[1] * len(layer.kernel_size))
        else:
            tensors[f"{name}.ia3_l"] = stretch[None] if hasattr(part, "before") else stretch[:, None]
    config = {
        "peft_type": "IA3",
        "target_modules": sorted(modules),
        "feedforward_modules": sorted(inputs),
        "fan_in_fan_out": any(place.turned for place in base.places.values()),
        "modules_to_save": saved or None,
    }
    return config, tensors


def _read_prefix(config: Mapping[str, Any], state: State, base: Base, name_of: Callable[[str], str]) -> Read:
    del config, name_of
    table = _virtual_table(state)
    size = base.layers * 2 * base.kv_heads * base.head_width
    if table.shape[1] != size:
        raise StateMismatchError(
            f"the prefix has {table.shape[1]} numbers for each token, this decoder takes {size}: {base.layers} layers, {base.kv_heads} "
            f"key and value heads of {base.head_width}"
        )
    return "prefix", {"count": len(table)}, {"virtual.table": table}


def _write_prefix(adapter: Adapter, base: Base) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    virtual: Any = adapter.virtual
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": virtual.count,
        "num_layers": base.layers,
        "num_attention_heads": base.kv_heads,
        "token_dim": base.kv_heads * base.head_width,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": base.kv_heads * base.head_width,
        "prefix_projection": False,
    }
    return config, {"prompt_embeddings": virtual.table}


def _read_prompt(config: Mapping[str, Any], state: State, base: Base, name_of: Callable[[str], str]) -> Read:
    del config, name_of
    table = _virtual_table(state)
    if table.shape[1] != base.width:
        raise StateMismatchError(f"the prompt has embeddings of {table.shape[1]} numbers, this decoder's have {base.width}")
    return "prompt", {"count": len(table)}, {"virtual.table": table}


def _write_prompt(adapter: Adapter, base: Base) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    virtual: Any = adapter.virtual
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": virtual.count,
        "num_layers": base.layers,
        "num_attention_heads": base.kv_heads,
        "token_dim": base.width,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return config, {"prompt_embeddings": virtual.table}


def _virtual_table(state: State) -> torch.Tensor:
    _refuse_unknown([key for key in state if key != "prompt_embeddings"])
    if "prompt_embeddings" not in state or state["prompt_embeddings"].ndim != 2:
        raise StateMismatchError("missing     prompt_embeddings, a table float[tokens, numbers]")
    return state["prompt_embeddings"]


def _whole(state: State, base: Base) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of the modules that are trained whole, ours by name, and what remains. Raises UsageError for a head that is the embedding."""
    whole: dict[str, torch.Tensor] = {}
    rest: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        place, _, name = key.rpartition("::")
        if place in base.tied:
            raise UsageError(
                f"the folder adapts the head of {place!r} by itself, and this model reads its head from {base.tied[place]!r}: build it with a "
                f"head of its own"
            )
        if place and name in ("weight", "bias"):
            turned = place in base.places and base.places[place].turned and name == "weight"
            own = tensor.T if turned else tensor
            whole[f"parts.{part_key(place)}.{name}"] = own
        else:
            rest[key] = tensor
    return whole, rest


def _whole_options(whole: State) -> dict[str, Any]:
    places = {key.split(".")[1].replace("/", ".").replace("|", "/") for key in whole}
    return {"whole": sorted(places)} if places else {}


def _write_whole(adapter: Adapter, name_of: Callable[[str], str], base: Base) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The modules that are trained whole as PEFT names them, and their tensors. Raises UsageError for a scale, of which PEFT has none."""
    parts = [
        (name_of(place), base.places.get(place), part) for place, part in adapter.named_parts() if isinstance(part, Whole)
    ]
    if parts and adapter.scale != 1.0:
        raise UsageError(
            f"HF PEFT has no scale for what is trained whole, this adapter has {adapter.scale}: set it to 1 first"
        )
    tensors = {
        f"{name}.weight": part.weight.T if place is not None and place.turned else part.weight
        for name, place, part in parts
    }
    tensors |= {f"{name}.bias": part.bias for name, _, part in parts if part.bias is not None}
    return sorted(name for name, _, _ in parts), tensors


def _refuse_unknown(keys: list[str]) -> None:
    """Raise StateMismatchError, with the names, for tensors that mean nothing here."""
    if keys:
        shown = "\n".join(f"  unexpected  {key.replace('::', '.')}" for key in keys[:12])
        rest = f"\n  ... and {len(keys) - 12} more" if len(keys) > 12 else ""
        raise StateMismatchError(
            f"{len(keys)} tensors are those of no place in this model, or of no kind that is read (module_names says how modules are called):\n{shown}{rest}"
        )


def _commonest(values: Any) -> Any:
    listed = list(values)
    return max(dict.fromkeys(listed), key=listed.count)
