"""Who asks a model that nobody trained is told so, in words and in the document."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import zoo as library
from zoo.models.composition import open_composition, save, trained_parameters
from zoo.models.provenance import provenance_of
from zoo.tasks.generation import stream_text

DECODER, ENCODER, BRIDGE = "smollm/tiny", "clip/tiny-image", "perceiver/linear-tiny"
TINY = ("--model", DECODER, "--weights", "none")
PARTS = (f"{BRIDGE} (image bridge)", "image gated layers")  # as answers name what is trained of a composition


def composed(**fields):
    torch.manual_seed(0)
    fields = {"weights": None, "gate": 0.5, "heads": 2, "head_width": 8, **fields}
    return library.compose(decoder=DECODER, encoders={"image": ENCODER}, bridge=BRIDGE, every=1, **fields)


def trained(composition, *roles: str) -> None:
    """Some of its parts, as a step of training does, or all that is trained."""
    parts = [composition.parts[role].module for role in roles]
    parameters = [one for part in parts for one in part.parameters()] if parts else trained_parameters(composition.module)
    with torch.no_grad():
        for one in parameters:
            one.add_(0.01)


def says(answer, *words: str) -> None:
    """That an answer in Python warns, once, with these words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        answer()
    (one,) = (warning for warning in caught if warning.category is library.RandomWeightsWarning)
    assert all(word in str(one.message) for word in words), one.message
    assert Path(one.filename) == Path(__file__)


@pytest.mark.parametrize(("weights", "role"), [(None, "drawn"), ("card", "model")])
def test_buffers_that_were_written_are_another_state_and_no_training(weights: str | None, role: str) -> None:
    """The means of a BatchNorm follow what a model was shown in training: what was kept under the old ones is not of this model."""
    built = library.open_model("timm/efficientnet_lite0", weights=weights)
    before, content = built.state_identity, built.content
    built.module.train()
    with torch.no_grad():
        built.module(torch.rand(2, 3, 64, 64))
    built.module.eval()
    assert built.state_identity != before
    assert {**content, "buffers": built.content["buffers"]} == built.content
    assert (role in built.content, built.random) == (True, weights is None)


