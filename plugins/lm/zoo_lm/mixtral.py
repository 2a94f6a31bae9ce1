"""Mixtral: Llama's shape with a mixture of experts in every layer (Jiang et al. 2024, arXiv:2401.04088).

The reference is `MixtralForCausalLM` of transformers, without its sliding window (no published Mixtral uses one).
"""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import nn

from zoo.nn import Gated, Mixture
from zoo_lm import renaming
from zoo_lm.checks import require_positive
from zoo_lm.llama import ATTENTION_AND_NORMS, rotary_decoder
from zoo_lm.renaming import State

IN_MEMORY = {**ATTENTION_AND_NORMS, "model.layers.*.mlp.gate": "stack.blocks.*.feed_forward.router"}
IN_FILES = {
    "model.layers.*.block_sparse_moe.gate": "stack.blocks.*.feed_forward.router",
    "model.layers.*.block_sparse_moe.experts.*.w1": "stack.blocks.*.feed_forward.experts.*.gate",
    "model.layers.*.block_sparse_moe.experts.*.w3": "stack.blocks.*.feed_forward.experts.*.up",
    "model.layers.*.block_sparse_moe.experts.*.w2": "stack.blocks.*.feed_forward.experts.*.down",
}
STACKED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
EXPERT = re.compile(r"stack\.blocks\.(\d+)\.feed_forward\.experts\.(\d+)\.(gate|up|down)\.weight")


def build(
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    vocabulary: int,
    context: int,
    experts: int = 8,
    experts_per_token: int = 2,
    theta: float = 1_000_000.0,
    epsilon: float = 1e-5,
) -> nn.Module:
    """The decoder with random weights.

    experts: feed-forwards of a layer, of which a token uses `experts_per_token`; hidden: the width inside each.
    The other arguments are those of `zoo_lm.llama.build`. Raises UsageError for numbers that contradict each other.
    """
    require_positive(hidden=hidden, experts=experts)
    return rotary_decoder(
        lambda: Mixture(
            width,
            [Gated(width, hidden, activation="silu") for _ in range(experts)],
            experts_per_token=experts_per_token,
            renormalise=True,
        ),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_width=None,
        vocabulary=vocabulary,
        context=context,
        theta=theta,
        epsilon=epsilon,
    )


def from_transformers(state: State) -> dict[str, torch.Tensor]:
    """Names of `MixtralForCausalLM` -> ours: those it has in memory, all experts stacked, and those of files, one by one."""
    apart: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        match = STACKED.fullmatch(key)
        if match is None:
            apart[key] = tensor
            continue
        for number, expert in enumerate(tensor):
            name = f"stack.blocks.{match[1]}.feed_forward.experts.{number}"
            parts = zip(("gate", "up"), expert.chunk(2), strict=True) if match[2] == "gate_up_proj" else (("down", expert),)
            apart |= {f"{name}.{part}.weight": rows for part, rows in parts}
    return renaming.rename(apart, IN_MEMORY | IN_FILES)


def to_transformers(state: State) -> dict[str, torch.Tensor]:
    """Our names -> those that `MixtralForCausalLM` has in memory, all experts of a layer stacked."""
    theirs: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, dict[str, torch.Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for key, tensor in state.items():
        match = EXPERT.fullmatch(key)
        if match is None:
            theirs[key] = tensor
        else:
            experts[match[1]][int(match[2])][match[3]] = tensor
    for layer, parts in experts.items():
        rows = [parts[number] for number in sorted(parts)]
        name = f"model.layers.{layer}.mlp.experts"
        theirs[f"{name}.gate_up_proj"] = torch.stack([torch.cat((row["gate"], row["up"])) for row in rows])
        theirs[f"{name}.down_proj"] = torch.stack([row["down"] for row in rows])
    return renaming.rename(theirs, renaming.inverted(IN_MEMORY))
