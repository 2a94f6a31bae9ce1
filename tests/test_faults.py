"""Faults and attacks on what lies on the disk, and what a command does with them: tried at the command line and in Python."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import zoo as library
from zoo.data.journal import alone
from zoo.errors import HashMismatchError, WeightsError, WeightsMissingError, ZooError
from zoo.models.composition import open_composition, save
from zoo.registry.documents import parse_json, parse_toml
from zoo.registry.lock import read_lock
from zoo.registry.settings import load_settings
from zoo.weights import verified
from zoo.weights.cache import blobs_dir, warn_of_others
from zoo.weights.formats import ctranslate2
from zoo.weights.formats.read import read_state_dict
from zoo.weights.stores import open_source

DEEP = "[" * 100_000
LONG = "9" * 5_000
HEXADECIMAL = "0x" + "f" * 5_000
TINY = ["--model", "smollm/tiny", "--weights", "none"]


def composed(seed=0):
    torch.manual_seed(seed)
    return library.compose(
        decoder="smollm/tiny",
        encoders={"image": "clip/tiny-image"},
        bridge="perceiver/resampler-tiny",
        weights=None,
        every=1,
    )


@pytest.fixture(scope="module")
def compositions():
    return composed(0), composed(1)


def state_of(composition):
    return {name: tensor.clone() for name, tensor in composition.module.state_dict().items()}


@pytest.mark.covers("W9")
@pytest.mark.parametrize("call", ["fsync", "save_file", "write_recipe"])
def test_a_composition_that_cannot_be_written_leaves_the_older_one(compositions, tmp_path, monkeypatch, call):
    """Every step of the second save fails in turn, as a full disk makes it fail."""
    import zoo.models.composition as module

    first, second = compositions
    folder = tmp_path / "model"
    save(first, folder)
    (folder / "notes.txt").write_text("mine")
    owner = os if call == "fsync" else module
    error = SafetensorError("I/O error") if call == "save_file" else OSError(28, "No space left on device")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(
        ZooError, match=r"model: the composition cannot be written .*; what was there before is there still"
    ):
        save(second, folder)
    monkeypatch.undo()
    assert all(
        torch.equal(tensor, state_of(first)[name]) for name, tensor in open_composition(folder).module.state_dict().items()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    save(second, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "recipe.toml", "trained.safetensors"]
    assert all(
        torch.equal(tensor, state_of(second)[name]) for name, tensor in open_composition(folder).module.state_dict().items()
    )


@pytest.mark.covers("A28")
def test_a_file_that_is_swapped_between_its_check_and_its_loading_is_not_loaded(tmp_path, monkeypatch):
    """By another file, by writing into it, and by another that is taken away again before anybody looks."""
    from zoo.models import loading

    good, evil = tmp_path / "good.safetensors", tmp_path / "evil.safetensors"
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in library.build("smollm/tiny", weights=None).state_dict().items()}
    save_file(state, evil)
    load = loading.read_weights

    def replaced(path, registry):
        evil.replace(path)
        return load(path, registry)

    def written_to(path, registry):
        with path.open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")
        return load(path, registry)

    def there_and_back(path, registry):
        aside = path.with_name("aside")
        path.replace(aside)
        shutil.copy(evil, path)
        found = load(path, registry)
        aside.replace(path)
        return found

    for swap in (there_and_back, written_to, replaced):
        save_file(state, good)
        monkeypatch.setattr(loading, "read_weights", swap)
        with pytest.raises(HashMismatchError, match=r"good.safetensors was replaced or written to between its check"):
            library.open_model("smollm/tiny", weights=good)
        monkeypatch.setattr(loading, "read_weights", load)
    save_file(state, good)
    assert library.open_model("smollm/tiny", weights=good).files["model"] == verified.sha256_of(good)


def test_trained_numbers_that_are_swapped_are_not_loaded(compositions, tmp_path, monkeypatch):
    import zoo.models.composition as module

    first, second = compositions
    save(first, tmp_path / "a")
    save(second, tmp_path / "b")
    read = module.read_state_dict

    def swapped(path):
        (tmp_path / "b" / path.name).replace(path)
        return read(path)

    monkeypatch.setattr(module, "read_state_dict", swapped)
    with pytest.raises(HashMismatchError, match="was replaced or written to"):
        open_composition(tmp_path / "a")


DOCUMENTS = {
    "deep": ("a = " + DEEP, "nested too deeply|not"),
    "long": ("a = " + LONG, "digits"),
    "hexadecimal": ("a = " + HEXADECIMAL, "64 bits"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_hostile_documents_are_one_line_each(main, tmp_path, monkeypatch, case):
    """The lock, the recipe and the config of a stranger; nothing of what they hold is repeated at length."""
    text, reason = DOCUMENTS[case]
    with pytest.raises(tomllib.TOMLDecodeError, match=reason):
        parse_toml(text)
    monkeypatch.chdir(tmp_path)
    Path("zoo.lock").write_text(text)
    Path("recipe.toml").write_text(f"recipe = 1\n{text}")
    for words in (["lock", "--check"], ["compose", "recipe.toml"]):
        run = main(*words)
        assert (run.returncode in (1, 2), run.stderr.count("\n"), len(run.stderr) < 500) == (True, 1, True), run.stderr
    Path(os.environ["ZOO_CONFIG"]).write_text(text)
    with pytest.raises(ZooError, match="not valid TOML") as raised:
        load_settings()
    assert "\n" not in str(raised.value)
    with pytest.raises(ZooError):
        read_lock(Path("zoo.lock"))


@pytest.mark.parametrize(
    "text", [DEEP, LONG, f'{{"a": {LONG}}}', '{"a": 1, "a": 2}'], ids=["deep", "long", "long inside", "twice"]
)
def test_hostile_json_is_a_value_error(text):
    with pytest.raises(ValueError, match="nested too deeply|5,000 digits|occurs twice"):
        parse_json(text, unique=True)


@pytest.mark.covers("A26")
@pytest.mark.parametrize(
    "content",
    [DEEP, LONG, '{"method": "lora/lora", "options": {"r": 1e999}, "base": {}, "scale": 1' + "0" * 400 + "}"],
    ids=["deep", "long", "scale"],
)
def test_hostile_metadata_of_an_adapter_is_one_line(tmp_path, content):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"zoo_adapter": content})
    adapters = library.adapt(library.build("smollm/tiny", weights=None), "lora", r=2)
    with pytest.raises(ZooError) as raised:
        adapters.load(path, name="other")
    assert "\n" not in str(raised.value)
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(ZooError) as raised:
        adapters.load(folder, name="third")
    assert len(str(raised.value)) < 400


def test_hostile_state_records_are_as_if_they_were_not_there(main, tmp_path):
    assert main("plugins").returncode == 0
    state = Path(os.environ["ZOO_STATE"])
    for kind in ("activation", "listing", "attempt", "badge"):
        (state / kind).mkdir(parents=True, exist_ok=True)
        for plugin in ("timm", "text"):
            for text in (DEEP, LONG, "[]", '{"version": "0.1.0", "process": 1e400}'):
                (state / kind / f"modalzoo-{plugin}+{plugin}.json").write_text(text)
                assert main("plugins").returncode == 0, (kind, text[:20])


def header_of(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


TENSOR = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
LYING = {
    "a name twice": (header_of(f'{{"a":{TENSOR},"a":{TENSOR}}}', bytes(4)), "'a' occurs twice"),
    "trailing bytes": (header_of(f'{{"a":{TENSOR}}}', bytes(5)), "not fully covered"),
    "a shape that overflows": (header_of('{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'), "overflow|mismatch|invalid"),
    "nested": (header_of('{"a":' + DEEP), "nested too deeply"),
    "a long number": (header_of('{"a":{"dtype":"F32","shape":[' + LONG + '],"data_offsets":[0,0]}}'), "5,000 digits"),
    "length 2^63": (struct.pack("<Q", 2**63) + b"{}", "its header has 9,223,372,036,854,775,808 bytes"),
    "overlap": (header_of(f'{{"a":{TENSOR},"b":{TENSOR}}}', bytes(4)), "not a valid safetensors file"),
    "a hole": (header_of('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)), "not a valid safetensors file"),
}  # fmt: skip


@pytest.mark.covers("A8")
@pytest.mark.parametrize("case", LYING)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, case):
    content, message = LYING[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as raised:
        read_state_dict(path)
    assert len(str(raised.value)) < 400


@pytest.mark.covers("A8")
def test_three_hundred_thousand_empty_tensors_cost_no_time(tmp_path, figure):
    import time

    path, rows = tmp_path / "a.safetensors", '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    for count in (300_000, 70_000):
        path.write_bytes(header_of("{" + ",".join(f'"{number}":{rows}' for number in range(count)) + "}"))
        start = time.process_time()
        with pytest.raises(
            WeightsError, match=r"70,000 tensors, at most 65,536|its header has \d\d,\d{3},\d{3} bytes, at most"
        ):
            read_state_dict(path)
        assert time.process_time() - start < 2
    figure(f"refused in {time.process_time() - start:.1f} s of processor time")


def ct2(
    *variables: tuple[bytes, list[int], int, bytes], aliases: tuple = (), count: int | None = None, after: bytes = b""
) -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<H", len(value) + 1) + value + b"\0"

    rows = b"".join(
        text(name) + struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, kind, len(data)) + data
        for name, shape, kind, data in variables
    )
    ends = b"".join(text(alias) + text(name) for alias, name in aliases)
    count = len(variables) if count is None else count
    return (
        struct.pack("<I", 6)
        + text(b"WhisperSpec")
        + struct.pack("<II", 3, count)
        + rows
        + struct.pack("<I", len(aliases))
        + ends
        + after
    )


GOOD = (b"a", [2], 1, b"\1\2")
DAMAGED = {
    "a name twice": (ct2(GOOD, GOOD), "'a' occurs twice"),
    "trailing bytes": (ct2(GOOD, after=b"x"), "1 bytes follow its end"),
    "a shape that overflows": (ct2((b"a", [0, *[2**32 - 1] * 7], 0, b"")), "is larger than any tensor"),
    "an alias of nothing": (ct2(GOOD, aliases=((b"b", b"c"),)), "the alias 'b' of 'c' cannot be"),
    "an alias twice": (ct2(GOOD, aliases=((b"a", b"a"),)), "the alias 'a' of 'a' cannot be"),
    "many variables": (ct2(GOOD, count=2**32 - 1), "4,294,967,295 variables, at most 65,536"),
    "a name of no text": (ct2((b"\xff", [2], 1, b"\1\2")), "no UTF-8"),
    "cut short": (ct2(GOOD)[:-3], "ends too early"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_of_ctranslate2_that_lies_is_refused(tmp_path, case):
    path = tmp_path / "model.bin"
    content, message = DAMAGED[case]
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        ctranslate2.read_tensors(path)


def test_an_honest_file_of_ctranslate2_is_read(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(ct2(GOOD, (b"e", [0, 3], 0, b""), aliases=((b"b", b"a"),)))
    found = read_state_dict(path)
    assert (found["a"].tolist(), found["e"].shape, list(found)) == ([1, 2], (0, 3), ["a", "e"])


@pytest.mark.covers("A13")
@pytest.mark.parametrize(
    "inner", ["../../x", "zoo/../../x", "/etc/passwd", "zoo//x", "zoo/.", "a\\..\\x", "zoo/x\0", "C:/x"]
)
def test_a_source_stays_inside_its_distribution(tmp_path, inner):
    for source in (f"package:modalzoo/{inner}", f"hf:owner/name/{inner}"):
        with pytest.raises(WeightsMissingError, match=r"must name a file inside|not of the form"):
            open_source(source, tmp_path / "x", None)
    assert open_source("package:modalzoo/zoo/__init__.py", tmp_path / "x", None).name == "__init__.py"


@pytest.mark.covers("A28")
def test_a_cache_of_everybody_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    warn_of_others.cache_clear()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs").chmod(0o777)
    for _ in range(2):
        warn_of_others(tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the cache folder {tmp_path}/blobs can be written by everybody (mode 0777)" in said
    assert f"chmod o-w {tmp_path}/blobs" in said
    (tmp_path / "blobs").chmod(0o775)  # of a group, as many systems make all folders
    warn_of_others.cache_clear()
    warn_of_others(tmp_path)
    assert capsys.readouterr().err == ""


def test_links_in_the_cache_stop_neither_listing_nor_pruning(main, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("mine")
    blobs_dir().mkdir(parents=True)
    for name, target in (
        ("a" * 64, precious),
        ("b" * 64, tmp_path / "nowhere"),
        ("c" * 64, blobs_dir() / ("c" * 64)),
        ("d", precious / "thesis"),
    ):
        (blobs_dir() / name).symlink_to(target)
    assert main("cache").returncode == 0
    run = main("cache", "--prune")
    assert (run.returncode, list(blobs_dir().iterdir()), (precious / "thesis").read_text()) == (0, [], "mine"), run.stderr


def test_two_writers_of_one_file_are_kept_apart_whatever_their_caches(tmp_path, monkeypatch):
    out = tmp_path / "e.npz"
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "one"))
    with alone(out):
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "two"))
        with pytest.raises(ZooError, match="another process is writing it"), alone(tmp_path / "x" / ".." / "e.npz"):
            pass
        with alone(tmp_path / "other.npz"):
            pass
    with alone(out):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["list"], ["generate", "hi", *TINY, "--max-tokens", "2"]], ids=["list", "generate"])
def test_an_interruption_in_the_middle_of_an_import_ends_with_130(tmp_path, words):
    """The signal comes while a module of the zoo, of torch, or of a plugin is imported: the module sends it itself."""
    code = (
        "import sys, os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # who runs tests in parallel may have it ignored
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == sys.argv[1]: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from zoo.__main__ import command\n"
        "sys.argv = ['zoo', *sys.argv[2:]]\n"
        "Finder.find_spec.__globals__['sys'].argv[1:1] = []\n"
    )
    for module in ["zoo.cli", "argparse"] if words == ["list"] else ["zoo.decoding.sampling"]:
        main_code = code.replace("sys.argv[1]", repr(module)).replace("sys.argv[2:]", "sys.argv[1:]") + "command()\n"
        run = subprocess.run(
            [sys.executable, "-c", main_code, *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert (run.returncode, run.stderr) == (130, "zoo: interrupted\n"), module


def streams(*words: str, redirect: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'"$0" -m zoo "$@" {redirect}'
    return subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, *words],
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_closed_and_full_outputs_are_one_line(tmp_path):
    run = streams("list", redirect=">&-")
    assert (run.returncode, run.stderr) == (1, b"zoo: Bad file descriptor (--debug shows where)\n")
    run = streams("list", redirect=">/dev/full")
    assert (run.returncode, run.stderr.count(b"\n"), b"No space left" in run.stderr) == (1, 1, True)
    run = streams("nonsense", redirect="2>&-")
    assert (run.returncode, run.stdout) == (2, b""), "errors do not go where answers are expected"
    run = streams("lock", "--file", str(tmp_path / "zoo.lock"), redirect=">&- 2>&-")
    assert tomllib.loads((tmp_path / "zoo.lock").read_text())["format"] == 1, (
        "what is printed does not land in a file that is opened"
    )


def test_an_output_that_cannot_take_a_character_gets_an_escape(tmp_path):
    text, words = "caf\u00e9 \U0001f600", ("generate", "-", *TINY, "--max-tokens", "1", "--json")
    run = streams(
        *words,
        redirect="",
        stdin=text.encode(),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.decode("ascii"))["results"][0]["input"] == text


def test_the_tour_goes_on_without_a_model(main, tmp_path, monkeypatch):
    """One of four models cannot be had: its part is left out and named, the exit code is 1, the rest is answered."""
    import zoo.cli.demo.tour as module

    def gone(*_, **__):
        raise WeightsMissingError("no source delivered it")

    monkeypatch.setattr(module, "open_language_model", gone)
    monkeypatch.setattr(module, "transcribe", gone)
    run = main("demo", "--json", "--out", str(tmp_path))
    report = json.loads(run.stdout)
    assert run.returncode == 1
    assert report["missing"] == {"language": "no source delivered it", "recording": "no source delivered it"}
    assert "zoo: language is missing: no source delivered it" in run.stderr
    assert (report["language"], report["right"] > 4, (tmp_path / "contact-sheet.png").is_file()) == (None, True, True)
    assert report["own_classes"]["results"]


@pytest.mark.covers("W9")
def test_kills_and_write_errors_at_random_points(figure):
    """The short form of benchmarks/faults.py, in a process of its own: it forks, and puts itself in the place of `open`."""
    slowly = os.environ.get("ZOO_SLOW_TESTS") == "1"
    names = "lock,pin,new,compose,adapter,adapt merge,adapt export,cache prune" if slowly else "lock,embed"
    script = Path(__file__).parents[1] / "benchmarks" / "faults.py"
    points = "6" if slowly else "3"
    words = [sys.executable, str(script), "--points", points, "--only", names]
    run = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert run.returncode == 0, run.stdout
    figure(f"{points} kills and {points} write errors each of {names}: 0 wrong")


@pytest.mark.covers("A1", "A4")
def test_no_code_and_no_unlisted_file_of_a_weights_folder_is_used(tmp_path):
    """A folder that names code to import, as hubs lay it out, with an adapter beside that nobody asked for."""
    torch.manual_seed(0)
    model = library.build("smollm/tiny", weights=None)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    marker = tmp_path / "marker"
    (tmp_path / "evil_code.py").write_text(f"open({str(marker)!r}, 'w').close()")
    code = {"auto_map": {"AutoModel": "evil_code.Evil"}, "trust_remote_code": True}
    for name in ("config.json", "adapter.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps({**code, "text_config": code}))
    opened = library.open_model("smollm/tiny", weights=tmp_path)
    assert all(torch.equal(tensor, opened.module.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert (marker.exists(), "evil_code" in sys.modules) == (False, False)


def test_a_reader_of_errors_that_has_gone_costs_no_work(tmp_path):
    words = ("embed", "hello", "--model", "clip/tiny", "--weights", "none", "--out", str(tmp_path / "v.npz"), "--json")
    run = streams(*words, redirect="2>/dev/full")
    assert run.returncode == 0
    assert json.loads(run.stdout)["computed"] == 1
    assert (tmp_path / "v.npz").is_file()


def test_a_header_of_many_names_is_refused_in_linear_time():
    document = "{" + ", ".join(f'"{number}": 0' for number in range(100_000)) + ', "99999": 1}'
    with pytest.raises(ValueError, match="the name '99999' occurs twice"):
        parse_json(document, unique=True)
