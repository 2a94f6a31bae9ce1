"""Models of every kind: a part at any place of them changes what they give, whatever shortcuts the model takes."""

from typing import Any

import pytest
import torch

import zoo
from zoo.adapters.adapt import adapters_of
from zoo.testing.samples import uneven

ENCODERS = [
    "timm/test_vit", "clip/tiny-image", "clip/tiny-text", "whisper/random-encoder", "lm/bert-tiny",
    "audio/cnn-tiny", "audio/conv1d-tiny", "audio/conv2d-tiny", "audio/wav2vec2-tiny",
]  # fmt: skip
DECODERS = ["lm/llama-tiny", "lm/gpt2-tiny", "lm/bloom-tiny", "lm/mixtral-tiny"]


def changed_by(model: torch.nn.Module, ask: Any, places: list[str]) -> list[str]:
    """The places at which an adapter changes nothing."""
    expected = ask()
    deaf = []
    for place in places:
        adapters = zoo.adapt(model, "lora", name="own", targets=[place], r=1)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.copy_(torch.randn_like(parameter))
        if torch.equal(ask(), expected):
            deaf.append(place)
        adapters.use()
        adapters.remove("own")
        assert torch.equal(ask(), expected), place
    return deaf


def can_stand(place: Any) -> bool:
    return getattr(place.layer, "groups", 1) == 1 and getattr(place.layer, "padding_mode", "zeros") == "zeros"


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str) -> None:
    torch.manual_seed(0)
    built = zoo.open_model(name, weights=None)
    model: Any = built.module
    inputs = model.preprocess(uneven(built.found.card.modalities[0]))

    @torch.no_grad()
    def ask() -> torch.Tensor:
        encoded = model(inputs)
        return torch.cat([encoded.tokens_BTD.flatten(), encoded.pooled_BD.flatten()])

    places = [place for place, found in adapters_of(model).adapted.places.items() if can_stand(found)]
    assert len(places) > 2
    deaf = changed_by(model, ask, places)
    assert all("classifier" in place or "head" in place for place in deaf), deaf  # what is not asked for vectors


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str) -> None:
    torch.manual_seed(0)
    model: Any = zoo.build(name, weights=None)
    tokens = torch.randint(0, 200, (2, 9))

    @torch.no_grad()
    def ask() -> torch.Tensor:
        return model(tokens)

    places = list(adapters_of(model).adapted.places)
    assert changed_by(model, ask, places) == [] or name == "lm/mixtral-tiny", "an expert that no token is sent to"


def test_a_transcriber() -> None:
    model: Any = zoo.build("whisper/random", weights=None)
    adapters = adapters_of(model)
    mel = torch.randn(1, 80, 3000)
    tokens = torch.randint(0, 200, (1, 5))

    @torch.no_grad()
    def ask() -> torch.Tensor:
        return model(mel, tokens)

    assert changed_by(model, ask, list(adapters.adapted.places)) == []
