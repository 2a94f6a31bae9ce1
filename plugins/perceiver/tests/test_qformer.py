"""The Q-Former and that of transformers, with the same weights: numbers, gradients, names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_cases import features, gradient_difference, gradients, shaken
from safetensors.torch import save_file
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from zoo_perceiver.qformer import from_transformers, qformer, to_transformers
from zoo_perceiver.video_qformer import video_qformer

import zoo
from zoo.errors import StateMismatchError
from zoo.weights.strict_load import load_strict

D, L, W, V = 20, 7, 24, 11  # features, queries, their width, the language model's


class Reference(nn.Module):
    """The queries, the Q-Former and the projection of a BLIP-2, under the names that they have in it."""

    def __init__(self, *, layers: int, cross_every: int, projected: bool = True, **sizes: Any) -> None:
        super().__init__()
        self.config = Blip2QFormerConfig(
            hidden_size=sizes.get("width", W),
            num_hidden_layers=layers,
            num_attention_heads=sizes.get("heads", 4),
            intermediate_size=sizes.get("hidden", 40),
            encoder_hidden_size=sizes.get("input_width", D),
            cross_attention_frequency=cross_every,
        )
        self.query_tokens = nn.Parameter(torch.zeros(1, sizes.get("queries", L), self.config.hidden_size))
        self.qformer = Blip2QFormerModel(self.config)
        if projected:
            self.language_projection = nn.Linear(W, V)

    def forward(self, tokens_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        latents_BLW = self.qformer(
            query_embeds=self.query_tokens.expand(len(tokens_BTD), -1, -1),
            encoder_hidden_states=tokens_BTD,
            encoder_attention_mask=mask_BT.long(),
        ).last_hidden_state
        return self.language_projection(latents_BLW) if hasattr(self, "language_projection") else latents_BLW


def pair(layers: int = 4, cross_every: int = 2, projected: bool = True) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = shaken(Reference(layers=layers, cross_every=cross_every, projected=projected))
    ours = qformer(
        input_width=D,
        output_width=V if projected else None,
        queries=L,
        layers=layers,
        width=W,
        heads=4,
        hidden=40,
        cross_every=cross_every,
    ).eval()
    load_strict(ours, from_transformers(theirs.state_dict()), "transformers")
    return theirs, ours


def measure(layers: int, cross_every: int, projected: bool, lengths: tuple[int, ...]) -> tuple[float, float]:
    """Greatest difference of the latents (of the order of 1), and of the gradients of all parameters and of the features."""
    theirs, ours = pair(layers, cross_every, projected)
    generator = torch.Generator().manual_seed(3)
    values_BTD = torch.randn(len(lengths), max(lengths), D, generator=generator)
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    latents, found, weights_BLW = [], [], None
    for model in (theirs, ours):
        tokens_BTD = values_BTD.clone().requires_grad_()
        latents.append(theirs(tokens_BTD, mask_BT) if model is theirs else ours(features(tokens_BTD, mask_BT))[0])
        weights_BLW = torch.randn(latents[0].shape, generator=generator) if weights_BLW is None else weights_BLW
        (latents[-1] * weights_BLW).sum().backward()
        named = gradients(model)
        found.append({**(from_transformers(named) if model is theirs else named), "input": tokens_BTD.grad})
    return (latents[0] - latents[1]).abs().max().item(), gradient_difference(*found)


@pytest.mark.parametrize("lengths", [(5,), (9, 4, 1)], ids=str)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize(("layers", "cross_every"), [(1, 2), (4, 2), (5, 3), (3, 1)])
def test_numbers_and_gradients(layers: int, cross_every: int, projected: bool, lengths: tuple[int, ...]) -> None:
    difference, gradient = measure(layers, cross_every, projected, lengths)
    assert difference < 1e-5
    assert gradient < 1e-5


@pytest.mark.parametrize("projected", [False, True])
def test_names_go_both_ways(projected: bool) -> None:
    theirs, ours = pair(projected=projected)
    state = theirs.state_dict()
    back = to_transformers(ours.state_dict())
    theirs.load_state_dict(back, strict=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_names_are_strict() -> None:
    theirs, ours = pair()
    state = theirs.state_dict()
    text = "qformer.encoder.layer.0.intermediate.dense.weight"
    with pytest.raises(StateMismatchError, match=f"unexpected  {text}"):
        load_strict(ours, from_transformers({**state, text: torch.zeros(2)}), "file")
    del state["qformer.encoder.layer.2.crossattention.attention.key.bias"]
    with pytest.raises(StateMismatchError, match="missing     model.blocks.2.cross_attention.key.bias"):
        load_strict(ours, from_transformers(state), "file")


def test_a_file_of_transformers(tmp_path: Path) -> None:
    """The card says which map reads it."""
    sizes = {"input_width": 64, "queries": 8, "width": 32, "heads": 2, "hidden": 64}
    theirs: Any = shaken(Reference(layers=2, cross_every=2, projected=False, **sizes))
    save_file(theirs.state_dict(), tmp_path / "qformer.safetensors")
    ours = zoo.build("perceiver/qformer-tiny", weights=tmp_path / "qformer.safetensors")
    tokens_BTD, mask_BT = torch.randn(2, 9, 64), torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        latents_BLW, _ = ours(features(tokens_BTD, mask_BT))
        torch.testing.assert_close(latents_BLW, theirs(tokens_BTD, mask_BT), rtol=0.0, atol=1e-5)


def test_the_video_q_former_is_two_q_formers_of_transformers() -> None:
    """Each frame through one, positions added, all of them through the other."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"layers": 4, "width": W, "heads": 4, "hidden": 40}
    ours: Any = shaken(video_qformer(input_width=D, queries=L, video_queries=5, most_frames=3, **sizes))
    frame = shaken(Reference(layers=4, cross_every=2, projected=False))
    video = shaken(Reference(layers=2, cross_every=1, projected=False, queries=5, input_width=W))
    for part, theirs in ((ours.frame, frame), (ours.video, video)):
        state = from_transformers(theirs.state_dict())
        load_strict(part, {key.removeprefix("model."): tensor for key, tensor in state.items()}, "transformers")
    tokens_BFTD = torch.randn(2, 3, 6, D)
    with torch.no_grad():
        queries_BFQW = frame(tokens_BFTD.flatten(0, 1), torch.ones(6, 6)).unflatten(0, (2, 3))
        queries_BFQW = queries_BFQW + ours.times.table[:, None]
        expected_BLW = video(queries_BFQW.flatten(1, 2), torch.ones(2, 3 * L))
        latents_BLW, _ = ours(features(tokens_BFTD.flatten(1, 2)), frames=3)
    torch.testing.assert_close(latents_BLW, expected_BLW, rtol=0.0, atol=1e-5)
