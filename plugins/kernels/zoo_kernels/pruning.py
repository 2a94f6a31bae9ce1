"""Weights of which some are left out: the smallest half of each row, or two of each four; the others stay exact.

Magnitude pruning (Han et al. 2015, arXiv:1506.02626) and N:M sparsity (Mishra et al. 2021, arXiv:2104.08378). What is kept: a bit for each weight,
and the values of those that stay.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch.nn.functional import pad

from zoo.api import Kernel, LayerFormat, UsageError
from zoo_kernels.plain import PlainLinear

MASK, VALUES, COLUMNS = "mask", "values", "columns"
_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


def quantise(weight_NK: torch.Tensor, *, of: int | None) -> dict[str, torch.Tensor]:
    """float32[N, K] -> mask uint8[N, K / 8], values float32[N, kept of a row], [K]. of: half of each run of so many stay; None: of each row."""
    outputs, inputs = weight_NK.shape
    runs = weight_NK.detach().reshape(outputs, -1, of or inputs)
    kept = (runs.shape[-1] + 1) // 2
    chosen = runs.abs().topk(kept, dim=-1).indices
    mask_NK = torch.zeros(runs.shape, dtype=torch.bool, device=runs.device).scatter_(-1, chosen, True).view(outputs, inputs)
    values = weight_NK.detach()[mask_NK].view(outputs, -1)
    bits = pad(mask_NK.to(torch.uint8), (0, -inputs % 8)).view(outputs, -1, 8) * torch.tensor(
        _BITS, dtype=torch.uint8, device=runs.device
    )
    return {MASK: bits.sum(-1, dtype=torch.uint8), VALUES: values, COLUMNS: torch.tensor([inputs], device=runs.device)}


def dequantise(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight with zeros where some are left out, float32[N, K]."""
    mask_NX, inputs = tensors[MASK], int(tensors[COLUMNS])
    bits = torch.tensor(_BITS, dtype=torch.uint8, device=mask_NX.device)
    mask_NK = (mask_NX[:, :, None] & bits).ne(0).flatten(1)[:, :inputs]
    weight_NK = torch.zeros(mask_NK.shape, device=mask_NX.device)
    weight_NK[mask_NK] = tensors[VALUES].flatten()
    return weight_NK


def pruned(*, of: int | None = None) -> Kernel:
    """The kernel of the cards `kernels/pruned-half` and, with of = 4, `kernels/pruned-2-4`. A decoder's head stays whole."""
    if of is not None and (of < 2 or of % 2):
        raise UsageError(f"of is an even number of weights, half of which stay, got {of}")
    form = LayerFormat(
        quantise=partial(quantise, of=of),
        layer=partial(
            PlainLinear, dequantise=dequantise, number_format="pruned" if of is None else f"pruned-{of // 2}-{of}"
        ),
        dequantise=dequantise,
        fits=lambda outputs, inputs: outputs > 0 and inputs > 0 and inputs % (of or 1) == 0,
    )
    return Kernel(linear=form)
