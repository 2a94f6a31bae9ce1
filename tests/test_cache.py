"""The cache: pins, pruning; and plugins in trouble, whose files nobody else loses."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from zoo.cli.output import human_bytes
from zoo.errors import WeightsError, WeightsMissingError
from zoo.registry.card import Card, File, Provider, Weights
from zoo.registry.lookup import Found, Registry
from zoo.registry.settings import Settings
from zoo.weights.cache import blobs_dir, prune
from zoo.weights.delivery import locate

PAYLOAD = b"the bytes of some weights"
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()
CARD = """\
[[card]]
name = "net"
kind = "encoder"
modalities = ["image"]
build = "{package}.model:build"
{extra}
[[card.weights]]
tag = "t"
[[card.weights.file]]
sha256 = "{sha256}"
sources = ["{source}"]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lay a distribution onto `sys.path` and PYTHONPATH, as pip would leave it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))

    def lay(name: str, manifest: str | None, code: str = "", requires: str = "") -> None:
        package = f"zoodist_{name}"
        information = site / f"{package}-1.0.dist-info"
        information.mkdir()
        need = f"Requires-Dist: {requires}\n" if requires else ""
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zoodist-{name}\nVersion: 1.0\n{need}")
        (information / "entry_points.txt").write_text(f"[zoo]\n{name} = {package}\n")
        if manifest is None:
            (site / f"{package}.py").write_text(code)
            return
        (site / package).mkdir()
        (site / package / "__init__.py").write_text(code)
        (site / package / "zoo.toml").write_text(manifest)

    return lay


def manifest(package: str, sha256: str = SHA256, head: str = "", extra: str = "", source: str = "file:/nowhere") -> str:
    card = CARD.format(package=f"zoodist_{package}", sha256=sha256, extra=extra, source=source)
    return f'api = ">=1,<2"\n{head}\n{card}'


def registry(**settings) -> Registry:
    return Registry(Settings(**settings))


def row(*sources: str, sha256: str | None = SHA256) -> tuple[File, Found]:
    file = File(role="model", sha256=sha256, size_bytes=None, sources=sources)
    weights = Weights(tag="t", files=(file,))
    provider = Provider(plugin="p", distribution="d", version="1")
    card = Card(name="p/net", kind="encoder", modalities=("image",), provider=provider, weights=(weights,))
    return file, Found(card, weights)


def blob(content: bytes) -> Path:
    path = blobs_dir() / hashlib.sha256(content).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Plugins in trouble.

HOOK = "from zoo import hookimpl\n@hookimpl\ndef zoo_open_weights(source, destination, size_bytes):\n    {}\n"


@pytest.mark.parametrize(
    ("name", "code", "requires", "complaint"),
    [
        ("broken", "1/0\n", "", "plugin 'broken' (zoodist-broken 1.0) is broken: ZeroDivisionError"),
        ("incomplete", "", "no-such-distribution-x", "plugin 'incomplete' (zoodist-incomplete 1.0) is missing-extra"),
        ("raising", HOOK.format("return {}[source]"), "", "raised KeyError in its hook zoo_open_weights"),
        ("exiting", HOOK.format("raise SystemExit(3)"), "", "raised SystemExit in its hook zoo_open_weights"),
        (
            "lost",
            HOOK.format("return '/nowhere'"),
            "",
            "returned '/nowhere' from its hook zoo_open_weights, which is no file",
        ),
        ("numeric", HOOK.format("return 7"), "", "returned 7 from its hook zoo_open_weights, which is no file"),
    ],
)
def test_a_plugin_that_cannot_deliver_costs_only_its_own_source(
    install, tmp_path, name: str, code: str, requires: str, complaint: str
) -> None:
    install(name, manifest(name, head='schemes = ["far", "file", "pypi", "https"]'), code, requires)
    (tmp_path / "w").write_bytes(PAYLOAD)
    installed = registry()
    file, found = row(f"file:{tmp_path}/w")
    assert locate(file, found, registry=installed).path == tmp_path / "w"  # a scheme of the core asks no plugin
    file, found = row("far:away", f"file:{tmp_path}/w")
    assert locate(file, found, registry=installed).path == tmp_path / "w"
    file, found = row("far:away")
    with pytest.raises(WeightsMissingError) as caught:
        locate(file, found, registry=installed)
    assert complaint in str(caught.value)


