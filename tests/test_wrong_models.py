"""A plugin's model that gives what it must not: the error names the plugin and the model, whatever it was asked for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zoo
from zoo.errors import PluginError

TIMM = r"plugin 'timm' \(modalzoo-timm [\d.]+\).* timm/test_vit"
CLIP = r"plugin 'clip' \(modalzoo-clip [\d.]+\).* clip/tiny"


class Wrong(torch.nn.Module):
    """A model whose answers are spoilt on their way out."""

    def __init__(self, good: torch.nn.Module, method: str, spoil) -> None:
        super().__init__()
        self.good, self.method, self.spoil = good, method, spoil

    def __getattr__(self, name: str):
        if name in ("good", "method", "spoil"):
            return super().__getattr__(name)
        found = getattr(self.good, name)
        return found if name != self.method else lambda *arguments: self.spoil(found(*arguments))

    def forward(self, *inputs):
        """float[B, 3, S, S] -> whatever it is."""
        return self.spoil(self.good(*inputs)) if self.method == "forward" else self.good(*inputs)


@pytest.fixture(scope="module")
def encoder() -> object:
    torch.manual_seed(0)
    return zoo.open_model("timm/test_vit", weights=None)


@pytest.fixture(scope="module")
def dual() -> object:
    torch.manual_seed(0)
    return zoo.open_model("clip/tiny", weights=None)


WRONG_ENCODED = {
    "tokens": (lambda e: replace(e, tokens_BTD=e.tokens_BTD[:, 0]), r"ValueError.*tokens_BTD must be float\[B, T, D\], got \["),
    "mask": (lambda e: replace(e, mask_BT=e.mask_BT[:, :1]), r"ValueError.*mask_BT must be bool\["),
    "mask of numbers": (lambda e: replace(e, mask_BT=e.mask_BT.float()), r"ValueError.*mask_BT must be bool\["),
    "pooled": (lambda e: replace(e, pooled_BD=e.pooled_BD[:0]), r"ValueError.*pooled_BD must be float\["),
    "a list": (lambda e: replace(e, pooled_BD=e.pooled_BD.tolist()), "TypeError.*pooled_BD must be a tensor, got list"),
    "a tensor": (lambda e: e.pooled_BD, "TypeError.*forward must return zoo.Encoded, got Tensor"),
    "too many": (lambda e: zoo.Encoded(*(torch.cat([part, part]) for part in (e.tokens_BTD, e.mask_BT, e.pooled_BD))),
                 r"gave torch.float32\[2, \d+\] for 1 items \(image\), expected float\[1, D\]"),
    "nothing": (lambda _: None, "TypeError.*forward must return zoo.Encoded, got NoneType"),
    "an error": (lambda _: {}["a"], "raised KeyError while running"),
}  # fmt: skip


@pytest.fixture
def shots(photos: Path, tmp_path: Path) -> Path:
    for name in ("chelsea", "coffee"):
        (tmp_path / "shots" / name).mkdir(parents=True)
        shutil.copy(photos / f"{name}.jpg", tmp_path / "shots" / name)
    return tmp_path / "shots"


@pytest.mark.parametrize("fault", WRONG_ENCODED)
@pytest.mark.covers("P3")
def test_an_encoder_that_gives_something_else(encoder, photos: Path, shots: Path, tmp_path: Path, fault: str) -> None:
    spoil, message = WRONG_ENCODED[fault]
    wrong = replace(encoder, module=Wrong(encoder.module, "forward", spoil))
    photo = photos / "chelsea.jpg"
    for ask in (
        lambda: zoo.classify(photo, shots=shots, model=wrong, batch_size=1),
        lambda: zoo.embed([photo], out=tmp_path / "e.npz", model=wrong, batch_size=1),
    ):
        with pytest.raises(PluginError, match=message) as raised:
            ask()
        assert raised.match(TIMM)


@pytest.mark.covers("P3")
def test_an_encoder_that_gives_nan(encoder, photos: Path, shots: Path, tmp_path: Path) -> None:
    spoil = lambda e: replace(e, pooled_BD=e.pooled_BD * float("nan"))  # noqa: E731 - as those above
    wrong = replace(encoder, module=Wrong(encoder.module, "forward", spoil))
    with pytest.raises(PluginError, match=f"{TIMM} gave NaN or infinity for the features of an image"):
        zoo.classify(photos / "chelsea.jpg", shots=shots, model=wrong)
    outcome = zoo.embed([photos / "chelsea.jpg"], out=tmp_path / "e.npz", model=wrong)
    assert "plugin 'timm' (modalzoo-timm" in outcome.results[0].error
    assert "timm/test_vit answers with NaN or infinity" in outcome.results[0].error


WRONG_VECTORS = {
    "one number each": (lambda v: v[:, 0], r"gave torch.float32\[1\] for 1 items"),
    "too few": (lambda v: v[:0], r"gave torch.float32\[0, 32\] for 1 items"),
    "whole numbers": (lambda v: (9 * v).long(), r"gave torch.int64\[1, 32\] for 1 items"),
    "a list": (lambda v: v.tolist(), r"gave list for 1 items"),
    "an error": (lambda _: 1 // 0, "raised ZeroDivisionError while running"),
}


def filtered(folder: Path, wrong: object) -> None:
    """A shard that fails costs the others nothing: its error is in the outcome."""
    outcome = zoo.filter_pairs(folder, dry_run=True, model=wrong, batch_size=1)
    raise PluginError(outcome.shards[0].error)


@pytest.mark.parametrize("fault", WRONG_VECTORS)
@pytest.mark.covers("P3")
def test_a_dual_encoder_that_gives_something_else(dual, photos: Path, tmp_path: Path, fault: str) -> None:
    spoil, message = WRONG_VECTORS[fault]
    wrong = replace(dual, module=Wrong(dual.module, "encode", spoil))
    shutil.copy(photos / "chelsea.jpg", tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a cat")
    for ask in (
        lambda: zoo.embed(["a cat"], out=tmp_path / "e.npz", model=wrong),
        lambda: zoo.search(tmp_path, "a cat", model=wrong),
        lambda: filtered(tmp_path, wrong),
    ):
        with pytest.raises(PluginError, match=message) as raised:
            ask()
        assert raised.match(CLIP)


def test_a_dual_encoder_whose_labels_or_query_are_no_numbers(dual, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "chelsea.jpg", tmp_path / "a.jpg")
    nan = lambda v: v * float("nan")  # noqa: E731 - as those above
    embeds = replace(dual, identity="nan labels", module=Wrong(dual.module, "embed", nan))
    with pytest.raises(PluginError, match=f"{CLIP} gave NaN or infinity for the labels"):
        zoo.classify(photos / "chelsea.jpg", ["a", "b"], model=embeds)
    embeds = replace(dual, identity="flat labels", module=Wrong(dual.module, "embed", lambda v: v[0]))
    with pytest.raises(PluginError, match=rf"{CLIP} gave torch.float32\[32\] for 2 items \(text\)"):
        zoo.classify(photos / "chelsea.jpg", ["a", "b"], model=embeds)
    encodes = replace(dual, module=Wrong(dual.module, "encode", nan))
    with pytest.raises(PluginError, match=f"{CLIP} gave NaN or infinity for the query"):
        zoo.search(tmp_path, "a cat", model=encodes)


def test_a_dual_encoder_whose_modalities_differ_in_width(dual, photos: Path, tmp_path: Path) -> None:
    class Narrow(Wrong):
        def __getattr__(self, name: str):
            found = super().__getattr__(name)
            if name != "encode":
                return found
            return lambda modality, inputs: self.good.encode(modality, inputs)[:, : 30 if modality == "text" else 32]

    shutil.copy(photos / "chelsea.jpg", tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a cat")
    wrong = replace(dual, identity="narrow", module=Narrow(dual.module, "encode", None))
    for ask, message in (
        (lambda: zoo.embed([tmp_path / "a.jpg", "a cat"], out=tmp_path / "e.npz", model=wrong), "widths? .*of 30"),
        (lambda: zoo.search(tmp_path, "a cat", model=wrong), "images of width 32 and a query of 30"),
        (lambda: filtered(tmp_path, wrong), "raised RuntimeError while running"),
    ):
        with pytest.raises(PluginError, match=message) as raised:
            ask()
        assert raised.match(CLIP)
