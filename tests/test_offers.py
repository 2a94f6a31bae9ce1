"""What a plugin brings beside models: commands, readers, formats and checks, as rows of its manifest."""

import json
import shutil
import struct
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


BROKEN = """
import argparse
def brightest(parser):
    {build}
    return lambda arguments: {run}
"""


@pytest.mark.parametrize(
    ("build", "run", "message"),
    [
        ("parser.add_argument('--json')", "0", "raised ArgumentError while building its command brightest: argument --json"),
        ("raise SystemExit(0)", "0", "raised SystemExit while building its command brightest"),
        ("parser.add_argument('--run', default='x')", "1 / 0", "raised ZeroDivisionError while running its command brightest"),
        ("pass", "True", "its command brightest must return an exit code, got True"),
        ("pass", "None", "its command brightest must return an exit code, got None"),
    ],
)  # fmt: skip
def test_a_command_that_fails_names_its_plugin(tmp_path, build: str, run: str, message: str) -> None:
    dist = tmp_path / "zoodist-offers"
    shutil.copytree(DISTS / "zoodist-offers", dist)
    (dist / "zoodist_offers" / "commands.py").write_text(BROKEN.format(build=build, run=run))
    python = str(make_environment(tmp_path / "env", [dist]))
    words = [python, "-m", "zoo", "brightest"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "plugin 'offers' (zoodist-offers 1.0)" in ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_command_of_a_plugin_in_trouble_says_so(tmp_path) -> None:
    dist = tmp_path / "zoodist-offers"
    shutil.copytree(DISTS / "zoodist-offers", dist)
    text = (dist / "pyproject.toml").read_text()
    (dist / "pyproject.toml").write_text(
        text.replace("[project.entry", 'dependencies = ["no-such-dist-x"]\n\n[project.entry')
    )
    python = str(make_environment(tmp_path / "env", [dist]))
    ended = subprocess.run([python, "-m", "zoo", "brightest"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "'brightest' cannot be run: plugin 'offers' (zoodist-offers 1.0) is missing-extra" in ended.stderr
    assert "pip install no-such-dist-x" in ended.stderr


def test_help_is_whole_whatever_follows_and_whatever_the_config(main, tmp_path, monkeypatch) -> None:
    assert main("--help", "list").stdout == main("--help").stdout
    assert "classify" in main("--help", "list").stdout
    from zoo.registry.lookup import default_registry

    (tmp_path / "bad.toml").write_text("disabled = 3\n")
    monkeypatch.setenv("ZOO_CONFIG", str(tmp_path / "bad.toml"))
    default_registry.cache_clear()
    run = main("--help")
    default_registry.cache_clear()
    assert run.returncode == 0
    assert "classify" in run.stdout
    assert "commands of plugins are left out" in run.stderr


def test_a_mended_reader_reads_again(tmp_path) -> None:
    """What was kept under a file's content is kept under the reader's code, too."""
    from zoo.data.inputs import Item
    from zoo.data.item_content import sha256_of_item
    from zoo.media import readers

    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 1 1 255 a")
    item = Item("a", path)
    before = sha256_of_item(item, path.read_bytes())
    readers._codes.clear()
    changed = readers.code_sha256
    try:
        readers.code_sha256 = lambda plugin: "other code"
        after = sha256_of_item(item, path.read_bytes())
    finally:
        readers.code_sha256 = changed
        readers._codes.clear()
    assert before != after
    plain = tmp_path / "a.png"
    assert readers.read_as(plain, "image") == ""


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
        ("reader", {"modality": "image", "suffixes": [".wav"], "read": "p:f"}, r"\.wav has a meaning already"),
        ("reader", {"modality": "image", "suffixes": [".txt"], "read": "p:f"}, r"\.txt has a meaning already"),
        ("reader", {"modality": "image", "suffixes": [".x", ".x"], "read": "p:f"}, r"a suffix is named once"),
        ("format", {"name": "f", "magic": "504b0304", "read": "p:f"}, "a file that begins with 504b0304 is read by the core"),
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
        ({"weights": [{"tag": "a", "keys": "os:system"}]}, tiny, "keys names a function of a distribution"),
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


@pytest.mark.parametrize("suffix", [".pgm", ".PPM"])
@pytest.mark.parametrize("most", [255, 1000])
def test_netpbm_images_are_read_as_pillow_reads_them(tmp_path, suffix: str, most: int) -> None:
    import zoo

    shape = (5, 7) if suffix == ".pgm" else (5, 7, 3)
    numbers = np.random.default_rng(0).integers(0, most + 1, shape)
    kind = b"P5" if suffix == ".pgm" else b"P6"
    content = numbers.astype(np.uint8 if most < 256 else ">u2").tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(kind + b"\n# a comment\n7 5\n%d\n" % most + content)
    found = np.asarray(zoo.open_image(path)).astype(int)
    expected = np.round(numbers * 255 / most)
    assert np.abs(found - (expected[..., None] if suffix == ".pgm" else expected)).max() <= 1
    if most == 255:
        assert np.array_equal(found, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P3 1 1 255 1", "not a binary Netpbm image, P5 or P6 (it begins with b'P3 1')"),
        (b"P5 2 2 255 abc", "a damaged Netpbm image: 3 of 4 bytes"),
        (b"P5 0 2 255 abc", "a damaged Netpbm image of 0 x 2 pixels up to 255"),
        (b"P6 99999 99999 255 abc", "9,999,800,001 pixels; the limit is 64,000,000"),
        (b"P5 2 2 99999 abc", "a damaged Netpbm image of 2 x 2 pixels up to 99999"),
    ],
)
def test_damaged_netpbm_images_are_named(tmp_path, content: bytes, message: str) -> None:
    import zoo
    from zoo.api import MediaError

    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(MediaError) as raised:
        zoo.open_image(tmp_path / "a.pgm")
    assert str(raised.value) == f"{tmp_path / 'a.pgm'}: {message}"


def ggml(*, tokens: int = 0, tensors: bytes = b"") -> bytes:
    header = struct.pack("<11i", 3, *[1] * 10)
    return b"lmgg" + header + struct.pack("<2i", 1, 1) + bytes(4) + struct.pack("<i", tokens) + tensors


def ggml_tensor(name: bytes, shape: tuple[int, ...], kind: int, content: bytes) -> bytes:
    head = struct.pack(f"<3i{len(shape)}i", len(shape), len(name), kind, *reversed(shape))
    return head + name + content


def test_a_file_of_whisper_cpp_is_read(tmp_path) -> None:
    from zoo.api import read_state_dict

    numbers = np.arange(64, dtype=np.float32).reshape(2, 32)
    eight = b"".join(np.float16(0.5).tobytes() + bytes(range(32)) for _ in range(2))  # Q8_0: a scale, then 32 numbers
    tensors = ggml_tensor(b"a.weight", (2, 32), 0, numbers.tobytes())
    tensors += ggml_tensor(b"b.weight", (2, 32), 1, numbers.astype(np.float16).tobytes())
    tensors += ggml_tensor(b"c.weight", (2, 32), 8, eight)
    tensors += ggml_tensor(b"encoder.conv1.bias", (4, 1), 0, np.ones(4, np.float32).tobytes())
    (tmp_path / "ggml.bin").write_bytes(ggml(tensors=tensors))
    found = read_state_dict(tmp_path / "ggml.bin")
    assert np.array_equal(found["a.weight"].numpy(), numbers)
    assert np.array_equal(found["b.weight"].float().numpy(), numbers)
    assert np.array_equal(found["c.weight"].float().numpy(), np.tile(np.arange(32) / 2, (2, 1)))
    assert found["encoder.conv1.bias"].shape == (4,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ggml()[:20], "is cut off: the header has 44 bytes, 16 are left"),
        (ggml(tokens=-5), "its vocabulary holds -5 tokens, and its header says 3"),
        (ggml(tokens=2**31 - 1), "its vocabulary holds 2,147,483,647 tokens, and its header says 3"),
        (ggml(tensors=ggml_tensor(b"a", (0, 32), 2, b"")), "a tensor 'a' of shape [0, 32]"),
        (ggml(tensors=ggml_tensor(b"a", (2**31 - 1, 2**31 - 1), 0, b"")), "is cut off: a has 18,446,744,056,529,682,436 bytes"),
        (ggml(tensors=ggml_tensor(b"a\x1b[2J", (1,), 0, bytes(4))), "a tensor 'a\\x1b[2J' of shape [1]"),
        (ggml(tensors=ggml_tensor(b"a", (1,), 77, bytes(4))), "a tensor of 1 axes and type 77"),
        (ggml(tensors=ggml_tensor(b"a", (2, 31), 8, bytes(4))), "'a' has rows of 31, Q8_0 has blocks of 32"),
        (ggml(tensors=2 * ggml_tensor(b"a", (1,), 0, bytes(4))), "holds a twice"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_whisper_cpp_is_named(tmp_path, content: bytes, message: str) -> None:
    from zoo.api import WeightsError, read_state_dict

    (tmp_path / "ggml.bin").write_bytes(content)
    with pytest.raises(WeightsError) as raised:
        read_state_dict(tmp_path / "ggml.bin")
    assert message in str(raised.value)


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
