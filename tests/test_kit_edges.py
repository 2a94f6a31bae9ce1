"""Checks of the kit on small modules of this process, each with one mistake that hides well, or with none and a rare shape."""

import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image, ImageFile
from tiny_decoder import tiny_decoder
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from zoo import Encoded
from zoo.errors import ManifestError, PluginError, WeightsError, WeightsMissingError
from zoo.models.precision import cast
from zoo.registry import child, surroundings
from zoo.registry.card import Card, Provider
from zoo.registry.lock import differences, read_lock, write_lock
from zoo.registry.lookup import Found, Registry
from zoo.registry.offers import Offers
from zoo.registry.settings import load_settings
from zoo.testing import CHECKS, compatibility, process
from zoo.testing.check import Result, run_check
from zoo.testing.runner import SINGLE_TIMEOUT_S, TIMEOUT_S, Report, _model_results, checks_for
from zoo.weights.formats.read import read_state_dict


class Good(nn.Module):
    """Bytes -> tokens, padded to the longest; 8 wide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 8)
        self.widen = nn.Linear(8, 8)

    def preprocess(self, items):
        rows = [torch.tensor(list(text.encode()[:64]) or [0]) for text in items]
        return pad_sequence(rows, batch_first=True), pad_sequence(
            [torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True
        )

    def forward(self, inputs):
        ids_BT, mask_BT = inputs
        tokens_BTD = self.widen(self.embed(ids_BT)) * mask_BT[..., None]
        return Encoded(tokens_BTD, mask_BT, tokens_BTD.sum(1) / mask_BT.sum(1, keepdim=True))


def subject_of(make: Any, **fields: Any) -> Any:
    """As much of a Subject as the checks of level numbers ask for; `make` makes the module."""
    provider = Provider(plugin="edges", distribution="edges", version="1")
    card = Card(**{"name": "edges/small", "kind": "encoder", "modalities": ("text",), "provider": provider, **fields})

    def opened(*, weights: Any = None, seed: int = 1, dtype: Any = None, device: str = "cpu") -> Any:
        torch.manual_seed(seed)
        module = make().to(device).eval()
        return SimpleNamespace(module=module if dtype is None else cast(module, dtype, card.keep_float32))

    built = opened()
    return SimpleNamespace(
        found=Found(card, None), built=built, module=built.module, open=opened, trained=False, can_be_built=True, listed=True, reads=card.modalities
    )  # fmt: skip


def result(check: str, make: Any, **fields: Any) -> tuple[str, str]:
    found = run_check(CHECKS[check], subject_of(make, **fields))
    return found.status, found.message


class LyingMask(Good):
    """Every position is real, and the mean goes over the padding too."""

    def preprocess(self, items):
        ids_BT, mask_BT = super().preprocess(items)
        return ids_BT, torch.ones_like(mask_BT)


class FixedLength(Good):
    """Always 16 tokens, as image encoders have them."""

    def preprocess(self, items):
        ids_BT, _ = super().preprocess([text[:16].ljust(16) for text in items])
        return ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)


class FixedLengthMixed(FixedLength):
    def forward(self, inputs):
        encoded = super().forward(inputs)
        return Encoded(encoded.tokens_BTD, encoded.mask_BT, encoded.pooled_BD - encoded.pooled_BD.mean(0))


def test_a_mask_that_lies_hides_no_padding() -> None:
    assert result("padding-changes-nothing", Good) == ("passed", "")
    status, message = result("padding-changes-nothing", LyingMask)
    assert (status, message) == (
        "failed",
        "text item 0 alone and beside longer ones: 3 and 64 of its tokens are real (mask_BT is False where one is padding)",
    )
    assert result("padding-changes-nothing", FixedLength) == (
        "skipped", "nothing is padded: text items of every size give as many tokens")  # fmt: skip
    status, message = result("padding-changes-nothing", FixedLengthMixed)
    assert (status, "beside longer ones: pooled vector differs by" in message) == ("failed", True)


class WithoutParameters(Good):
    def __init__(self) -> None:
        super().__init__()
        del self.embed, self.widen
        self.register_buffer("table_VD", torch.eye(256)[:, :8].contiguous())

    def forward(self, inputs):
        tokens_BTD = self.table_VD[inputs[0]] * inputs[1][..., None]
        return Encoded(tokens_BTD, inputs[1], tokens_BTD.sum(1) / inputs[1].sum(1, keepdim=True))


def test_a_model_without_parameters_has_no_gradient_to_want() -> None:
    assert result("gradient-reaches-every-parameter", WithoutParameters) == (
        "skipped", "it has no parameter that can be trained")  # fmt: skip
    assert result("gradient-reaches-every-parameter", Good) == ("passed", "")


class ParkedMask(Good):
    """What preprocess found out waits on the module for forward."""

    def preprocess(self, items):
        ids_BT, self.mask_BT = super().preprocess(items)
        return ids_BT

    def forward(self, inputs):
        return super().forward((inputs, self.mask_BT))


class ParkedAnswer(Good):
    """Parks only inside forward."""

    def forward(self, inputs):
        self.tokens_BTD = self.embed(inputs[0])
        for _ in range(4):
            self.tokens_BTD = self.widen(self.tokens_BTD)
        tokens_BTD = self.tokens_BTD * inputs[1][..., None]
        return Encoded(tokens_BTD, inputs[1], tokens_BTD.sum(1) / inputs[1].sum(1, keepdim=True))


class ParkedDecoder(nn.Module):
    tokenizer, context, vocabulary = property(lambda self: self.inner.tokenizer), 96, 258

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_decoder()

    def forward(self, tokens_BT, *, mask_BT=None, cache=None, at_BN=None):
        self.tokens_BT = tokens_BT
        time.sleep(0.001)
        return self.inner(self.tokens_BT, mask_BT=mask_BT, at_BN=at_BN)


@pytest.mark.parametrize("kind", [ParkedMask, ParkedAnswer])
def test_threads_that_meet_on_the_module_are_noticed(kind) -> None:
    before = sys.getswitchinterval()
    for _ in range(5):  # the same every time: nothing of it is luck
        status, message = result("works-in-threads", kind)
        assert status == "failed"
        assert "threads at once" in message or "one of them at test_kit_edges.py line " in message
    assert sys.getswitchinterval() == before


class Locked(Good):
    """Parks on the module too, and lets one thread in at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, inputs):
        with self.lock:
            self.inputs = inputs
            return super().forward(self.inputs)


