"""Which token comes next."""

import pytest
import torch
from zoo_whisper.choosing import Greedy

SHARES = (0.0, 0.5, 0.2, 0.0, 0.3, 0.0)
DRAWS = 40_000


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("own", [True, False])
def test_samples_come_as_often_as_their_shares(temperature: float, own: bool) -> None:
    torch.manual_seed(0)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)] if own else None
    chooser = Greedy(2, DRAWS, temperature, 99, generators)
    logits_RV = torch.tensor(SHARES).log().repeat(2 * DRAWS, 1)
    rows, _ = chooser.step(logits_RV, [[] for _ in range(2 * DRAWS)])
    counts_V = torch.tensor(rows)[:, 0].bincount(minlength=len(SHARES))
    wanted_V = torch.tensor(SHARES) ** (1 / temperature)
    wanted_V /= wanted_V.sum()
    error_V = (wanted_V * (1 - wanted_V) / (2 * DRAWS)).sqrt()
    assert ((counts_V / (2 * DRAWS) - wanted_V).abs() <= 4 * error_V).all(), counts_V
    assert not counts_V[wanted_V == 0].any()


def test_a_window_draws_from_its_own_generator() -> None:
    logits_RV = torch.randn(6, 1_000)
    both = Greedy(2, 3, 1.0, 999, [torch.Generator().manual_seed(seed) for seed in (3, 4)])
    alone = Greedy(1, 3, 1.0, 999, [torch.Generator().manual_seed(4)])
    together, _ = both.step(logits_RV, [[] for _ in range(6)])
    assert alone.step(logits_RV[3:], [[] for _ in range(3)])[0] == together[3:]
