"""The closed forms equal what refitting without each shot gives."""

import pytest
import torch
from torch.nn.functional import normalize

from zoo.tasks.fewshot import _centroid_probe, _centroids, _ridge_probe, fit_probe


def clusters(shots: int, classes: int = 4, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(shots)
    centres = torch.randn(classes, width, generator=generator)
    targets = torch.arange(classes).repeat_interleave(shots)
    return centres[targets] + 1.2 * torch.randn(len(targets), width, generator=generator), targets


@pytest.mark.parametrize("strength", [0.03, 0.3, 3.0])
def test_ridge_leave_one_out_equals_refitting(strength: float) -> None:
    features, targets = clusters(5)
    features = normalize(features, dim=-1)
    accuracy, _, _ = _ridge_probe(features, targets, 4, strength)
    right = 0
    for left_out in range(len(targets)):
        # Leaving a row out of a ridge whose centring uses all rows: refit on the augmented, intercept-free problem.
        kept = [index for index in range(len(targets)) if index != left_out]
        design = torch.cat([features, torch.ones(len(features), 1)], dim=1)[kept].double()
        penalty = strength * torch.eye(design.shape[1], dtype=torch.double)
        penalty[-1, -1] = 0
        wanted = torch.nn.functional.one_hot(targets[kept], 4).double()
        weight = torch.linalg.solve(design.T @ design + penalty, design.T @ wanted)
        row = torch.cat([features[left_out].double(), torch.ones(1, dtype=torch.double)])
        right += int((row @ weight).argmax() == targets[left_out])
    assert accuracy == pytest.approx(right / len(targets))


def test_centroid_leave_one_out_equals_refitting() -> None:
    features, targets = clusters(4)
    features = normalize(features, dim=-1)
    accuracy, _, _ = _centroid_probe(features, targets, 4)
    right = 0
    for left_out in range(len(targets)):
        kept = [index for index in range(len(targets)) if index != left_out]
        weight, bias = _centroids(features[kept], targets[kept], 4)
        right += int((features[left_out] @ weight + bias).argmax() == targets[left_out])
    assert accuracy == pytest.approx(right / len(targets))


@pytest.mark.parametrize("shots", [1, 2, 3, 8])
def test_probabilities(shots: int) -> None:
    features, targets = clusters(shots)
    probe = fit_probe(features, targets.tolist(), 4)
    probabilities = probe.probabilities(features)
    assert torch.allclose(probabilities.sum(-1), torch.ones(len(features)))
    assert (probabilities.argmax(-1) == targets).float().mean() > 0.7
    assert (probe.loo_accuracy is None) == (shots < 3)


def test_the_scale_of_the_features_does_not_matter() -> None:
    features, targets = clusters(4)
    one, many = fit_probe(features, targets.tolist(), 4), fit_probe(1000 * features, targets.tolist(), 4)
    assert torch.allclose(one.probabilities(features), many.probabilities(features), atol=1e-5)


def test_few_examples_make_no_certainty() -> None:
    """What is none of the classes must not be taken for one of them at 95 %, as the largest temperature has it."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(24)[:3]
    confident = []
    for shots in (4, 400):
        targets = torch.arange(3).repeat_interleave(shots)
        features = centres[targets] + 0.02 * torch.randn(len(targets), 24, generator=generator)
        probe = fit_probe(features, targets.tolist(), 3)
        assert probe.loo_accuracy == 1
        assert (probe.probabilities(features).argmax(-1) == targets).all()
        none_of_them = (torch.eye(24)[10] + 0.2 * centres[0])[None]
        confident.append((float(probe.probabilities(none_of_them).max()), float(probe.probabilities(centres).max())))
        assert float(probe.probabilities(features).min()) > 1e-3 / shots
    assert confident[0][0] < 0.7
    assert 0.9 < confident[0][1] < 0.99 < confident[1][1]
