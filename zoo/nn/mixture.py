"""Mixture of experts: many feed-forwards, of which each token uses the few that a router chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from zoo.errors import UsageError


@dataclass(frozen=True, slots=True)
class Routing:
    """What a router did, for losses and for looking at.

    probabilities_BTE: float32[B, T, E], the router's softmax.
    chosen_BTE: bool[B, T, E], the experts a token asked for, before any was full.
    kept_BTE: bool[B, T, E], those that had room for it.
    real_BT: bool[B, T], False for padding.
    logits_BTE: float32[B, T, E], before the softmax.
    """

    probabilities_BTE: torch.Tensor
    chosen_BTE: torch.Tensor
    kept_BTE: torch.Tensor
    real_BT: torch.Tensor
    logits_BTE: torch.Tensor


class Mixture(nn.Module):
    """The sum of the chosen experts' outputs, each times its gate.

    With `experts_per_token` = 1, `renormalise` False and a capacity it is the Switch layer (Fedus et al. 2021,
    arXiv:2101.03961); with 2, `renormalise` True and none, Mixtral's (Jiang et al. 2024, arXiv:2401.04088). Experts are any
    modules float[N, W] -> float[N, W]. The router works in float32 whatever the model's format (bf16 routers diverge: table 2
    there). A token that finds its expert full contributes nothing here and goes on through the residual alone.
    Room is counted in the tokens of one call: what is read in pieces through a cache finds more of it than what is read at once.
    """

    def __init__(
        self,
        width: int,
        experts: Sequence[nn.Module],
        *,
        experts_per_token: int = 1,
        capacity_factor: float | None = None,
        capacity: int | None = None,
        renormalise: bool = False,
    ) -> None:
        """capacity_factor: room of each expert, in tokens of a row over the number of experts; None: room for all.

        capacity: the room itself, the same for rows of any length, instead of the factor.
        renormalise: gates of the chosen experts sum to 1, instead of being the router's probabilities.
        """
        super().__init__()
        if not 1 <= experts_per_token <= len(experts):
            raise UsageError(f"experts_per_token must be from 1 to the {len(experts)} experts, got {experts_per_token}")
        if capacity_factor is not None and capacity_factor <= 0:
            raise UsageError(f"capacity_factor must be positive, or None for room for all, got {capacity_factor}")
        if capacity is not None and (capacity < 1 or capacity_factor is not None):
            raise UsageError(
                f"capacity must be at least 1 and is given instead of capacity_factor, got capacity={capacity} and "
                f"capacity_factor={capacity_factor}"
            )
        self.router = nn.Linear(width, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)
        self.experts_per_token = experts_per_token
        self.capacity_factor = capacity_factor
        self.capacity = capacity
        self.renormalise = renormalise

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        *,
        real_BT: torch.Tensor | None = None,
        routing: list[Routing] | None = None,
    ) -> torch.Tensor:
        """float[B, T, W] -> float[B, T, W]. Rows do not compete: the room of an expert is counted in each row alone.

        real_BT: False for padding, which is sent nowhere. routing: where given, what was done is appended to it.
        """
        real_BT = (
            torch.ones(tokens_BTW.shape[:2], dtype=torch.bool, device=tokens_BTW.device) if real_BT is None else real_BT
        )
        logits_BTE = nn.functional.linear(tokens_BTW.float(), self.router.weight.float())
        probabilities_BTE = logits_BTE.softmax(-1)
        gates_BTk, chosen_BTk = probabilities_BTE.topk(self.experts_per_token, dim=-1)
        if self.renormalise:
            gates_BTk = gates_BTk / gates_BTk.sum(-1, keepdim=True)
        gates_BTE = torch.zeros_like(probabilities_BTE).scatter(-1, chosen_BTk, gates_BTk)
        chosen_BTE = torch.zeros_like(probabilities_BTE, dtype=torch.bool).scatter(-1, chosen_BTk, value=True)
        chosen_BTE = chosen_BTE & real_BT[..., None]
        kept_BTE = self._with_room(chosen_BTE, real_BT)
        output_BTW = torch.zeros_like(tokens_BTW)
        for number, expert in enumerate(self.experts):
            rows_N = kept_BTE[..., number].nonzero(as_tuple=True)
            gate_N1 = gates_BTE[..., number][rows_N][:, None].to(tokens_BTW.dtype)
            output_BTW = output_BTW.index_put(rows_N, gate_N1 * expert(tokens_BTW[rows_N]), accumulate=True)
        if routing is not None:
            routing.append(Routing(probabilities_BTE, chosen_BTE, kept_BTE, real_BT, logits_BTE))
        return output_BTW

    def _with_room(self, chosen_BTE: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
        """The choices that find room, first come first served within a row."""
        if self.capacity is not None:
            return chosen_BTE & (chosen_BTE.cumsum(1) <= self.capacity)
        if self.capacity_factor is None:
            return chosen_BTE
        per_expert = self.capacity_factor * self.experts_per_token / len(self.experts)
        capacity_B = torch.tensor(
            [math.ceil(count * per_expert) for count in real_BT.sum(1).tolist()], device=chosen_BTE.device
        )
        return chosen_BTE & (chosen_BTE.cumsum(1) <= capacity_B[:, None, None])


def balance_loss(routing: Sequence[Routing]) -> torch.Tensor:
    """E * sum over experts of (share of choices) * (mean probability), averaged over layers: 1 when all are used alike.

    Equation 4 of Fedus et al. 2021; the paper adds 0.01 times the sum over layers to the loss. Padding does not count.
    """
    losses = []
    for layer in routing:
        real = layer.real_BT[..., None]
        count = real.sum()
        experts = layer.probabilities_BTE.shape[-1]
        share_E = layer.chosen_BTE.flatten(0, 1).float().sum(0) / layer.chosen_BTE.sum()
        mean_E = (layer.probabilities_BTE * real).flatten(0, 1).sum(0) / count
        losses.append(experts * (share_E * mean_E).sum())
    return torch.stack(losses).mean()
