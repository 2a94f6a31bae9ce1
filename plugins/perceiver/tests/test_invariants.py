"""What every bridge promises, over random shapes: padding changes nothing, rows do not meet, all of it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_cases import BUILDERS, MOST_FRAMES, WIDTH, bridge, features
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from zoo_perceiver.time_embedding import TimeEmbedding

from zoo.models.contracts import Bridge
from zoo.models.encoded import Encoded

EVERY = pytest.mark.parametrize("name", BUILDERS)
seeds = st.integers(0, 2**31 - 1)
chances = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])
sizes = st.integers(1, 5)
BUILT = {name: bridge(name) for name in BUILDERS}


def ragged(batch: int, frames: int, count: int, chance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float[B, F, T, D] and a mask bool[B, F, T] with holes anywhere, whole frames and rows among them."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BFTD = torch.randn(batch, frames, count, WIDTH, generator=generator)
    mask_BFT = torch.rand(batch, frames, count, generator=generator) < chance
    whole_BF1 = torch.rand(batch, frames, 1, generator=generator) < 0.8
    return tokens_BFTD, mask_BFT & whole_BF1


def joined(tokens_BFTD: torch.Tensor, mask_BFT: torch.Tensor) -> Encoded:
    return features(tokens_BFTD.flatten(1, 2), mask_BFT.flatten(1))


def without_padding(tokens_FTD: torch.Tensor, mask_FT: torch.Tensor) -> tuple[Encoded, int]:
    """One item alone: its real frames, each with its real tokens first, as short as the longest of them allows."""
    rows = [tokens_TD[mask_T] for tokens_TD, mask_T in zip(tokens_FTD, mask_FT, strict=True) if bool(mask_T.any())]
    if not rows:
        return features(torch.zeros(1, 0, WIDTH)), 1
    tokens_FTD = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths_F = torch.tensor([len(row) for row in rows])
    mask_FT = torch.arange(tokens_FTD.shape[1]) < lengths_F[:, None]
    return joined(tokens_FTD[None], mask_FT[None]), len(rows)


@EVERY
@given(batch=sizes, frames=sizes, count=sizes, chance=chances, seed=seeds)
@torch.no_grad()
def test_a_row_is_the_item_alone(name: str, batch: int, frames: int, count: int, chance: float, seed: int) -> None:
    """Beside others and with padding of tokens and of frames as by itself without any."""
    tokens_BFTD, mask_BFT = ragged(batch, frames, count, chance, seed)
    latents_BLW, mask_BL = BUILT[name](joined(tokens_BFTD, mask_BFT), frames=frames)
    assert latents_BLW.shape == (batch, mask_BL.shape[1], BUILT[name].output_width)
    assert mask_BL.dtype == torch.bool
    for row in range(batch):
        encoded, real_frames = without_padding(tokens_BFTD[row], mask_BFT[row])
        alone_1LW, alone_1L = BUILT[name](encoded, frames=real_frames)
        torch.testing.assert_close(latents_BLW[row][mask_BL[row]], alone_1LW[0][alone_1L[0]], rtol=1e-4, atol=2e-5)


@EVERY
@given(
    batch=sizes,
    frames=sizes,
    count=sizes,
    chance=chances,
    seed=seeds,
    junk=st.sampled_from([1e30, float("inf"), float("nan")]),
)
def test_what_padding_holds_changes_nothing(
    name: str, batch: int, frames: int, count: int, chance: float, seed: int, junk: float
) -> None:
    """Not the numbers, not the gradients, and no gradient reaches it."""
    tokens_BFTD, mask_BFT = ragged(batch, frames, count, chance, seed)
    results = []
    for value in (0.0, junk):
        BUILT[name].zero_grad()
        given_BFTD = tokens_BFTD.masked_fill(~mask_BFT[..., None], value).requires_grad_()
        latents_BLW, mask_BL = BUILT[name](joined(given_BFTD, mask_BFT), frames=frames)
        latents_BLW[mask_BL].square().sum().backward()
        assert given_BFTD.grad is not None
        assert not given_BFTD.grad[~mask_BFT].any()
        grown = [parameter.grad for parameter in BUILT[name].parameters() if parameter.grad is not None]
        results.append([latents_BLW.detach(), given_BFTD.grad, *grown])
    for clean, junked in zip(*results, strict=True):
        assert bool(clean.isfinite().all())
        assert torch.equal(clean, junked)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_nothing_but_padding_is_finite(name: str, dtype: torch.dtype, frames: int) -> None:
    """Beside a row that has something, forwards and backwards."""
    module = bridge(name).to(dtype)
    tokens_BTD = torch.randn(3, 4 * frames, WIDTH, dtype=dtype)
    mask_BT = torch.zeros(3, 4 * frames, dtype=torch.bool)
    mask_BT[1, :3] = True
    latents_BLW, _ = module(features(tokens_BTD, mask_BT), frames=frames)
    assert latents_BLW.dtype == dtype
    assert bool(latents_BLW.isfinite().all())
    latents_BLW.square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters() if parameter.grad is not None)


@EVERY
def test_every_parameter_learns(name: str) -> None:
    """The bias of a key moves all scores of a query alike, so it alone has none."""
    module = bridge(name)
    frames = MOST_FRAMES + 2
    latents_BLW, _ = module(features(torch.randn(2, 4 * frames, WIDTH)), frames=frames)
    (latents_BLW * torch.randn(latents_BLW.shape)).sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        if not key.endswith("key.bias"):
            assert bool(parameter.grad.any()), key
        if key.endswith("table"):
            assert bool(parameter.grad.any(1).all()), key


@EVERY
@torch.no_grad()
def test_bfloat16_is_near(name: str) -> None:
    encoded = features(torch.randn(2, 12, WIDTH, generator=torch.Generator().manual_seed(0)))
    exact_BLW, _ = bridge(name)(encoded, frames=4)
    near_BLW, _ = bridge(name).bfloat16()(encoded, frames=4)  # features in float32: they are taken as they come
    assert near_BLW.dtype == torch.bfloat16
    assert (near_BLW.float() - exact_BLW).norm() < 0.05 * exact_BLW.norm()


@EVERY
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    module: Any = BUILT[name]
    save_file(module.state_dict(), tmp_path / "bridge.safetensors")
    again = BUILDERS[name]()
    again.load_state_dict(load_file(tmp_path / "bridge.safetensors"), strict=True)
    encoded = features(torch.randn(2, 12, WIDTH))
    for first, second in zip(module(encoded, frames=3), again(encoded, frames=3), strict=True):
        assert torch.equal(first, second)


@EVERY
@torch.no_grad()
def test_it_keeps_the_contract_and_no_state(name: str) -> None:
    module: Any = bridge(name)
    assert isinstance(module, Bridge)
    before = set(vars(module)), {key: tensor.clone() for key, tensor in module.state_dict().items()}
    encoded = features(torch.randn(2, 6, WIDTH))
    first, _ = module(encoded, frames=2)
    module(features(torch.randn(1, 4, WIDTH)), frames=4)
    assert torch.equal(module(encoded, frames=2)[0], first)
    assert set(vars(module)) == before[0]
    assert all(torch.equal(tensor, before[1][key]) for key, tensor in module.state_dict().items())


@given(most=st.integers(1, 9), frames=st.integers(1, 40), seed=seeds)
@settings(max_examples=2 * settings.default.max_examples)
@torch.no_grad()
def test_time_embeddings(most: int, frames: int, seed: int) -> None:
    """As they were learned for up to as many frames; for more, even steps along the line through the learned ones."""
    torch.manual_seed(seed)
    times = TimeEmbedding(most, WIDTH)
    found_FD = times(torch.ones(1, frames, dtype=torch.bool))[0]
    if frames <= most:
        assert torch.equal(found_FD, times.table[:frames])
        return
    assert torch.equal(found_FD[[0, -1]], times.table[[0, -1]])
    if most == 1:
        assert torch.equal(found_FD, times.table.expand(frames, -1))
        return
    expected_DF = nn.functional.interpolate(times.table.T[None], size=frames, mode="linear", align_corners=True)[0]
    torch.testing.assert_close(found_FD, expected_DF.T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_time_embeddings_in_between_and_with_padding() -> None:
    times = TimeEmbedding(3, WIDTH)
    first, second, third = times.table
    five_FD = times(torch.ones(1, 5, dtype=torch.bool))[0]
    expected_FD = torch.stack([first, (first + second) / 2, second, (second + third) / 2, third])
    torch.testing.assert_close(five_FD, expected_FD, rtol=0.0, atol=1e-6)
    real_BF = torch.tensor([[False, True, True, False, True, True, True], [True, False, False, False, True, False, True]])
    found_BFD = times(real_BF)
    assert torch.equal(found_BFD[0][real_BF[0]], five_FD)
    assert torch.equal(found_BFD[1][real_BF[1]], times.table)


@torch.no_grad()
def test_frames_are_told_apart_where_time_is_learned() -> None:
    tokens_BFTD = torch.randn(1, 3, 4, WIDTH)
    forth, back = features(tokens_BFTD.flatten(1, 2)), features(tokens_BFTD.flip(1).flatten(1, 2))
    for name, timed in (("resampler", False), ("resampler, timed", True), ("qformer", False), ("video_qformer", True)):
        difference = (BUILT[name](forth, frames=3)[0] - BUILT[name](back, frames=3)[0]).abs().max()
        assert (difference > 1e-2) == timed, name
