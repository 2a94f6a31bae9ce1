"""The joined space: its vectors, its formulas against plain loops, and what it knows."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from zoo_conse.photo_text import PhotoTextEncoder, class_names

import zoo
from zoo.errors import UsageError
from zoo.models.contracts import DualEncoder


@pytest.fixture(scope="module")
def encoder() -> PhotoTextEncoder:
    return zoo.build("conse/lite0-minilm")


def test_unit_vectors_of_one_space(encoder: PhotoTextEncoder, photos: Path) -> None:
    assert isinstance(encoder, DualEncoder)
    card = zoo.find("conse/lite0-minilm").card
    with torch.no_grad():
        image_BE = encoder.embed("image", [Image.open(photos / "chelsea.jpg").convert("RGB")])
        text_BE = encoder.embed("text", ["cat", "xylograph", ""])
    assert image_BE.shape == (1, card.embedding_width)
    assert text_BE.shape == (3, card.embedding_width)
    for vectors in (image_BE, text_BE):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)), atol=1e-5)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == card.parameters


def test_equal_to_the_formulas_written_as_loops(encoder: PhotoTextEncoder) -> None:
    """ConSE, kernel ridge and their mixture for one photo and one label, in float64 and one number at a time."""
    torch.manual_seed(0)
    features = torch.rand(1280)
    sentence = torch.nn.functional.normalize(torch.randn(384), dim=0)
    names, weight, bias = (
        encoder.names_KD.double(),
        encoder.image.classifier.weight.detach().double(),
        encoder.image.classifier.bias.detach().double(),
    )
    with torch.no_grad():
        ours = float(encoder._encode_features(features[None]) @ encoder._encode_sentences(sentence[None]).T)
    mean = names.mean(0)
    probabilities = (weight @ features.double() + bias).softmax(0)
    centred = torch.nn.functional.normalize(names - mean, dim=-1)
    conse = sum(float(probabilities[k]) * centred[k] for k in probabilities.topk(10).indices)
    label = torch.nn.functional.normalize(sentence.double() - mean, dim=0)
    kernel = torch.stack([((sentence.double() @ name - 1) / 0.3).exp() for name in names])
    gram = ((names @ names.T - 1) / 0.3).exp() + 0.3 * torch.eye(1000)
    smoothed = torch.linalg.solve(gram, kernel)
    rows = torch.cat([weight, bias[:, None]], dim=1)
    row = (rows - rows.mean(0)).T @ smoothed
    one = torch.cat([features.double(), torch.ones(1)])
    explained = float(kernel @ smoothed)
    ridge_score = float(one @ row) / float(one.norm() * row.norm())
    conse_score = float(conse @ label) / float(conse.norm())
    expected = 0.9 * math.sqrt(explained) * ridge_score + math.sqrt(0.19) * math.sqrt(1 - explained) * conse_score
    assert ours == pytest.approx(expected, abs=2e-4)


def test_known_names_lean_on_rows_and_novel_ones_on_names(encoder: PhotoTextEncoder) -> None:
    with torch.no_grad():
        text_BE = encoder.embed("text", ["goldfish", "the abstract idea of justice"])
    known, novel = text_BE[:, :1281].square().sum(-1).tolist()
    assert known > 0.7
    assert novel < 0.4


def test_a_label_does_not_depend_on_its_neighbours(encoder: PhotoTextEncoder) -> None:
    with torch.no_grad():
        alone = encoder.embed("text", ["cat"])
        among = encoder.embed("text", ["a much longer label than the others", "cat", "dog"])[1:2]
    assert torch.allclose(alone, among, atol=1e-5)


def test_class_names() -> None:
    names = class_names()
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and name for name in names)


def test_an_unknown_modality(encoder: PhotoTextEncoder) -> None:
    with pytest.raises(UsageError, match="this model joins image and text, got 'audio'"):
        encoder.embed("audio", [b""])


def test_a_classifier_of_another_size_is_refused() -> None:
    from zoo_conse.photo_text import photo_text_encoder

    text = zoo.open_model("text/all-minilm-l6-v2")
    image = zoo.open_model("timm/test_vit", weights=None, num_classes=7)
    with pytest.raises(UsageError, match="timm/test_vit.* must end in a linear layer with 1000 ImageNet classes"):
        photo_text_encoder(
            image=image, text=text, kernel_width=0.3, ridge=0.3, classes_averaged=10, feature_weight=0.9, logit_scale=22
        )
