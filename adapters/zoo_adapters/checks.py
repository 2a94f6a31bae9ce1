"""What these methods promise beside what every adapter does: `zoo check adapters` asks it."""

from __future__ import annotations

import torch

from zoo import adapters_of
from zoo.testing import CheckFailed, Subject

RANK, WIDTH = 2, 12
NEGLIGIBLE = 1e-5  # of the largest singular value


def the_rank_is_kept(subject: Subject) -> None:
    """The change of a matrix by LoRA has rank r, whatever its numbers (Hu et al. 2021, arXiv:2106.09685, section 4.1)."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(WIDTH, WIDTH)
    weight = layer.weight.detach().clone()
    adapters = adapters_of(torch.nn.Sequential(layer))
    adapters.add(subject.name, name="own", r=RANK, targets=["0"])
    with torch.no_grad():
        for parameter in adapters["own"].parameters():
            parameter.copy_(torch.randn(parameter.shape))
    adapters.merge("own")
    values = torch.linalg.svdvals(layer.weight.detach() - weight)
    rank = int((values > NEGLIGIBLE * values.max()).sum())
    if rank != RANK:
        raise CheckFailed(f"with r={RANK} the weight of a layer changes by a matrix of rank {rank}")