def test_another_plugin_of_the_same_scheme_is_asked_next(install) -> None:
    install("aaa", manifest("aaa", head='schemes = ["far"]'), HOOK.format("destination.write_bytes(b'half'); return {}[1]"))
    install("bbb", manifest("bbb", head='schemes = ["far"]'), HOOK.format("return None"))
    install("ccc", manifest("ccc", head='schemes = ["far"]'), HOOK.format(f"destination.write_bytes({PAYLOAD!r}); return str(destination)"))  # fmt: skip
    file, found = row("far:away")
    assert locate(file, found, registry=registry()).path.read_bytes() == PAYLOAD


def test_defaults_are_fetched_beside_a_plugin_that_cannot_be_used(install, zoo, tmp_path) -> None:
    (tmp_path / "w").write_bytes(PAYLOAD)
    source = f"file:{tmp_path}/w"
    install("able", manifest("able", extra='default_for = ["see"]', source=source))
    install("gone", manifest("gone", extra='default_for = ["hear"]'))
    install("unable", manifest("unable", extra='default_for = ["transcribe"]'), requires="no-such-distribution-x")
    run = zoo("fetch", "--defaults", "--json", ZOO_PLUGINS="able,unable")
    assert run.returncode == 0, run.stderr
    assert [file["model"] for file in json.loads(run.stdout)["files"]] == ["able/net.t"]
    assert "zoo: nothing to fetch for 'transcribe': plugin 'unable' (zoodist-unable 1.0) is missing-extra" in run.stderr
    run = zoo("fetch", "--defaults", "--json", ZOO_PLUGINS="able,gone")  # a model that is lost leaves the others
    assert run.returncode == 1
    assert [file["model"] for file in json.loads(run.stdout)["files"]] == ["able/net.t"]
    assert "zoo: the model file of gone/net.t is not in the cache" in run.stderr
    run = zoo("fetch", "--defaults", ZOO_PLUGINS="unable")
    assert (run.returncode, "Traceback" in run.stderr) == (0, False)


# Pins.


def test_a_publisher_that_moved_on_is_named_with_the_cure(install, zoo, tmp_path) -> None:
    text = manifest("moving", source=f"file:{tmp_path}/w").replace(f'sha256 = "{SHA256}"\n', "")
    install("moving", text)
    (tmp_path / "w").write_bytes(PAYLOAD)
    assert zoo("fetch", "moving/net").returncode == 0
    (tmp_path / "w").write_bytes(b"another release")
    run = zoo("fetch", "moving/net")
    new = hashlib.sha256(b"another release").hexdigest()
    assert run.returncode == 1
    assert f"the hash seen at the first download was {SHA256}, the publisher now serves {new}" in run.stderr
    assert "to accept the new file: zoo cache --unpin moving/net.t" in run.stderr
    assert "Connect once" not in run.stderr
    run = zoo("cache", "--unpin", "moving/net.t")
    assert (run.returncode, "moving/net.t: model unpinned" in run.stdout) == (0, True)
    assert zoo("fetch", "moving/net").returncode == 0
    zoo("cache", "--unpin", "moving/net.t")
    assert "moving/net.t: nothing unpinned" in zoo("cache", "--unpin", "moving/net.t").stdout


@pytest.mark.parametrize("content", ["", '{"sources": ["file:', "[]", "7", '{"sha256": "../x"}', '{"sha256": 7}', "\x00"])
def test_a_pin_that_cannot_be_read_is_an_error_that_names_it(tmp_path, cache, content: str) -> None:
    (tmp_path / "w").write_bytes(PAYLOAD)
    file, found = row(f"file:{tmp_path}/w", sha256=None)
    locate(file, found, registry=registry())
    (pin,) = (cache / "pins").iterdir()
    pin.write_text(content)
    (tmp_path / "w").write_bytes(b"other bytes")
    with pytest.raises(WeightsError, match=f"{pin}, which records .* cannot be read .*zoo cache --unpin NAME"):
        locate(file, found, registry=registry())
    assert pin.read_text() == content