@pytest.mark.parametrize("task", ["classify", "embed", "search", "filter"])
@pytest.mark.parametrize(("model", "weights"), [("clip/tiny", ["--weights", "none"]), ("conse/lite0-minilm", [])])
def test_random_weights_are_said(main, photos: Path, tmp_path: Path, task: str, model: str, weights: list[str]) -> None:
    shutil.copy(photos / "chelsea.jpg", tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a cat")
    words = {
        "classify": [str(tmp_path / "a.jpg"), "--labels", "cat,dog"],
        "embed": [str(tmp_path / "a.jpg"), "--out", str(tmp_path / "e.npz")],
        "search": [str(tmp_path), "a cat"],
        "filter": [str(tmp_path), "--dry-run"],
    }[task]
    line = f"zoo: {model} has random weights: what it answers means nothing\n"
    plain = main(task, *words, "--model", model, *weights)
    assert (plain.returncode, line in plain.stderr) == (0, bool(weights)), plain.stderr
    document = main(task, *words, "--model", model, *weights, "--json")
    assert (line in document.stderr, json.loads(document.stdout)["random_weights"]) == (bool(weights), bool(weights))


def test_what_is_random_is_what_was_drawn(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    drawn = library.open_model("text/minilm-tiny", weights=None)
    assert drawn.random
    save_file(drawn.module.state_dict(), tmp_path / "mine.safetensors")
    assert not library.open_model("text/minilm-tiny", weights=tmp_path / "mine.safetensors").random
    assert not library.open_model("text/all-minilm-l6-v2").random
    assert library.open_model("conse/lite0-minilm", weights=None).random


def test_a_composition_says_which_of_its_parts_were_drawn(main, photos: Path, tmp_path: Path) -> None:
    composition = composed()
    save(composition, tmp_path / "drawn")
    trained(composition, "image.bridge")
    save(composition, tmp_path / "half")
    trained(composition, "image.gated", "decoder", "image.encoder")
    for part in (composition.module.decoder, composition.module.senses["image"].encoder):
        part.requires_grad_(False)
    save(composition, tmp_path / "trained")
    everything = [DECODER, ENCODER, *PARTS]
    for folder, drawn, kernel in (
        ("drawn", everything, "float32"),
        ("half", [DECODER, ENCODER, PARTS[1]], "int8"),
        ("trained", [], "float32"),
    ):
        asked = (
            "generate",
            "--model",
            str(tmp_path / folder),
            str(photos / "chelsea.jpg"),
            "a",
            "--kernel",
            kernel,
            "--json",
        )
        answer = main(*asked, "--max-tokens", "1")
        document = json.loads(answer.stdout)
        assert (document["random_parts"], document["random_weights"]) == (drawn, bool(drawn)), folder
        assert ("has random weights in " + ", ".join(drawn) in answer.stderr) == bool(drawn)
        assert list(document["weights"]) == everything, "every part has a hash"
        assert {name: list(roles) for name, roles in document["weights"].items()} == {
            name: ["drawn" if name in drawn else "model"] for name in everything
        }
        assert all(len(sha256) == 64 for roles in document["weights"].values() for sha256 in roles.values())
        chosen = main(*asked, "--choices", "cat,dog")
        assert chosen.returncode == (2 if drawn else 0), chosen.stderr
        assert chosen.stderr.endswith("or add --allow-random\n") == bool(drawn)
        assert bool(chosen.stdout) == (not drawn)
    assert json.loads(main("compose", str(tmp_path / "half"), "--json").stdout)["random_parts"] == [
        DECODER,
        ENCODER,
        PARTS[1],
    ]
    allowed = main("generate", "x", *TINY, "--choices", "cat,dog", "--allow-random")
    assert (allowed.returncode, f"zoo: {DECODER} has random weights: what" in allowed.stderr) == (0, True)
    idle = main("generate", "x", *TINY, "--allow-random")
    assert (idle.returncode, "--allow-random is about --choices" in idle.stderr) == (2, True)


def test_what_was_drawn_stays_so_in_another_format_and_until_it_is_trained(tmp_path: Path) -> None:
    composition = composed(fusion="spliced")
    save(composition, tmp_path / "drawn")
    half = open_composition(tmp_path / "drawn", dtype=torch.bfloat16)
    assert provenance_of(half.built).random_parts == (DECODER, ENCODER, PARTS[0])
    cast = library.open_model("text/minilm-tiny", weights=None)
    cast.module.half()
    assert cast.random
    opened = open_composition(tmp_path / "drawn")
    trained(opened)
    assert provenance_of(opened.built).random_parts == (DECODER, ENCODER)
    save(opened, tmp_path / "trained")
    again = open_composition(tmp_path / "trained")
    first = provenance_of(again.built).weights[PARTS[0]]
    trained(again)
    assert provenance_of(again.built).weights[PARTS[0]].keys() == {"model", "parameters"}, "no longer what the file holds"
    assert list(first) == ["model"]


def test_what_is_trained_after_it_was_drawn_is_trained(photos: Path, tmp_path: Path) -> None:
    drawn = library.open_model(ENCODER, weights=None)
    hashes = [provenance_of(drawn).weights[ENCODER]]
    before = drawn.state_identity
    library.embed([photos / "chelsea.jpg"], model=drawn, out=tmp_path / "e.npz")
    parameters = list(drawn.module.parameters())
    examples = [torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(2)]

    def loss(batch):
        return torch.stack(
            [drawn.module(drawn.module.preprocess([_image(one)])).pooled_BD.square().mean() for one in batch]
        ).mean()

    library.fit(parameters, loss, examples, library.FitOptions(steps=1, batch_size=2))
    assert not drawn.random
    assert drawn.state_identity != before, "vectors that were kept are those of other numbers"
    hashes.append(provenance_of(drawn).weights[ENCODER])
    assert [list(one) for one in hashes] == [["drawn"], ["parameters"]]
    with torch.no_grad():
        parameters[0].data.mul_(2)  # which goes round torch's count of writes
    assert provenance_of(drawn).weights[ENCODER] != hashes[1]
    published = library.open_model("text/all-minilm-l6-v2")
    assert list(provenance_of(published).weights[published.name]) == ["model", "tokenizer"]
    with torch.no_grad():
        next(published.module.parameters()).add_(1)
    assert "parameters" in provenance_of(published).weights[published.name]


def _image(pixels):
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image(pixels[0])


def test_an_adapter_that_was_never_trained_says_so(main, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = library.open_language_model(library.open_model(DECODER, weights=None))  # by no kernel, which learns nothing
    adapters = library.adapt(model, "prompt", name="mine", count=2)
    name = f"{DECODER} under mine"
    says(lambda: library.generate("a", model=model, max_tokens=1), f"in {DECODER}, {name}: what it answers means nothing")
    adapters.save("mine", tmp_path / "drawn.safetensors")
    adapters.add("prompt", name="other", count=2)
    adapters.use("mine")
    with torch.no_grad():
        for one in adapters.parameters():
            one.add_(0.1)
    assert provenance_of(model.built).random_parts == (DECODER,)
    adapters.save("mine", tmp_path / "trained.safetensors")
    for file, drawn in (("drawn", True), ("trained", False)):
        path = str(tmp_path / f"{file}.safetensors")
        document = json.loads(main("generate", "a", *TINY, "--adapter", path, "--max-tokens", "1", "--json").stdout)
        assert document["random_parts"] == [DECODER, *([f"{DECODER} under {file}"] if drawn else [])]
        assert json.loads(main("adapt", "list", path, "--json").stdout)["drawn"] == drawn
        assert ("it was drawn and never trained" in main("adapt", "list", path).stdout) == drawn
        merged = main(
            "adapt", "export", path, "--model", DECODER, "--weights", "none", "--out", str(tmp_path / f"{file}-peft")
        )
        assert "has random weights in" in merged.stderr or not drawn, merged.stderr


def test_training_on_what_was_drawn_says_so(main, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    out = str(tmp_path / "a.safetensors")
    run = main("adapt", "train", str(tmp_path / "pairs.jsonl"), *TINY, "--steps", "1", "--out", out, "--json")
    document = json.loads(run.stdout)
    assert (document["random_weights"], document["random_parts"]) == (True, [DECODER])
    assert f"zoo: {DECODER} has random weights: what" in run.stderr
    assert set(document["weights"]) == {DECODER, f"{DECODER} under default"}


def test_python_warns_of_what_was_drawn(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image, spec = photos / "chelsea.jpg", library.ModelSpec("clip/tiny", weights=None)
    language = library.open_language_model(library.ModelSpec(DECODER, weights=None))
    sound = library.Sound(torch.zeros(8000).numpy(), 8000)
    for task in (
        lambda: library.classify(image, ["cat", "dog"], model=spec),
        lambda: library.embed([image], model=spec, out=tmp_path / "a.npz"),
        lambda: library.generate("a", model=language, max_tokens=1),
        lambda: library.score("a", ["b", "c"], model=language),
        lambda: list(stream_text("a", language, max_tokens=1)),
        lambda: library.classify_texts(["a"], ["b", "c"], model=library.ModelSpec(DECODER, weights=None)),
        lambda: library.transcribe(sound, model=library.ModelSpec("whisper/random", weights=None)),
    ):
        says(task, "has random weights: what it answers means nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library.embed(texts=["a"], out=tmp_path / "b.npz", model="text/all-minilm-l6-v2")