def test_a_lock_is_waited_for() -> None:
    assert result("works-in-threads", Locked) == ("passed", "")


def test_threads_of_decoders_meet_too() -> None:
    assert result("works-in-threads", tiny_decoder, kind="decoder") == ("passed", "")
    status, message = result("works-in-threads", ParkedDecoder, kind="decoder")
    assert (status, " in 2 threads, one of them at " in message or "in 4 threads at once" in message) == ("failed", True)


def test_a_good_model_works_in_threads() -> None:
    assert result("works-in-threads", Good) == ("passed", "")


class Float32Only(Good):
    def forward(self, inputs):
        if self.widen.weight.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return super().forward(inputs)


class Float16Breaks(Good):
    def forward(self, inputs):
        if self.widen.weight.dtype == torch.float16:
            self.widen.weight.data.zero_()
        return super().forward(inputs)


def test_what_the_card_declares_is_what_is_tried() -> None:
    check = "dtype-and-device-can-change"
    assert result(check, Good) == ("passed", "")
    assert result(check, Good, dtypes=("float32", "bfloat16", "float16"), devices=("cpu",)) == ("passed", "")
    assert result(check, Float32Only) == ("failed", "it raised RuntimeError: float32 only")
    assert result(check, Float32Only, dtypes=("float32",)) == ("passed", "")
    assert result(check, Float16Breaks) == ("passed", "")
    status, message = result(check, Float16Breaks, dtypes=("bfloat16", "float16"))
    assert (status, "in float16 its tokens has cosine" in message) == ("failed", True)
    assert result(check, Good, dtypes=("int3",)) == (
        "failed", "the card names the dtype 'int3', a model can be cast to float32, bfloat16 or float16")  # fmt: skip
    assert result(check, Good, devices=("abacus",)) == (
        "failed", "the card names the device 'abacus', which torch does not know")  # fmt: skip
    assert result(check, Good, devices=("meta",)) == (
        "skipped", "the card names the devices meta, and none of them is here")  # fmt: skip