def test_a_pin_is_written_completely_or_not_at_all(tmp_path, cache, monkeypatch) -> None:
    (tmp_path / "w").write_bytes(PAYLOAD)
    file, found = row(f"file:{tmp_path}/w", sha256=None)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(WeightsError, match="killed"):
        locate(file, found, registry=registry())
    monkeypatch.undo()
    assert not list((cache / "pins").glob("*.json"))


# Pruning.


@pytest.mark.parametrize(
    ("name", "text", "requires", "settings"),
    [
        ("disabled", manifest("disabled"), "", {"disabled": ("disabled",)}),
        ("leftout", manifest("leftout"), "", {"only": ("modalzoo-text",)}),
        ("mistyped", manifest("mistyped", extra="unknown = 1"), "", {}),
        ("newer", manifest("newer").replace(">=1,<2", ">=7,<8"), "", {}),
        ("lacking", manifest("lacking"), "no-such-distribution-x", {}),
    ],
)
def test_pruning_keeps_the_files_of_plugins_that_may_be_back(install, name, text, requires, settings) -> None:
    install(name, text, requires=requires)
    kept, orphan = blob(PAYLOAD), blob(b"nobody's")
    assert prune(registry(**settings)) == len(b"nobody's")
    assert kept.exists()
    assert not orphan.exists()


def test_pruning_keeps_what_a_plugin_without_a_manifest_named_when_it_was_listed(install) -> None:
    file = {"sha256": SHA256, "sources": ["file:/nowhere"]}
    card = {"name": "n", "kind": "encoder", "modalities": ["image"], "weights": [{"tag": "t", "file": [file]}]}
    install("single", None, f"from zoo import hookimpl\n@hookimpl\ndef zoo_cards():\n    return [{card!r}]\n")
    kept = blob(PAYLOAD)
    with pytest.raises(WeightsError, match="plugin 'single' .zoodist-single 1.0. is disabled and has no manifest"):
        prune(registry(disabled=("single",)))  # it was never asked
    prune(registry())
    prune(registry(disabled=("single",)))
    assert kept.exists()


def test_pruning_deletes_nothing_while_a_manifest_or_a_pin_cannot_be_read(install, zoo, cache) -> None:
    install("cut", manifest("cut")[:60])
    (cache / "pins").mkdir(parents=True)
    (cache / "pins" / "x.json").write_text("{")
    orphan = blob(b"nobody's")
    run = zoo("cache", "--prune")
    assert run.returncode == 1
    for part in (
        "zoo: nothing was deleted, because it is not known which files are still needed",
        "the manifest of plugin 'cut' (zoodist-cut 1.0) cannot be read",
        f"{cache}/pins/x.json, which records",
        "To delete all the same: zoo cache --prune --force",
    ):
        assert part in run.stderr
    assert orphan.exists()
    assert zoo("cache", "--prune", "--force").returncode == 0
    assert not orphan.exists()
    assert zoo("cache", "--force").returncode == 2


def test_pruning_keeps_what_pins_refer_to(tmp_path, zoo) -> None:
    code = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=0, bind='127.0.0.1')"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "w").write_bytes(PAYLOAD)
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=tmp_path / "served",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        port = server.stdout.readline().split(" port ")[1].split()[0]
        file, found = row(f"http://127.0.0.1:{port}/w", sha256=None)
        located = locate(file, found, registry=registry())
        file, found = row(f"http://127.0.0.1:{port}/w")  # a hash that only a family's hook names
        assert locate(file, found, registry=registry()) == located
        server.terminate()
    assert prune(registry()) == 0
    assert located.path.exists()
    assert "p/net.t (pinned at first download)" in zoo("cache").stdout


