"""The resampler and OpenFlamingo's own, with the same weights: numbers, gradients, names."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bridge_cases import features, gradient_difference, gradients, shaken
from open_flamingo_reference import reference
from safetensors.torch import save_file
from zoo_perceiver.resampler import from_open_flamingo, resampler, to_open_flamingo

import zoo
from zoo.errors import StateMismatchError
from zoo.weights.strict_load import load_strict

SIZES = [
    (1, 1, 1, 4),
    (2, 3, 1, 7),
    (2, 1, 3, 5),
    (1, 2, 4, 1),
    (3, 2, 2, 9),
]  # videos or prompts, media, frames, tokens of a frame


@pytest.fixture(scope="module")
def open_flamingo() -> ModuleType:
    return reference()


def pair(open_flamingo: ModuleType, width: int = 24, most_frames: int | None = None) -> tuple[Any, Any]:
    """The reference and ours with its weights."""
    torch.manual_seed(0)
    theirs = open_flamingo.PerceiverResampler(
        dim=width, depth=3, dim_head=8, heads=3, num_latents=6, max_num_frames=most_frames, ff_mult=4
    )
    shaken(theirs)
    ours = resampler(input_width=width, latents=6, layers=3, heads=3, head_width=8, most_frames=most_frames).eval()
    load_strict(ours, from_open_flamingo(theirs.state_dict()), "open_flamingo")
    return theirs, ours


def measure(open_flamingo: ModuleType, size: tuple[int, int, int, int], most_frames: int | None) -> tuple[float, float]:
    """Greatest difference of the latents (of the order of 1), and of the gradients of all parameters and of the features."""
    theirs, ours = pair(open_flamingo, most_frames=most_frames)
    batch, media, frames, count = size
    generator = torch.Generator().manual_seed(3)
    x_BMFTD = torch.randn(batch, media, frames, count, 24, generator=generator).requires_grad_()
    tokens_NTD = x_BMFTD.detach().reshape(batch * media, frames * count, 24).requires_grad_()
    latents_BMLD = theirs(x_BMFTD)
    latents_NLD, mask_NL = ours(features(tokens_NTD), frames=frames)
    assert bool(mask_NL.all())
    weights_NLD = torch.randn(latents_NLD.shape, generator=generator)
    (latents_BMLD.flatten(0, 1) * weights_NLD).sum().backward()
    (latents_NLD * weights_NLD).sum().backward()
    difference = (latents_BMLD.flatten(0, 1) - latents_NLD).abs().max().item()
    expected = {**from_open_flamingo(gradients(theirs)), "input": x_BMFTD.grad.reshape(tokens_NTD.shape)}
    return difference, gradient_difference(expected, {**gradients(ours), "input": tokens_NTD.grad})


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("most_frames", [None, 4])
def test_numbers_and_gradients(open_flamingo: ModuleType, size: tuple[int, int, int, int], most_frames: int | None) -> None:
    difference, gradient = measure(open_flamingo, size, most_frames)
    assert difference < 1e-5
    assert gradient < 1e-5


@pytest.mark.parametrize("most_frames", [None, 4])
def test_names_go_both_ways(open_flamingo: ModuleType, most_frames: int | None) -> None:
    theirs, ours = pair(open_flamingo, most_frames=most_frames)
    state = theirs.state_dict()
    back = to_open_flamingo(ours.state_dict())
    theirs.load_state_dict(back, strict=True)
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert from_open_flamingo(state).keys() == ours.state_dict().keys()
    whole = {f"perceiver.{key}": tensor for key, tensor in state.items()}
    load_strict(ours, from_open_flamingo(whole), "a whole Flamingo")


def test_names_are_strict(open_flamingo: ModuleType) -> None:
    theirs, ours = pair(open_flamingo)
    state = theirs.state_dict()
    with pytest.raises(StateMismatchError, match=r"unexpected  media_time_embs \[2, 1, 24\]"):
        load_strict(ours, from_open_flamingo({**state, "media_time_embs": torch.zeros(2, 1, 24)}), "file")
    with pytest.raises(StateMismatchError, match=r"unexpected  times.table \[4, 24\]"):
        load_strict(ours, from_open_flamingo({**state, "frame_embs": torch.zeros(4, 24)}), "file")
    del state["layers.1.0.to_kv.weight"]
    with pytest.raises(StateMismatchError, match=r"missing     layers.1.attention.key.weight"):
        load_strict(ours, from_open_flamingo(state), "file")
    with pytest.raises(StateMismatchError, match="two tensors are first_latents"):
        from_open_flamingo({"latents": torch.zeros(1), "first_latents": torch.zeros(1)})
    wider = resampler(input_width=24, output_width=5, latents=6, layers=3, heads=3, head_width=8)
    with pytest.raises(RuntimeError, match="Unexpected.*output.weight"):
        theirs.load_state_dict(to_open_flamingo(wider.state_dict()), strict=True)


def test_a_file_of_open_flamingo(open_flamingo: ModuleType, tmp_path: Path) -> None:
    """The card says which map reads it."""
    theirs = open_flamingo.PerceiverResampler(dim=32, depth=2, dim_head=16, heads=2, num_latents=8, max_num_frames=4)
    shaken(theirs)
    save_file(theirs.state_dict(), tmp_path / "perceiver.safetensors")
    ours = zoo.build("perceiver/resampler-tiny", weights=tmp_path / "perceiver.safetensors")
    x_BMFTD = torch.randn(2, 1, 3, 5, 32)
    with torch.no_grad():
        latents_BLD, _ = ours(features(x_BMFTD.reshape(2, 15, 32)), frames=3)
        torch.testing.assert_close(latents_BLD, theirs(x_BMFTD)[:, 0], rtol=0.0, atol=1e-5)