def test_an_encoders_embedding_width_is_that_of_its_pooled_vectors() -> None:
    assert result("shapes-as-declared", Good, embedding_width=8) == ("passed", "")
    assert result("shapes-as-declared", Good, embedding_width=999) == (
        "failed", "pooled vectors are [3, 8], the card says embedding_width = 999 of 3 items")  # fmt: skip


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("hide", "where"),
    [
        (lambda tensor: {"a": [tensor]}, "extra['a'][0] is a tensor"),
        (lambda tensor: Holder({"b": (1, tensor)}), "extra.value['b'][1] is a tensor"),
        (lambda tensor: deque([Slotted(tensor)]), "extra[0].value is a tensor"),
        (lambda tensor: Holder(nn.Linear(2, 2)), "extra.value is a module that is not registered"),
        (lambda tensor: [nn.ReLU()], "extra[0] is a module that is not registered"),
        (lambda tensor: Holder(nn.ReLU()), ""),  # of a transform, say: it has nothing to save or to move
    ],
)
def test_hidden_tensors_are_found_at_any_depth(hide, where) -> None:
    class Hiding(Good):
        def __init__(self) -> None:
            super().__init__()
            self.extra = hide(torch.ones(3))
            self.loop = Holder(self)  # leads back to the module, and to what it registered
            self.loop.also = [self.loop, self.widen, self.widen.weight]

    status, message = result("everything-is-registered", Hiding)
    assert (status, message.startswith(where)) == ("failed" if where else "passed", True), message


def _changed() -> None:
    """What no check of the first kit noticed."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    Image.MAX_IMAGE_PIXELS = None
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.enabled = False
    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    torch.load = lambda *arguments, **more: None
    torch.serialization.save = torch.save = lambda *arguments, **more: None
    logging.disable(logging.CRITICAL)
    logging.getLogger().addHandler(logging.NullHandler())
    socket.setdefaulttimeout(3)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.setrecursionlimit(54321)


def test_everything_of_the_process_is_watched_and_put_back() -> None:
    before, load = surroundings.snapshot(), torch.load
    _changed()
    try:
        words = surroundings.changes(before)
    finally:
        restored = surroundings.restore(before)
    assert words == restored
    said = "; ".join(words)
    for part in (
        "Pillow's refusal of truncated images from False to True", "Pillow's limit of pixels from 89478485 to None",
        "torch's float32 matmul precision from highest to medium", "torch's use of oneDNN from True to False",
        "torch's use of cuDNN from True to False", "cuDNN's choice of algorithms by trial", "cuDNN's deterministic algorithms",
        "the function torch.load", "the function torch.save", "the level up to which all logging is off from 0 to 50",
        "the handlers or the level of the root logger", "the default timeout of sockets from None to 3.0",
        "the signal handlers (SIGUSR1)", "the recursion limit from",
    ):  # fmt: skip
        assert part in said, said
    assert surroundings.changes(before) == []
    assert torch.load is load
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_what_was_not_loaded_before_is_compared_with_what_it_would_have_been() -> None:
    code = (
        "from zoo.registry.surroundings import *\nbefore = snapshot()\n"
        "import sys; assert not {'torch', 'PIL.Image', 'socket', 'logging'} & {*sys.modules}\n"
        "import torch, logging, socket\nfrom PIL import Image, ImageFile\nprint(changes(before))\n"
        "load = torch.load\ntorch.load = print\nImage.MAX_IMAGE_PIXELS = None\ntorch.set_default_dtype(torch.float64)\n"
        "socket.setdefaulttimeout(3)\nlogging.basicConfig()\n"
        "print(restore(before))\nassert torch.load is load\nassert torch.get_default_dtype() is torch.float32"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nothing, restored = run.stdout.splitlines()
    assert nothing == "[]"
    for part in ("the function torch.load", "limit of pixels", "timeout of sockets", "root logger", "to torch.float64"):
        assert part in restored


def test_a_replaced_torch_load_reads_no_weights(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2)}, path)
    monkeypatch.setattr(torch, "load", lambda *arguments, **more: pytest.fail("it was called"))
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))
    monkeypatch.setattr(torch.serialization, "load", lambda *arguments, **more: pytest.fail("it was called"))
    with pytest.raises(WeightsError, match=r"torch\.load was replaced by .*test_kit_edges.*use the weights as safetensors"):
        read_state_dict(path)


class LazyLambda(Good):
    """Cannot be pickled once it has run."""

    def forward(self, inputs):
        self.act = lambda tokens: tokens
        return super().forward(inputs)


class NotAfterFork(Good):
    def __init__(self) -> None:
        super().__init__()
        self.process = os.getpid()

    def forward(self, inputs):
        if self.process != os.getpid():
            raise RuntimeError("no second process,\nplease")
        return super().forward(inputs)


class DiesAfterFork(NotAfterFork):
    def forward(self, inputs):
        if self.process != os.getpid():
            os.kill(os.getpid(), signal.SIGKILL)
        return Good.forward(self, inputs)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Good, ""),
        (NotAfterFork, "in a forked process it raised RuntimeError: no second process, please"),
        (DiesAfterFork, "the forked process ended with SIGKILL"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_says_what_went_wrong(monkeypatch, kind, problem) -> None:
    subject = subject_of(kind)
    monkeypatch.setattr(process, "subject_here", lambda fields: subject)
    said, there, here = process._fork_here({})
    assert said == problem
    assert (there == here) is (problem == "")
    monkeypatch.setattr(process, "_in_child", lambda function, subject: [said, there, here])
    found = run_check(CHECKS["works-after-fork"], subject)
    assert (found.status, found.message) == ("failed" if problem else "passed", problem)


def test_it_is_sent_to_a_spawned_process_as_it_is_after_a_run(monkeypatch) -> None:
    monkeypatch.setattr(process, "subject_here", lambda fields: subject_of(LazyLambda))
    with pytest.raises(Exception, match="(?i)pickle.*lambda|lambda"):
        process._spawn_here({})


NEST = """
import os, subprocess, sys, time
from pathlib import Path
from zoo.registry import child

