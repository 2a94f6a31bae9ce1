"""The cards say what is built, and what cannot be built or read is refused in words."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_perceiver
from bridge_cases import BUILDERS, WIDTH, bridge, features
from zoo_perceiver.projector import linear, mlp
from zoo_perceiver.qformer import qformer
from zoo_perceiver.resampler import resampler
from zoo_perceiver.video_qformer import video_qformer

import zoo
from zoo.errors import UsageError, WeightsMissingError
from zoo.models.contracts import Bridge
from zoo.registry.activation import resolve
from zoo.registry.lookup import default_registry

CARDS: list[dict[str, Any]] = tomllib.loads((Path(zoo_perceiver.__file__).parent / "zoo.toml").read_text())["card"]
TINY = [card["name"] for card in CARDS if card["name"].endswith("-tiny")]


@pytest.mark.parametrize("card", CARDS, ids=[card["name"] for card in CARDS])
def test_cards_say_what_is_built(card: dict[str, Any]) -> None:
    registry = default_registry()
    found = registry.find(f"perceiver/{card['name']}").card
    with torch.device("meta"):  # the large ones take no memory
        module: Any = resolve(registry.owner(found), found.build, registry.manager)(**found.variant)
    assert isinstance(module, Bridge)
    assert sum(parameter.numel() for parameter in module.parameters()) == card["parameters"]
    assert card["licence"] == "Apache-2.0"
    with torch.device("meta"):
        module = resolve(registry.owner(found), found.build, registry.manager)(
            **{**found.variant, "input_width": 48, "output_width": 20}
        )
    assert (module.input_width, module.output_width) == (48, 20)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_the_tiny_ones_run(name: str) -> None:
    module: Any = zoo.build(f"perceiver/{name}", weights=None, output_width=24)
    latents_BLW, mask_BL = module(features(torch.randn(2, 6 * 5, module.input_width)), frames=6)
    assert latents_BLW.shape == (*mask_BL.shape, 24)
    assert bool(latents_BLW.isfinite().all())
    with pytest.raises(WeightsMissingError, match="--weights none"):
        zoo.build(f"perceiver/{name}")


def test_widths_left_to_the_bridge() -> None:
    assert resampler(input_width=12, latents=2, layers=1, heads=1, head_width=4).output_width == 12
    assert linear(input_width=12).output_width == 12
    assert mlp(input_width=12).output_width == 12
    sizes: dict[str, Any] = {"input_width": 12, "layers": 1, "width": 8, "heads": 2}
    assert qformer(**sizes).output_width == 8
    assert video_qformer(**sizes).output_width == 8


@pytest.mark.parametrize("name", BUILDERS)
def test_what_cannot_be_read_is_refused(name: str) -> None:
    module: Any = bridge(name)
    encoded = features(torch.randn(2, 6, WIDTH))
    with pytest.raises(UsageError, match=r"reads features 12 wide \(its input_width\), got features 13 wide"):
        module(features(torch.randn(2, 6, WIDTH + 1)))
    with pytest.raises(UsageError, match="frames must divide them, got 6 tokens and frames=4"):
        module(encoded, frames=4)
    for frames in (0, -2):
        with pytest.raises(UsageError, match=f"frames must be at least 1, got {frames}"):
            module(encoded, frames=frames)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (resampler, {"activation": "swish"}, "an activation is one of gelu, .*, squared_relu, got 'swish'"),
        (resampler, {"layers": 0}, "layers must be at least 1, got 0"),
        (resampler, {"most_frames": 0}, "most_frames must be at least 1, got 0"),
        (resampler, {"latents": -1}, "latents must be at least 1, got -1"),
        (resampler, {"output_width": 0}, "output_width must be at least 1, got 0"),
        (linear, {"input_width": 0}, "input_width must be at least 1, got 0"),
        (mlp, {"output_width": -3}, "output_width must be at least 1, got -3"),
        (qformer, {"width": 10, "heads": 4}, "width must be a multiple of heads, got width=10 and heads=4"),
        (qformer, {"cross_every": 0}, "cross_every must be at least 1, got 0"),
        (video_qformer, {"video_layers": 0}, "video_layers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_built_is_refused(build: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**{"input_width": 8, **arguments})
