"""VeRA (Kopiczko et al. 2023, arXiv:2310.11454) as a stranger writes it: one file and one card."""

import torch
from torch import nn

from zoo.api import Adapter


class Vectors(nn.Module):
    """output + b * (B (d * (A input))): A [r, K] and B [N, r] are cut out of matrices that all layers share."""

    def __init__(self, place, shared, start):
        super().__init__()
        self.down_rK, self.up_Nr = shared[0][:, : place.inputs], shared[1][: place.outputs]
        self.inner = nn.Parameter(torch.full((len(self.down_rK),), start))
        self.outer = nn.Parameter(torch.zeros(place.outputs))

    def after(self, input_BK, output_BN):
        return output_BN + (input_BK @ self.down_rK.T * self.inner) @ self.up_Nr.T * self.outer

    def merged(self, weight_NK, bias_N):
        return weight_NK + self.outer[:, None] * (self.up_Nr * self.inner) @ self.down_rK, bias_N


def vera(base, *, targets=("query", "value"), r=16, start=0.1, seed=0):
    places = base.chosen(targets)
    generator = torch.Generator().manual_seed(seed)
    shared = (
        torch.randn(r, max(place.inputs for place in places), generator=generator) * r**-0.5,
        torch.randn(max(place.outputs for place in places), r, generator=generator) * r**-0.5,
    )
    return Adapter({place.name: Vectors(place, shared, start) for place in places})
