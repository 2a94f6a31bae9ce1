"""Few-shot classification on frozen features: nearest centroid and a ridge probe, chosen by leave-one-out.

Both work on L2-normalised features, and both have an exact leave-one-out in closed form, so choosing costs no refits. With
fewer than three shots in a class leave-one-out says more about the one left out than about the rule (measured: its choice at
two shots scored below either rule), so the ridge probe is taken, which was never the worse one.

The temperature is chosen by the leave-one-out likelihood of the examples and of one more, which belongs to every class alike. Few
examples that the rule separates are likeliest under the largest temperature there is, whatever that may be: every answer would be certain,
that for an image of none of the classes too. It is the smoothing of targets of Platt (1999, "Probabilistic outputs for support vector
machines", section 2.2) with a lighter prior, whose weight falls as the examples become more. It changes no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import normalize, one_hot

from zoo.errors import MediaError
from zoo.registry.activation import warn

RIDGE_STRENGTHS = (0.03, 0.3, 3.0)
USUAL_STRENGTH = 0.3
TEMPERATURES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
USUAL_TEMPERATURE = 5.0
SHOTS_TO_CHOOSE = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear rule on unit features: `softmax(temperature * (features @ weight_DC + bias_C))`.

    loo_accuracy: share of the shots that the rule gets right when it is fitted without them; None where a class has too
        few shots for that to mean anything. It is the best of the candidates', and so a little optimistic.
    """

    method: str
    weight_DC: torch.Tensor
    bias_C: torch.Tensor
    temperature: float
    loo_accuracy: float | None

    def probabilities(self, features_BD: torch.Tensor) -> torch.Tensor:
        """float[B, D] -> float[B, C], rows summing to 1."""
        logits_BC = normalize(features_BD.float(), dim=-1) @ self.weight_DC + self.bias_C
        return (self.temperature * logits_BC).softmax(dim=-1)

    def to(self, device: torch.device) -> Probe:
        """The same rule on a device."""
        return replace(self, weight_DC=self.weight_DC.to(device), bias_C=self.bias_C.to(device))


def probe_of_examples(rows: Sequence[torch.Tensor | str], targets: Sequence[int], names: Sequence[str]) -> Probe:
    """The probe on the examples that can be read: features float[D] of each, or why it has none.

    Raises MediaError for classes that none is left of, with all their files.
    """
    fitted = [(row, target) for row, target in zip(rows, targets, strict=True) if isinstance(row, torch.Tensor)]
    problems = [(row, target) for row, target in zip(rows, targets, strict=True) if isinstance(row, str)]
    left = {target for _, target in fitted}
    lost = [target for target in range(len(names)) if target not in left]
    if lost:
        whys = "; ".join(problem for problem, target in problems if target in lost)
        raise MediaError(f"no example of {', '.join(names[target] for target in lost)} can be read: {whys}")
    for problem, target in problems:
        warn(f"an example of {names[target]} is left out: {problem}")
    return fit_probe(torch.stack([row for row, _ in fitted]), [target for _, target in fitted], len(names))


def fit_probe(features_ND: torch.Tensor, targets_N: Sequence[int], classes: int) -> Probe:
    """The better of nearest centroid and ridge by leave-one-out accuracy, then likelihood.

    features_ND: float[N, D]. targets_N: class numbers, every class present.
    """
    targets = torch.tensor(list(targets_N))
    features_ND = normalize(features_ND.float(), dim=-1)
    counts_C = torch.bincount(targets, minlength=classes)
    if int(counts_C.min()) < SHOTS_TO_CHOOSE:
        probe = _ridge_probe(features_ND, targets, classes, USUAL_STRENGTH)[2]
        return replace(probe, temperature=USUAL_TEMPERATURE, loo_accuracy=None)
    candidates = [_centroid_probe(features_ND, targets, classes)]
    candidates += [_ridge_probe(features_ND, targets, classes, strength) for strength in RIDGE_STRENGTHS]
    return max(candidates, key=lambda candidate: candidate[:2])[2]


