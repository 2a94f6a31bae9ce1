"""Sounds in the tasks that know images: classified by examples, embedded, and read by a decoder."""

import json

import numpy as np
import pytest
import soundfile
import torch

import zoo as library
from zoo.data.inputs import media_items, mixed_sources
from zoo.errors import UsageError
from zoo.media.audio import Sound
from zoo.models.build import open_model
from zoo.tasks.classify import classify
from zoo.tasks.embedding import embed

RATE_HZ = 16_000
KINDS = ("bell", "hiss", "sweep")


def sound(kind, seed, rate_hz=RATE_HZ):
    generator = np.random.default_rng(seed)
    duration_s = generator.uniform(0.5, 1.5)
    times = np.arange(int(duration_s * rate_hz)) / rate_hz
    if kind == "hiss":
        samples = generator.standard_normal(len(times)) * np.exp(-times)
    elif kind == "bell":
        pitch = generator.uniform(400, 800)
        samples = sum(np.sin(2 * np.pi * pitch * part * times) for part in (1, 2.76, 5.4)) * np.exp(-4 * times)
    else:
        samples = np.sin(2 * np.pi * (200 * times + generator.uniform(500, 900) * times**2))
    return Sound((generator.uniform(0.01, 0.5) * samples / np.abs(samples).max()).astype(np.float32), rate_hz)


@pytest.fixture
def folder(tmp_path):
    """Three examples of each kind, in several formats and rates."""
    for kind in KINDS:
        (tmp_path / "shots" / kind).mkdir(parents=True)
        for seed, (suffix, rate_hz) in enumerate([("wav", 16_000), ("flac", 44_100), ("ogg", 22_050)]):
            one = sound(kind, seed, rate_hz)
            soundfile.write(tmp_path / "shots" / kind / f"{seed}.{suffix}", one.samples, rate_hz)
    (tmp_path / "asked").mkdir()
    for number, kind in enumerate(KINDS):
        soundfile.write(tmp_path / "asked" / f"{kind}.wav", sound(kind, 50 + number).samples, RATE_HZ)
    return tmp_path


def test_examples_in_folders_teach_sounds_at_once(zoo, folder) -> None:
    (folder / "asked" / "broken.wav").write_bytes(b"RIFF")
    run = zoo("classify", str(folder / "asked"), "--shots", str(folder / "shots"), "--json")
    assert run.returncode == 1
    document = json.loads(run.stdout)
    assert document["model"] == "audio/statistics"
    results = {result["input"].rsplit("/", 1)[1]: result for result in document["results"]}
    assert {name: result.get("label") for name, result in results.items()} == {
        "bell.wav": "bell",
        "broken.wav": None,
        "hiss.wav": "hiss",
        "sweep.wav": "sweep",
    }
    assert "broken.wav: not a sound that can be read" in results["broken.wav"]["error"]
    assert document["loo_accuracy"] > 0.8