class Patient(subprocess.Popen):
    # Its time begins when the innermost process has said who it is, however long a busy machine takes to start it.

    def communicate(self, input=None, timeout=None):
        while timeout is not None and not Path(os.environ["PIDS"]).exists():
            try:
                return super().communicate(input, 0.05)
            except subprocess.TimeoutExpired:
                input = None
        return super().communicate(input, timeout)

child.subprocess.Popen = Patient

def outer(folder):
    return child.call("nest:inner", folder, timeout_s=1000).exit_code

def outer_in_time(folder):
    outcome = child.call("nest:inner", folder, timeout_s=1)
    return outcome.end

def inner(folder):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Path(folder, "new").write_text(f"{os.getpid()} {other.pid}")
    Path(folder, "new").rename(os.environ["PIDS"])
    time.sleep(1000)
"""


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("function", "timeout_s"), [("outer", 1), ("outer_in_time", 300)])
def test_nothing_survives_a_timeout(tmp_path, monkeypatch, function, timeout_s) -> None:
    (tmp_path / "nest.py").write_text(NEST)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setattr(subprocess, "Popen", subprocess.Popen)  # the module puts another in its place
    importlib.import_module("nest")
    outcome = child.call(f"nest:{function}", str(tmp_path), timeout_s=timeout_s)
    del sys.modules["nest"]
    assert outcome.value == (None if function == "outer" else "did not end in time")
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 60
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if _runs(pid)] == []


def test_checks_that_do_not_survive_together_are_run_one_by_one_and_said(monkeypatch) -> None:
    calls, said = [], []

    def call(target, argument, *, timeout_s):
        calls.append((len(argument["checks"]), timeout_s))
        if len(calls) in (1, 3):
            return child.Outcome(None, None, "what it said last\n")
        (name,) = argument["checks"]
        return child.Outcome([vars_of(Result(name, CHECKS[name].level, "passed"))], 0, "")

    def vars_of(one: Result) -> dict[str, Any]:
        return {key: getattr(one, key) for key in ("check", "level", "status", "message", "seconds")}

    monkeypatch.setattr(child, "call", call)
    subject = subject_of(Good)
    plugin = SimpleNamespace(cards=(), offers=Offers())
    results = _model_results(subject.found, plugin, None, said.append)
    assert calls[0] == (len(results), TIMEOUT_S)
    assert {limit for count, limit in calls[1:]} == {SINGLE_TIMEOUT_S, SINGLE_TIMEOUT_S + process.TIMEOUT_S}
    assert [one.message for one in results if one.status == "failed"] == [
        "it did not survive this check, which did not end in time (60 s): what it said last"
    ]
    assert said[1] == f"edges/small again, each check by itself: {results[0].check} passed"
    assert len(said) == len(results) + 1


def test_memory_is_measured_from_a_large_process_too(tmp_path) -> None:
    """rusage counts what the process was before exec: the child of a large one seemed to need nothing."""
    (tmp_path / "measure.py").write_text(
        "from zoo.registry.timing import _measured\nkept = []\n"
        "def grown_mb(mb):\n    return _measured(lambda: kept.append(b'x' * (mb << 20)))[1]\n"
    )
    code = (
        f"import sys\nsys.path.append({str(tmp_path)!r})\nballast = b'x' * (300 << 20)\n"
        "from zoo.registry import child\nprint(child.call('measure:grown_mb', 100, timeout_s=60).value)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 90 < float(run.stdout) < 120


def can_of(kind: Any, monkeypatch: pytest.MonkeyPatch, **plugin: Any) -> list[compatibility.Answer]:
    subject = subject_of(kind)
    fields = {"state": "ok", "error": "", "cure": "", "distribution": "edges", "version": "1", **plugin}
    registry: Any = SimpleNamespace(
        find=lambda name: subject.found, owner=lambda card: SimpleNamespace(**fields), tried_again=lambda plugin: plugin
    )
    monkeypatch.setattr(compatibility, "Subject", lambda *arguments: subject)
    return compatibility.can("edges/small", dtype="bfloat16", registry=registry)


def test_what_is_missing_here_is_no_no(monkeypatch) -> None:
    def absent() -> nn.Module:
        try:
            raise ModuleNotFoundError("No module named 'soundfile'")
        except ModuleNotFoundError as error:
            raise PluginError(
                "edges 1 is missing-extra: No module named 'soundfile'; pip install 'edges[audio]'"
            ) from error

    subject = subject_of(Good)
    for error, words in (
        (None, "pip install 'edges[audio]'"),
        (WeightsMissingError("merges.txt is not here; run: zoo fetch edges/small"), "zoo fetch edges/small"),
    ):

        def opened(*, error=error, **more: Any) -> Any:
            if error is None:
                absent()
            raise error

        subject.open = opened
        answer = compatibility._in_format("bfloat16", subject, verify=True)
        assert (answer.can, answer.how, words in answer.reason) == (None, "unknown", True)
    answers = can_of(
        Good, monkeypatch, state="missing-extra", error="soundfile is not installed", cure="pip install 'edges[audio]'"
    )
    assert [(answer.can, answer.how, answer.reason) for answer in answers] == [
        (None, "unknown", "soundfile is not installed; pip install 'edges[audio]'"), (None, "unknown", "not tried")]  # fmt: skip
    assert can_of(Float32Only, monkeypatch)[1].can is False
    broken = can_of(Good, monkeypatch, state="broken", error="it raised", cure="mend it")[0]
    assert (broken.can, broken.how, broken.reason) == (False, "declared", "it raised; mend it")


def test_a_decoder_without_its_tokenizers_file_is_tried_all_the_same(monkeypatch) -> None:
    def without_tokenizer() -> nn.Module:
        module = tiny_decoder()
        module.tokenizer = None
        return module

    subject = subject_of(without_tokenizer, kind="decoder")
    answer = compatibility._in_format("bfloat16", subject, verify=True)
    assert (answer.can, answer.how) == (True, "verified"), answer
    for check in ("batch-equals-singles", "extreme-input-stays-finite"):
        assert run_check(CHECKS[check], subject).status == "passed"


@pytest.mark.parametrize(
    ("answers", "verdict"), [((True, True), True), ((True, None), None), ((None, False), False), ((True, False), False)]
)
def test_the_verdict_of_zoo_can_is_null_when_nobody_knows(main, monkeypatch, answers, verdict) -> None:
    found = [compatibility.Answer("plugin", can, "declared", "") for can in answers]
    monkeypatch.setattr(compatibility, "can", lambda *arguments, **more: found)
    run = main("can", "text/minilm-tiny", "--json")
    assert json.loads(run.stdout)["can"] is verdict
    assert run.returncode == (0 if verdict else 1)


class WithoutMethods(nn.Module):
    def forward(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("encoder", "preprocess"),
        ("dual_encoder", "logit_scale, preprocess, encode, embed, features"),
        ("bridge", "output_width"),
        ("decoder", "context, vocabulary, tokenizer, new_cache"),
        ("transcriber", "sample_rate_hz, languages, options, windows"),
    ],
)
def test_the_missing_methods_of_a_kind_are_named(kind: str, lacking: str) -> None:
    assert result("contract-is-kept", WithoutMethods, kind=kind) == (
        "failed", f"WithoutMethods lacks {lacking} (zoo/models/contracts.py)")  # fmt: skip


def test_a_modality_without_samples_is_skipped_by_every_check_that_runs_a_model() -> None:
    """Also by those that start processes, in which it would be an error."""
    for check in checks_for("encoder", ("series",)):
        if check.level in ("numbers", "process", "fusion") and check.name != "everything-is-registered":
            found = run_check(check, subject_of(Good, modalities=("series",)))
            assert (found.status, found.message) == ("skipped", "the kit has no samples of series yet"), check


def test_what_no_check_could_try_has_not_passed() -> None:
    passed, skipped, failed = (Result("any", "manifest", status) for status in ("passed", "skipped", "failed"))
    for results, verdict in (
        ({"plugin": (passed,), "a/one": (passed, skipped)}, "passed"),
        ({"plugin": (passed,), "a/one": (skipped,)}, "unknown"),
        ({"plugin": (passed,), "a/one": ()}, "unknown"),
        ({"plugin": (passed,), "a/one": (skipped,), "a/two": (failed,)}, "failed"),
    ):
        report = Report(plugin="a", distribution="a", version="1", files_sha256=None, results=results)
        assert (report.verdict, report.passed) == (verdict, verdict == "passed")
        assert report.badge()["verdict"] == verdict


def test_zoo_check_fails_where_nothing_was_tried(main, monkeypatch) -> None:
    (skipped,) = (Result("any", "manifest", "skipped", "the kit has no checks for the kind generator yet"),)
    report = Report(plugin="a", distribution="a", version="1", files_sha256=None, results={"a/one": (skipped,)})
    monkeypatch.setattr("zoo.testing.runner.check_plugin", lambda *_, **__: report)
    run = main("check", "text")
    assert run.returncode == 1
    assert run.stdout.endswith("a 1, files sha256 None: unknown (of a/one nothing was tried)\n")


LOCK = """format = 1
zoo = "0.1.0"
python = "3.11"
torch = "2.11.0"
[[plugin]]
name = "text"
distribution = "modalzoo-text"
version = "1"
enabled = true
files_sha256 = ""
[pins]
[defaults]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('version = "1"\n', "", "version of [[plugin]] 1 is missing, expected a string"),
        ('version = "1"', "version = 1", "version of [[plugin]] 1 must be a string, got 1"),
        ("enabled = true", 'enabled = "yes"', "enabled of [[plugin]] 1 must be true or false, got 'yes'"),
        ("[[plugin]]", "[plugin]", "plugin must be an array of tables, got {'name': 'text', "),
        ("[pins]", "[odd]", "pins is missing, expected a table"),
        ("[pins]", "[pins]\ntext = 3", "pins.text must be a string, got 3"),
        ('torch = "2.11.0"\n', "", "torch is missing, expected a string"),
        ('python = "3.11"', "python = 3.11", "python must be a string, got 3.11"),
        ("[defaults]", "", "defaults is missing, expected a table"),
    ],
)
def test_a_lock_file_that_was_edited_badly_names_the_key(tmp_path, old, new, said) -> None:
    path = tmp_path / "zoo.lock"
    path.write_text(LOCK)
    assert read_lock(path)["plugin"][0]["name"] == "text"
    path.write_text(LOCK.replace(old, new))
    with pytest.raises(ManifestError) as caught:
        read_lock(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert str(caught.value).endswith("; write it anew with: zoo lock")


def test_another_python_is_a_difference(tmp_path) -> None:
    registry, path = Registry(load_settings()), tmp_path / "zoo.lock"
    write_lock(registry, path)
    assert differences(registry, path) == []
    version = ".".join(map(str, sys.version_info[:2]))
    path.write_text(path.read_text().replace(f'python = "{version}"', 'python = "2.7"'))
    assert differences(registry, path) == [f"python is {version}, locked is 2.7"]
    with pytest.raises(ManifestError, match=r"the lock file cannot be read \(Is a directory\)"):
        read_lock(tmp_path)