def _centroid_probe(features_ND: torch.Tensor, targets: torch.Tensor, classes: int) -> tuple[float, float, Probe]:
    sums_CD = one_hot(targets, classes).T.float() @ features_ND
    counts_C = torch.bincount(targets, minlength=classes).float()
    others_ND = (sums_CD[targets] - features_ND) / (counts_C[targets] - 1)[:, None]
    logits_NC = _distance_logits(features_ND, sums_CD / counts_C[:, None])
    own_N = (features_ND * others_ND).sum(-1) - others_ND.square().sum(-1) / 2
    logits_NC = logits_NC.scatter(1, targets[:, None], own_N[:, None])
    weight_DC, bias_C = _centroids(features_ND, targets, classes)
    return _scored("nearest centroid", logits_NC, targets, weight_DC, bias_C)


def _ridge_probe(
    features_ND: torch.Tensor, targets: torch.Tensor, classes: int, strength: float
) -> tuple[float, float, Probe]:
    """Ridge regression to one-hot targets with an unpenalised intercept by centring; see Hastie et al. 2009, eq. 3.44, 7.52."""
    mean_D = features_ND.mean(0)
    targets_NC = one_hot(targets, classes).float()
    prior_C = targets_NC.mean(0)
    centred_ND = features_ND - mean_D
    gram_NN = centred_ND @ centred_ND.T
    count = len(targets)
    inverse_NN = torch.linalg.inv(gram_NN + strength * torch.eye(count))
    dual_NC = inverse_NN @ (targets_NC - prior_C)
    leverage_N = (gram_NN @ inverse_NN).diagonal() + 1 / count
    fitted_NC = gram_NN @ dual_NC + prior_C
    left_out_NC = targets_NC - (targets_NC - fitted_NC) / (1 - leverage_N).clamp_min(1e-6)[:, None]
    weight_DC = centred_ND.T @ dual_NC
    return _scored(f"ridge probe (strength {strength:g})", left_out_NC, targets, weight_DC, prior_C - mean_D @ weight_DC)


def _centroids(features_ND: torch.Tensor, targets: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    sums_CD = one_hot(targets, classes).T.float() @ features_ND
    centroids_CD = sums_CD / torch.bincount(targets, minlength=classes)[:, None]
    return centroids_CD.T, -centroids_CD.square().sum(-1) / 2


def _distance_logits(features_ND: torch.Tensor, centroids_CD: torch.Tensor) -> torch.Tensor:
    """Order of negative squared distances, without the part that is equal for all classes."""
    return features_ND @ centroids_CD.T - centroids_CD.square().sum(-1) / 2


def _scored(
    method: str, left_out_NC: torch.Tensor, targets: torch.Tensor, weight_DC: torch.Tensor, bias_C: torch.Tensor
) -> tuple[float, float, Probe]:
    accuracy = float((left_out_NC.argmax(-1) == targets).float().mean())
    likelihoods = {
        temperature: -float(torch.nn.functional.cross_entropy(temperature * left_out_NC, targets))
        for temperature in TEMPERATURES
    }
    smooth_NC = _with_one_more(one_hot(targets, left_out_NC.shape[1]).float())
    smoothed = {
        temperature: -float(torch.nn.functional.cross_entropy(temperature * left_out_NC, smooth_NC))
        for temperature in TEMPERATURES
    }
    temperature = max(smoothed, key=lambda key: smoothed[key])
    return accuracy, max(likelihoods.values()), Probe(method, weight_DC, bias_C, temperature, accuracy)


def _with_one_more(targets_NC: torch.Tensor) -> torch.Tensor:
    """One-hot targets -> the shares that N examples give when one more, of all classes alike, is spread over them."""
    count, classes = targets_NC.shape
    return (count * targets_NC + 1 / classes) / (count + 1)