def test_pruning_leaves_what_another_process_is_at(cache) -> None:
    live, dead = blobs_dir() / f"{'1' * 64}.0123.part", blobs_dir() / f"{'2' * 64}.0123.part"
    wheel = cache / "wheels" / f"{'3' * 64}.whl"
    for path in (live, dead, wheel):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")
    held = cache / "locks" / f"{'1' * 64}.lock"
    with FileLock(held), FileLock(cache / "locks" / f"wheel-{'3' * 64}.lock"):
        assert prune(registry()) == 3
    assert (live.exists(), dead.exists(), wheel.exists(), held.exists()) == (True, False, True, True)
    assert prune(registry()) == 6


def test_pruning_removes_folders_that_a_killed_pip_left(cache) -> None:
    old, young = cache / "wheels" / "tmpold", cache / "wheels" / "tmpyoung"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "big.whl").write_bytes(bytes(1000))
    yesterday = time.time() - 25 * 60 * 60
    for path in (old / "big.whl", old):
        os.utime(path, (yesterday, yesterday))
    assert prune(registry()) == 1000
    assert (old.exists(), young.exists()) == (False, True)


# A cache that cannot be used.


@pytest.mark.parametrize("command", [["classify", "PHOTO", "--labels", "cat,dog"], ["fetch", "timm/efficientnet_lite0"]])
def test_a_cache_folder_that_cannot_be_is_one_clear_line(zoo, photos, command) -> None:
    command = [str(photos / "chelsea.jpg") if word == "PHOTO" else word for word in command]
    run = zoo(*command, ZOO_CACHE="/dev/null/x", ZOO_OFFLINE="1")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("zoo: the cache folder /dev/null/x cannot be used (")
    assert "set ZOO_CACHE to a folder that you may write to" in run.stderr


# What is derived.


def test_what_takes_long_is_announced_once(cache, monkeypatch, capsys) -> None:
    import torch

    from zoo.weights import derived

    class Bell:
        """A timer whose time comes at once, or never."""

        rings = True

        def __init__(self, _: float, ring) -> None:
            self.ring = ring

        def start(self) -> None:
            if self.rings:
                self.ring()

        def cancel(self) -> None: ...

    monkeypatch.setattr(derived, "Timer", Bell)
    make = lambda: {"x": torch.ones(1)}  # noqa: E731 - shorter than the lines it is used on
    derived.derived("label embeddings", {"a": 1}, make)
    assert capsys.readouterr().err == "preparing label embeddings, once ...\n"
    derived.derived("label embeddings", {"a": 1}, make)  # kept
    monkeypatch.setattr(Bell, "rings", False)
    derived.derived("label embeddings", {"a": 2}, make)  # quick
    assert capsys.readouterr().err == ""


def test_the_listing_has_what_is_derived_and_wheels(cache, main) -> None:
    import torch

    from zoo.weights.derived import derived

    derived("label embeddings", {"a": 1}, lambda: {"x": torch.ones(1000)})
    (kept,) = (cache / "derived").iterdir()
    (cache / "derived" / "zz-damaged.safetensors").write_bytes(b"\xff" * 99)
    (cache / "wheels").mkdir()
    (cache / "wheels" / f"{'a' * 64}.whl").write_bytes(bytes(2000))
    document = json.loads(main("cache", "--json").stdout)
    assert document["derived"] == [
        {"file": kept.name, "bytes": kept.stat().st_size, "kind": "label embeddings"},
        {"file": "zz-damaged.safetensors", "bytes": 99, "kind": "unknown"},
    ]
    assert document["wheels"] == [{"file": f"{'a' * 64}.whl", "bytes": 2000}]
    text = main("cache").stdout
    assert "derived: label embeddings" in text
    assert f"1 wheels, 2.0 kB in {cache}/wheels" in text
    total = kept.stat().st_size + 99 + 2000
    assert f"3 files, {human_bytes(total)} in {cache}\n" in text, "as many as the table has rows"
    assert f"0 weights, 0 B in {cache}/blobs" in text
