"""What a plugin brings beside models: commands, readers, formats and checks, as rows of its manifest."""

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_shared import DISTS, make_environment, once
from PIL import Image

from zoo.errors import PluginError, UsageError
from zoo.registry.fields import FieldError
from zoo.registry.offers import parse_offers

CHILD = """
import sys
from zoo.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(code, *sorted({"torch", "zoodist_offers", "zoodist_offers.commands"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="session")
def offers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A python in whose environment the stranger's plugin is installed."""
    dists = [DISTS / "zoodist-offers"]
    return str(once(tmp_path_factory, "offers", lambda folder: make_environment(folder, dists)) / "bin" / "python")


def listed(python: str, *words: str) -> tuple[str, list[str]]:
    run = subprocess.run([python, "-c", CHILD, *words], capture_output=True, text=True, check=True)
    return run.stdout, run.stderr.split()


def test_help_lists_commands_of_plugins_and_imports_nothing(offers) -> None:
    out, ended = listed(offers, "--help")
    assert ended == ["0"]
    assert "brightest" in out
    assert "100% surely (plugin offers)" in " ".join(out.split())
    assert "never seen" not in out, "the core's command keeps its name"


def test_a_command_has_help_and_json_and_the_house_s_errors(offers, zoo, tmp_path) -> None:
    out, ended = listed(offers, "brightest", "--help")
    assert ended[0] == "0"
    assert "torch" not in ended[1:]
    assert "--json" in out
    dark, light = tmp_path / "dark.png", tmp_path / "light.png"
    Image.new("RGB", (4, 4)).save(dark)
    Image.new("RGB", (4, 4), "white").save(light)
    assert zoo("brightest", str(dark), str(light), python=offers).stdout.strip() == str(light)
    assert json.loads(zoo("brightest", str(dark), str(light), "--json", python=offers).stdout) == {
        "results": [{"input": str(light)}]
    }
    run = zoo("brightest", str(dark), python=offers)
    assert (run.returncode, run.stderr) == (2, "zoo: name at least two images\n")


def test_a_disabled_plugin_takes_its_command_along(offers, zoo) -> None:
    run = zoo("brightest", "a", "b", python=offers, ZOO_DISABLE="offers")
    assert run.returncode == 2
    assert "invalid choice: 'brightest'" in run.stderr


def test_two_plugins_with_one_command_are_named(tmp_path, zoo) -> None:
    other = tmp_path / "zoodist-rivals"
    (other / "zoodist_rivals").mkdir(parents=True)
    text = (DISTS / "zoodist-offers" / "pyproject.toml").read_text()
    (other / "pyproject.toml").write_text(
        text.replace("zoodist-offers", "zoodist-rivals")
        .replace("zoodist_offers", "zoodist_rivals")
        .replace("offers =", "rivals =")
    )
    (other / "zoodist_rivals" / "__init__.py").write_text("")
    (other / "zoodist_rivals" / "zoo.toml").write_text(
        'api = ">=1,<2"\n[[command]]\nname = "brightest"\nsummary = "another"\nbuild = "zoodist_rivals:build"\n'
    )
    python = str(make_environment(tmp_path / "env", [DISTS / "zoodist-offers", other]))
    run = zoo("brightest", "a", "b", python=python)
    assert run.returncode == 1
    assert "'brightest' is a command of two plugins, offers (zoodist-offers) and rivals (zoodist-rivals)" in run.stderr