def test_sounds_in_memory_are_classified_by_a_model_that_is_built(folder) -> None:
    built = open_model("audio/statistics")
    asked = [sound(kind, 90) for kind in KINDS]
    outcome = classify(asked, model=built, shots=folder / "shots")
    assert [answer.label for answer in outcome.results] == list(KINDS)
    assert outcome.results[0].input.startswith("sound of ")
    single = [classify(one, model=built, shots=folder / "shots").results[0].score for one in asked]
    assert single == pytest.approx([answer.score for answer in outcome.results], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--labels", "dog,cat"],
            "audio/statistics is an encoder and cannot read labels: give it examples with --shots DIR",
        ),
        ([], "audio/statistics has no classes of its own: give it examples (--shots DIR, one folder for each class)"),
        (
            ["--model", "conse/lite0-minilm", "--labels", "a,b"],
            "classifying sounds needs an encoder or dual encoder of sounds",
        ),
        (["--model", "whisper/base", "--labels", "a,b"], "whisper/base has kind transcriber"),
    ],
)
def test_what_sounds_cannot_be_asked_is_said(zoo, folder, arguments, message) -> None:
    run = zoo("classify", str(folder / "asked" / "bell.wav"), *arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_sound_too_long_for_a_model_costs_the_others_nothing(folder) -> None:
    long = Sound(np.zeros(31 * RATE_HZ, np.float32), RATE_HZ)
    short = sound("bell", 7)
    encoder = open_model("whisper/random-encoder", weights=None)
    outcome = classify([short, long, short], model=encoder, shots=folder / "shots")
    assert [answer.error is None for answer in outcome.results] == [True, False, True]
    assert "a sound of 31.0 s: this encoder takes at most 30 s" in outcome.results[1].error


def test_images_and_sounds_are_not_mixed(folder, tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    with pytest.raises(
        UsageError, match=r"images and sounds together \(.*picture.png, .*bell.wav\): a model looks at one kind"
    ):
        media_items([folder / "asked" / "bell.wav", tmp_path / "picture.png"])
    with pytest.raises(UsageError, match="no image or sound given: name files, folders or patterns"):
        media_items([])
    assert [source.modality for source in mixed_sources([str(tmp_path / "picture.png"), "gone.wav", "a text"], [])] == [
        "image", "audio", "text",
    ]  # fmt: skip
    assert {item.modality for item in media_items(str(folder / "asked" / "*"))} == {"audio"}


def test_a_folder_of_both_kinds_is_not_guessed(zoo, folder) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "asked" / "cover.png")
    run = zoo("embed", str(folder / "asked"), "--out", str(folder / "v.npz"))
    assert run.returncode == 2
    assert (
        "the folder holds images and sounds, and a model looks at one kind at a time: name one by a pattern" in run.stderr
    )
    run = zoo("classify", str(folder / "asked" / "cover.png"), "--shots", str(folder / "shots"))
    assert run.returncode == 2
    assert "the examples are sounds, and what is asked are images" in run.stderr
    searched = zoo("search", str(folder / "shots"), "a bell")
    assert "the folder holds sounds, and images alone are searched" in searched.stderr


def test_sounds_are_embedded_and_the_file_is_brought_up_to_date(zoo, folder) -> None:
    out = folder / "sounds.npz"
    run = zoo("embed", str(folder / "asked"), "--out", str(out))
    assert run.returncode == 0, run.stderr
    assert "3 sounds" in run.stderr
    assert "3 vectors of width 1152" in run.stdout
    assert "is up to date" in zoo("embed", str(folder / "asked"), "--out", str(out)).stdout
    held = np.load(out)
    assert held["embeddings"].shape == (3, 1152)
    again = embed([sound("bell", 50)], out=folder / "one.npz", model="audio/statistics")
    assert again.results[0].modality == "audio"
    bell = np.load(folder / "one.npz")["embeddings"][0]
    assert float(bell @ held["embeddings"][0]) / 1.09 > 0.999  # from memory, and from a file of 16 bits
    mixed = zoo("embed", str(folder / "asked"), "a text", "--out", str(folder / "mixed.npz"))
    assert mixed.returncode == 2
    assert "sounds beside texts: no default model reads both; give each a call of its own, or name a model" in mixed.stderr


def test_a_constant_tone_has_finite_statistics() -> None:
    model = library.build("audio/statistics")
    for samples in (np.zeros(1, np.float32), np.ones(RATE_HZ, np.float32), np.full(5 * RATE_HZ, 1e-20, np.float32)):
        assert bool(model(model.preprocess([Sound(samples, RATE_HZ)])).pooled_BD.isfinite().all())


def test_statistics_do_not_hear_the_level_and_have_one_length() -> None:
    model = library.build("audio/statistics")
    one = sound("bell", 3)
    quiet = Sound(one.samples / 1000, RATE_HZ)
    rows = model(model.preprocess([one, quiet])).pooled_BD
    assert torch.allclose(rows[0], rows[1], atol=1e-5)
    assert torch.allclose(rows.square().sum(1), torch.full((2,), 1.09), atol=1e-5)
