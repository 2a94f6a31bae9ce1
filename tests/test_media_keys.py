"""Two media have one key only where they are one: what is kept of one is never taken for another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo as library
from zoo.data.inputs import Item
from zoo.data.item_content import sha256_of_item, sha256_of_source
from zoo.data.tables import read_vectors
from zoo.media.audio import Sound
from zoo.models.fusion.item import key_of

GENERATOR = np.random.default_rng(0)
BYTES = GENERATOR.integers(0, 256, 9_000, dtype=np.uint8)
LYING = Image.fromarray(BYTES.reshape(30, 100, 3))
STANDING = Image.fromarray(BYTES.reshape(100, 30, 3))
TURNED = Image.fromarray(np.ascontiguousarray(BYTES.reshape(30, 100, 3)[..., ::-1]))  # blue, green, red
SAMPLES = (GENERATOR.standard_normal(4_000) * 0.1).astype(np.float32)


@pytest.mark.covers("A19")
def test_equal_bytes_in_other_shapes_channels_and_kinds_are_other_items() -> None:
    assert LYING.tobytes() == STANDING.tobytes()
    frames: list[list[Any]] = [
        [LYING], [STANDING], [TURNED], [Image.frombytes("L", (300, 30), BYTES.tobytes())], [Image.frombytes("L", (100, 90), BYTES.tobytes())],
        [LYING, LYING], [np.asarray(LYING)], [BYTES], [BYTES.view(np.int8)], [torch.from_numpy(BYTES.copy())[None]], [BYTES.tobytes()],
        [BYTES[:4_500], BYTES[4_500:]], [BYTES[:4_499], BYTES[4_499:]],
        [Sound(SAMPLES, 16_000)], [Sound(SAMPLES, 8_000)], [SAMPLES], [SAMPLES.view(np.int32)], [SAMPLES[:, None]],
        ["ab"], ["a", "b"], [b"ab"], ["a"], [b"a"],
    ]  # fmt: skip
    keys = [key_of("image", one) for one in frames] + [key_of("video", [LYING])]
    assert len(set(keys)) == len(keys)
    assert key_of("image", [LYING.copy()]) == keys[0], "and equal ones are equal"


@pytest.mark.covers("A19")
def test_embeddings_are_kept_by_content_shape_and_rate(tmp_path: Path) -> None:
    sources = [LYING, STANDING, TURNED, Sound(SAMPLES, 16_000), Sound(SAMPLES, 8_000), LYING.tobytes()]
    assert len({sha256_of_source(one) for one in sources}) == len(sources)
    assert sha256_of_item(Item("a", LYING), LYING) == sha256_of_item(Item("b", LYING), LYING.copy()), "a name is no content"
    torch.manual_seed(0)
    model, out = library.open_model("clip/tiny", weights=None), tmp_path / "e.npz"
    together = library.embed([LYING, STANDING, TURNED, LYING], out=out, model=model)
    assert len({one.sha256 for one in together.results}) == 3
    vectors = [np.frombuffer(vector, "<f4") for vector in read_vectors(out)]
    for image, vector in zip((LYING, STANDING, TURNED), vectors, strict=False):
        library.embed([image], out=tmp_path / "one.npz", model=model, overwrite=True)
        assert np.abs(np.frombuffer(next(read_vectors(tmp_path / "one.npz")), "<f4") - vector).max() < 1e-6
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


@pytest.mark.covers("A19")
def test_what_is_derived_is_kept_under_weights_preparation_and_adapter() -> None:
    def opened(seed: int, **arguments: Any) -> Any:
        torch.manual_seed(seed)
        return library.open_model("clip/tiny", weights=None, **arguments)

    built = opened(0)
    preprocess = dict(built.found.card.preprocess) | {"interpolation": "bilinear"}
    others = [opened(1), opened(0, preprocess=preprocess)]
    identities = {built.state_identity, *(one.state_identity for one in others)}
    adapters = library.adapt(built, "lora", r=2, name="a")
    identities.add(built.state_identity)
    assert len(identities) == 4
    with adapters.using(None):
        assert built.state_identity == opened(0).state_identity


@pytest.mark.covers("A19")
def test_a_cache_of_media_answers_as_without_it() -> None:
    """For pictures of equal bytes, and under an adapter that comes and goes."""
    torch.manual_seed(0)
    composition = library.compose(
        decoder="smollm/tiny", encoders={"image": "clip/tiny-image"}, bridge="perceiver/resampler-tiny", weights=None, every=1,
        gate=0.9,
    )  # fmt: skip
    pictures = [LYING, STANDING, TURNED]

    def answers(language: Any) -> list[dict[str, float]]:
        return [
            library.score([[picture, "what is it?"]], ["cat", "dog"], model=language).results[0].logprobs
            for picture in pictures
        ]

    cold = [answers(library.open_language_model(composition))[number] for number in range(3)]
    assert cold[0] != cold[1] != cold[2] != cold[0]
    language = library.open_language_model(composition)
    for _ in range(2):
        for warm, expected in zip(answers(language), cold, strict=True):
            assert warm == pytest.approx(expected, rel=1e-6)
    assert language.prefixes.hits + language.prefixes.media.hits > 0