def test_readers_and_formats_of_a_plugin_serve_every_task(offers, zoo, tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    grey, sound, weights = folder / "grey.pgmx", tmp_path / "tone.pcmx", tmp_path / "w.plain"
    grey.write_bytes(bytes([128] * 64))
    sound.write_bytes((np.sin(np.arange(8000) / 4) * 9000).astype("<i2").tobytes())
    weights.write_text("plain\nweight_D 1.0 2.0 0.5\n")
    run = zoo(
        "embed", str(folder), "--model", "offers/brightness", "--weights", str(weights), "--out", str(tmp_path / "o.npz"),
        "--json", python=offers,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [result["input"] for result in json.loads(run.stdout)["results"]] == [str(grey)]
    vectors = np.load(tmp_path / "o.npz")["embeddings"]
    assert np.allclose(vectors, [[128 / 255, 256 / 255, 64 / 255]], atol=1e-5)
    run = zoo("speech", str(sound), "--json", python=offers)
    assert run.returncode == 0, run.stderr
    grey.write_bytes(bytes(63))
    run = zoo("embed", str(grey), "--model", "offers/brightness", "--weights", str(weights), "--out", str(tmp_path / "p.npz"), python=offers)  # fmt: skip
    assert run.returncode == 1
    assert "63 bytes are no square" in run.stderr


OWN = """
import json
from zoo.registry.lookup import default_registry
from zoo.testing import runner
registry = default_registry()
found = registry.find("offers/brightness")
own = runner.own_checks(registry.owner(found.card), found.card, registry)
outcome = runner._in_child("offers/brightness", list(own.values()), 60.0)
print(json.dumps([[row["check"], row["level"], row["status"], row["message"]] for row in outcome.value]))
"""


def test_checks_of_a_plugin_run_on_its_own_models(offers) -> None:
    """In the process in which `zoo check` runs them; beside the core's they are run by the kit of the first-party adapters."""
    run = subprocess.run([offers, "-c", OWN], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [["offers:black-is-black", "own", "passed", ""]]


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("command", {"name": "Two Words", "summary": "s", "build": "p.m:f"}, "name 'Two Words' must match"),
        ("command", {"name": "two", "build": "p.m:f"}, "summary must be a non-empty string, got ''"),
        ("command", {"name": "two", "summary": "s", "build": "q.m:f"}, "build may only point inside the plugin's own package 'p'"),
        ("command", {"name": "two", "summary": "s"}, 'build must be "package.module:function", it is left out'),
        ("reader", {"modality": "video", "suffixes": [".x"], "read": "p:f"}, "modality must be one of image, audio"),
        ("reader", {"modality": "image", "suffixes": ["x"], "read": "p:f"}, r"suffixes are lower-case file endings"),
        ("reader", {"modality": "image", "suffixes": [], "read": "p:f"}, r"suffixes are lower-case file endings"),
        ("format", {"name": "f", "magic": "zz", "read": "p:f"}, "magic is how such a file begins"),
        ("format", {"name": "f", "magic": "ab", "read": "p:f"}, "magic is how such a file begins"),
        ("check", {"name": "c", "run": "p:f"}, "promise must be a non-empty string"),
        ("check", {"name": "c", "promise": "p", "run": "p:f", "level": "own"}, "unknown field 'level'"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_refused(table: str, row: dict, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        parse_offers({table: [row]}, "p")


def test_two_rows_for_one_thing_are_refused() -> None:
    row = {"name": "two", "summary": "s", "build": "p.m:f"}
    with pytest.raises(FieldError, match=r"two \[\[command\]\] rows are for two"):
        parse_offers({"command": [row, row]}, "p")


def tiny(scale: float = 1.0) -> torch.nn.Module:
    from zoo.api import Encoded

    class Tiny(torch.nn.Module):
        def preprocess(self, images):
            return torch.stack([torch.tensor(image.resize((1, 1)).getpixel((0, 0))).float() for image in images])

        def forward(self, pixels_BD):
            pooled_BD = pixels_BD * scale
            return Encoded(pooled_BD[:, None], torch.ones(len(pixels_BD), 1, dtype=torch.bool), pooled_BD)

    return Tiny()


CARD = {"name": "mine/tiny", "kind": "encoder", "modalities": ["image"], "variant": {"scale": 2.0}, "parameters": 0}


@pytest.fixture
def registry():
    from zoo.registry.lookup import default_registry

    default_registry.cache_clear()
    yield default_registry()
    default_registry.cache_clear()


def test_a_model_is_registered_for_one_process(registry, tmp_path) -> None:
    import zoo

    card = zoo.register(CARD, tiny)
    assert zoo.find("mine/tiny").card == card
    assert card in zoo.cards("mine/*")
    Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "a.png")
    outcome = zoo.embed([tmp_path / "a.png"], model="mine/tiny", out=tmp_path / "o.npz")
    assert (outcome.provenance.distribution, outcome.shape) == ("this process", (1, 3))
    assert np.load(tmp_path / "o.npz")["embeddings"].tolist() == [[20.0, 40.0, 60.0]]
    before = zoo.open_model("mine/tiny").identity
    zoo.register({**CARD, "variant": {"scale": 3.0}}, tiny)
    assert len(zoo.cards("mine/*")) == 1
    assert zoo.open_model("mine/tiny").identity != before, "nothing kept under the first is taken for the second's"


@pytest.mark.parametrize(
    ("change", "build", "message"),
    [
        ({"name": "tiny"}, tiny, "a registered model is called <plugin>/<model>, as in mine/tiny, got 'tiny'"),
        ({"name": "timm/mine"}, tiny, "'timm' is the plugin of modalzoo-timm: register the model under another name"),
        ({"kind": "painter"}, tiny, "kind must be one of encoder, dual_encoder"),
        ({"kind": "generator"}, tiny, "kind must be one of encoder, dual_encoder"),
        ({"build": "a.b:c"}, tiny, "build names a function of a distribution"),
        ({}, "a.b:c", "build is the function that builds mine/tiny, got 'a.b:c'"),
    ],
)
def test_what_cannot_be_registered_is_refused(registry, change: dict, build, message: str) -> None:
    import zoo

    with pytest.raises(UsageError, match=message):
        zoo.register({**CARD, **change}, build)
    assert not zoo.cards("mine/*")


def test_a_builder_that_raises_is_named(registry) -> None:
    import zoo

    zoo.register({**CARD, "variant": {"nonsense": 1}}, tiny)
    with pytest.raises(PluginError, match="plugin 'mine' .* raised TypeError while building mine/tiny"):
        zoo.open_model("mine/tiny")


def test_an_image_saved_as_an_array_is_an_image(tmp_path) -> None:
    from zoo.media.readers import open_media
    from zoo.registry.modality import IMAGE

    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.save(tmp_path / "a.npy", pixels)
    assert np.array_equal(np.asarray(open_media(tmp_path / "a.npy", IMAGE)), pixels)
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    from zoo.errors import MediaError

    with pytest.raises(MediaError, match=r"b\.npy: not an array of numbers that can be read"):
        open_media(tmp_path / "b.npy", IMAGE)
    (tmp_path / "c.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-7])
    with pytest.raises(MediaError, match=r"c\.npy: not an array of numbers that can be read"):
        open_media(tmp_path / "c.npy", IMAGE)


def test_a_sound_of_a_plugin_s_format_is_as_it_was_recorded(tmp_path) -> None:
    """The stranger's reader in this process: what it gives is what the same samples in a WAV file give."""
    sys.path.insert(0, str(DISTS / "zoodist-offers"))
    try:
        from zoodist_offers.media import sound
    finally:
        sys.path.pop(0)
    from zoo.media.audio import open_audio
    from zoo.media.readers import MediaReader, open_media
    from zoo.registry.modality import AUDIO

    samples = (np.sin(np.arange(4000) / 3) * 12000).astype("<i2")
    (tmp_path / "a.pcmx").write_bytes(samples.tobytes())
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    reader = MediaReader("pcmx file", AUDIO, (".pcmx",), sound)
    found = open_media(tmp_path / "a.pcmx", AUDIO, extra=[reader], sample_rate_hz=16000)
    expected = open_audio(Path(tmp_path / "a.wav"), sample_rate_hz=16000)
    assert np.allclose(found.samples, expected.samples, atol=1e-6)
