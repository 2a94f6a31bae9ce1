"""Modules compiled by OpenVINO answer as the plain ones, or are the plain ones, with a reason."""

import copy
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zoo_openvino import compiled as compiled_file
from zoo_openvino import kept, library, trial
from zoo_openvino.compiled import MOST_TRIES
from zoo_openvino.difference import Difference, compare
from zoo_openvino.kernel import compile_module, openvino_kernel

import zoo
from zoo.api import CompileRequest, PluginError, UsageError

PHOTOS = Path(zoo.__file__).parent / "cli" / "demo" / "photos"
KEY = "0" * 64
TRIED_OUT = trial._run


class Small(nn.Module):
    """Images -> pooled features and a map."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, pixels):
        map_BCHW = self.conv(pixels).relu()
        return self.head(map_BCHW.mean((2, 3))), map_BCHW


class Read(nn.Module):
    """Token ids and a mask -> the mean of the real tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 6), nn.Linear(6, 4)

    def forward(self, ids, mask):
        weights = mask[:, :, None].float()
        return self.head((self.table(ids) * weights).sum(1) / weights.sum(1).clamp(min=1))


class Doubled(nn.Module):
    """What one operator makes of it."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, numbers):
        return self.operator(numbers)


def request(**arguments):
    return CompileRequest(key=KEY, threads=1, **arguments)


def compiled(module, precision="float32", **arguments):
    return openvino_kernel(precision=precision).compile(module, request(**arguments))


def texts(*lengths):
    width = max(lengths)
    generator = torch.Generator().manual_seed(len(lengths))
    return torch.randint(20, (len(lengths), width), generator=generator), torch.arange(width) < torch.tensor(lengths)[
        :, None
    ]


def close(given, expected):
    return all(torch.allclose(a, b, atol=1e-5) and a.dtype == b.dtype for a, b in zip(given, expected, strict=True))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Small graphs that do not crash need no process of their own; two tests and the module-wide fixture try theirs out."""
    monkeypatch.setattr(trial, "_run", lambda arguments: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def small(folder):
    """A module, its compiled form, and the pixels of its first call."""
    module, pixels = Small(), torch.randn(4, 3, 9, 7)
    fast = compiled(module, cache=folder)
    with torch.inference_mode():
        fast(pixels)
    return module, fast, pixels


def test_the_same_answers_for_any_batch(small):
    module, fast, pixels = small
    with torch.no_grad():
        expected = module(pixels)
    assert (fast.engine, fast.conversions) == ("openvino", 1)
    assert fast.difference.largest_relative < 1e-5
    assert fast.difference.cosine > 1 - 1e-9
    assert close(fast(pixels), expected)
    singles = [fast(pixel[None]) for pixel in pixels]
    assert close((torch.cat([single[0] for single in singles]), torch.cat([single[1] for single in singles])), expected)
    assert [output.shape for output in fast(pixels[:0])] == [(0, 5), (0, 8, 9, 7)]
    assert close(fast(pixels.to(memory_format=torch.channels_last)), expected)
    assert fast.conversions == 1


def test_outputs_are_nobody_elses(small):
    _, fast, pixels = small
    first, before = fast(pixels), [output.clone() for output in fast(pixels)]
    fast(pixels + 1)
    assert close(first, before)
    first[0].add_(1)
    assert close(fast(pixels), before)


def test_another_size_and_another_type(small):
    module, fast, pixels = small
    other = torch.randn(3, 3, 5, 5)
    with torch.no_grad():
        assert close(fast(other), module(other))
    assert (fast.conversions, fast.engine) == (2, "openvino")
    doubles = copy.deepcopy(module).double()
    fast_doubles = compiled(doubles)
    with torch.no_grad():
        assert close(fast_doubles(other.double()), doubles(other.double()))
    assert fast_doubles.engine == "torch"
    with pytest.raises(RuntimeError, match="expected scalar type|same dtype|type"):
        fast(pixels.double())


def test_what_is_not_finite_is_not_hidden(small):
    """OpenVINO's activations make numbers of NaN."""
    module, fast, pixels = small
    for value in (float("nan"), float("inf")):
        broken = pixels.clone()
        broken[1, 0, 3, 3] = value
        with torch.no_grad():
            for given, expected in zip(fast(broken), module(broken), strict=True):
                assert torch.equal(given.isfinite(), expected.isfinite())
        assert fast.engine == "torch"
    fast(pixels * 1e37)  # a sum that overflows is no infinity
    assert fast.engine == "openvino"
    lonely = compiled(Doubled(torch.relu))
    lonely(pixels)
    with pytest.raises(
        UsageError, match="Doubled was given NaN or infinity, which a module compiled by OpenVINO may turn into numbers"
    ):
        lonely(broken)


def test_inputs_without_a_batch_are_compiled_for_each_size():
    fast = compiled(Doubled(lambda numbers: numbers.sum()))
    with torch.no_grad():
        for count in (3, 4, 3):
            assert fast(torch.ones(count, 2)) == 2 * count
    assert (fast.engine, fast.conversions) == ("openvino", 2)


def test_threads_do_not_mix_their_answers(small):
    module, fast, _ = small
    inputs = [torch.full((2, 3, 9, 7), float(number)) for number in range(8)]
    with torch.no_grad():
        expected = [module(pixels) for pixels in inputs]
    right = [False] * len(inputs)

    def run(number):
        right[number] = all(close(fast(inputs[number]), expected[number]) for _ in range(20))

    workers = [threading.Thread(target=run, args=(number,)) for number in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(right)


def test_texts_of_any_length():
    module = Read()
    fast = compiled(module)
    with torch.no_grad():
        for lengths in [(3, 5), (5, 1, 2), (7, 2, 9), (1,), (4, 4)]:
            assert close([fast(*texts(*lengths))], [module(*texts(*lengths))])
    assert (fast.engine, fast.conversions) == ("openvino", 1)
    del module
    with pytest.raises(
        UsageError,
        match=r"Read is compiled for int64\[\*, \*\], bool\[\*, \*\] and its weights are released: got int64\[3\]",
    ):
        fast(torch.ones(3, dtype=torch.long))


def test_kept_graphs_are_not_converted_again(small, folder):
    module, _, pixels = small
    again = compiled(module, cache=folder)
    assert close(again(pixels), module(pixels))
    assert (again.engine, again.conversions) == ("openvino", 0)
    other = openvino_kernel().compile(module, CompileRequest(key="1" * 64, cache=folder))
    other(pixels)
    assert other.conversions == 1


@pytest.mark.parametrize("damaged", [kept.GRAPH, kept.WEIGHTS, kept.RECORD])
def test_a_damaged_graph_is_converted_anew(small, folder, damaged):
    module, _, pixels = small
    file = next(folder.glob(f"{KEY}*/{damaged}"))
    for entry in folder.glob(f"{KEY}*/{damaged}"):
        entry.write_bytes(b"x" + entry.read_bytes()[1:-1])
    mended = compiled(module, cache=folder)
    with pytest.warns(UserWarning, match=f"{damaged} is damaged: the module is converted anew"):
        assert close(mended(pixels), module(pixels))
    assert mended.conversions == 1
    assert file.parent.parent == folder
    assert not list(folder.glob(".*"))


def test_a_folder_that_cannot_be_written_costs_a_conversion_alone(small, tmp_path, monkeypatch):
    module, _, pixels = small
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    fast = compiled(module, cache=in_the_way / "graphs")
    with pytest.warns(UserWarning, match="a converted module is not kept in .*: it is converted again in each process"):
        assert close(fast(pixels), module(pixels))
    assert fast.engine == "openvino"

    class Full:
        @staticmethod
        def save_model(graph, path, **_):
            path.with_suffix(".bin").write_bytes(b"a part of it")
            raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(kept, "openvino", lambda: Full)
    with pytest.warns(UserWarning, match="iostream error"):
        assert kept.keep(None, tmp_path / "graphs" / "one") is None
    assert not list((tmp_path / "graphs").iterdir())


def test_what_one_precision_cannot_answer_another_can(small, tmp_path, monkeypatch):
    module, _, pixels = small
    folder = tmp_path / "graphs"
    rounded = compiled(module, precision="bf16", cache=folder)
    with monkeypatch.context() as patched:
        patched.setattr(compiled_file, "compare", lambda expected, outputs: compiled_file.NOTHING_COMMON)
        with pytest.warns(UserWarning, match="other values that are not finite"):
            assert close(rounded(pixels), module(pixels))
    assert rounded.engine == "torch"
    exact = compiled(module, cache=folder)
    assert close(exact(pixels), module(pixels))
    assert (exact.engine, exact.conversions) == ("openvino", 0), "by the graph that was kept"
    again = compiled(module, precision="bf16", cache=folder)
    with pytest.warns(UserWarning, match="other values that are not finite"):
        again(pixels)


def test_an_operator_without_a_rule_runs_in_torch():
    module, numbers = Doubled(torch.special.bessel_j0), torch.rand(3, 2)
    slow = compiled(module)
    with pytest.warns(
        UserWarning,
        match="Doubled runs in torch, not compiled by OpenVINO: OpenVINO has no rule for aten::special_bessel_j0",
    ):
        assert torch.equal(slow(numbers), module(numbers))
    assert (slow.engine, slow.conversions, slow.difference) == ("torch", 0, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(slow(numbers[:1]), module(numbers[:1]))
        assert torch.equal(slow(numbers[:, :1]), module(numbers[:, :1]))
    assert len(slow._forms) == 1  # it was tried once
    assert logging.getLogger("zoo").isEnabledFor(logging.WARNING), "the library leaves the root logger at ERROR"


@pytest.mark.parametrize(
    ("operator", "why"),
    [
        (lambda numbers: numbers * 2 if numbers.sum() > 3 else numbers, "reads a value of its inputs"),
        (lambda numbers: numbers[:, : int(numbers.argmax(1).max()) + 1], "reads a value of its inputs"),
        (lambda numbers: numbers * 2 if max(numbers.flatten().tolist()) > 0.5 else numbers, "reads a value of its inputs"),
        (lambda numbers: numbers * 2 if numbers.numpy().max() > 0.5 else numbers, "reads a value of its inputs"),
        (lambda numbers: numbers * 2 if len((numbers > 0.5).nonzero()) else numbers, "reads a value of its inputs"),
        (lambda numbers: numbers * 2 if numbers[numbers > 0.5].numel() else numbers, "reads a value of its inputs"),
        (lambda numbers: numbers * 2 if (numbers > 0.5).unique().numel() > 1 else numbers, "reads a value of its inputs"),
        (lambda numbers: {"a": numbers}, "it gives dict, expected a tensor or a tuple of tensors"),
        (lambda numbers: numbers + torch.rand_like(numbers), "its answer differs by"),
    ],
)
def test_what_a_compiled_form_would_answer_wrongly_runs_in_torch(operator, why):
    slow = compiled(Doubled(operator))
    with pytest.warns(UserWarning, match=f"Doubled runs in torch, not compiled by OpenVINO: .*{why}"):
        slow(torch.rand(3, 4))
    assert slow.engine == "torch"
    assert type(slow(torch.zeros(3, 4))) is type(operator(torch.zeros(3, 4)))


def test_a_batch_size_in_the_code_is_read_row_by_row():
    module = Doubled(lambda numbers: numbers + torch.arange(len(numbers) * 0 + 3.0).expand(len(numbers), 3))
    for first in (2, 3):
        fast = compiled(module)
        for rows in (first, 1, 5):
            numbers = torch.rand(rows, 3)
            assert torch.allclose(fast(numbers), module(numbers))
        assert fast.engine == "openvino"
        assert [form.layout.rows for form in fast._forms] == [True]


def test_a_length_in_the_code_is_compiled_for_each_length_and_not_without_end():
    module = Doubled(lambda ids: ids + torch.arange(int(ids.size(1))).expand(len(ids), int(ids.size(1))))
    fast = compiled(module)
    for length in (3, 4, 5, 3, 6, 7, 8, 9):
        ids = torch.ones(2, length, dtype=torch.long)
        assert torch.equal(fast(ids), module(ids))
    assert 4 <= fast.conversions <= MOST_TRIES
    del module  # the plain form is not released
    with pytest.warns(
        UserWarning, match=f"runs in torch, not compiled by OpenVINO: {MOST_TRIES} kinds of inputs were tried already"
    ):
        assert torch.equal(fast(ids[:, :2]), torch.tensor([[1, 2], [1, 2]]))
    assert torch.equal(fast(ids), torch.tensor([list(range(1, 10))] * 2))


def test_one_that_crashes_the_library_runs_in_torch(small, tmp_path, monkeypatch):
    module, _, pixels = small
    script = tmp_path / "crash.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(trial, "_SCRIPT", script)
    monkeypatch.setattr(trial, "_run", TRIED_OUT)
    for conversions in (1, 0):  # what was found out is kept beside the graph
        slow = compiled(module, cache=tmp_path / "graphs")
        slow._least = 2  # one form is enough
        with pytest.warns(
            UserWarning, match=r"Small runs in torch, not compiled by OpenVINO: OpenVINO crashes on it \(SIGSEGV\)"
        ):
            assert close(slow(pixels), module(pixels))
        assert (slow.engine, slow.conversions) == ("torch", conversions)
        script.write_text("")


def test_what_cannot_be_taken_is_refused(small):
    _, fast, pixels = small
    with pytest.raises(UsageError, match="gives no gradients: open the model without that kernel to train it"):
        fast(pixels.clone().requires_grad_())
    with pytest.raises(UsageError, match="takes tensors on the CPU, got one on meta"):
        fast(pixels.to("meta"))
    with pytest.raises(UsageError, match="takes tensors on the CPU, got ndarray"):
        fast(pixels.numpy())
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match="not copied or pickled: open the model again where it is needed"):
            copied(fast)


def test_requests_that_cannot_be_kept(monkeypatch):
    with pytest.raises(UsageError, match="precision is one of float32, bf16, int8, got 'int4'"):
        openvino_kernel(precision="int4")
    with pytest.raises(
        UsageError, match="kernel openvino-bf16 needs a processor that multiplies in bfloat16: take openvino"
    ):
        compile_module(Small(), request(), precision="bf16", has_bfloat16=False)
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        openvino_kernel().compile(Small(), CompileRequest(key=KEY, threads=0))
    monkeypatch.setattr("zoo_openvino.kernel.require_nncf", lambda: None)
    with pytest.raises(
        UsageError, match="precision int8 needs inputs to take the ranges of activations from: give calibration"
    ):
        compiled(Small(), precision="int8")
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    for name in ("openvino", "nncf"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(PluginError, match="openvino is not installed: pip install modalzoo-openvino"):
        compiled(Small())
    with pytest.raises(PluginError, match=r"nncf is not installed: pip install 'modalzoo-openvino\[int8\]'"):
        library.require_nncf()


def test_bf16_records_its_difference(small, folder):
    if not zoo.nn.multiplies_in_bfloat16():
        pytest.skip("this processor does not multiply in bfloat16")
    module, _, pixels = small
    fast = compiled(module, precision="bf16", cache=folder)
    outputs = fast(pixels)
    assert (fast.engine, fast.conversions) == ("openvino", 0)  # the graph is that of float32
    assert 1e-5 < fast.difference.largest_relative < 0.05
    assert all(output.dtype == torch.float32 for output in outputs)


def test_nothing_is_reported_to_the_makers():
    """The package that reports is never imported; where somebody else imported it, it stays."""
    code = (
        "import sys\nfrom zoo_openvino.library import openvino\nopenvino()\nassert 'openvino_telemetry' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_compare():
    one = torch.tensor([1.0, -2.0])
    assert compare((one,), (one,)) == Difference(1.0, 0.0)
    assert compare((one,), (one + torch.tensor([0.0, 0.5]),)).largest_relative == 0.25
    assert compare((one,), (one.double(),)).largest_relative == float("inf")
    assert compare((one,), (one[None],)).cosine == 0
    assert compare((one,), (torch.tensor([1.0, np.nan]),)).largest_relative == float("inf")
    assert compare((torch.tensor([1.0, np.nan]),), (torch.tensor([1.0, np.nan]),)) == Difference(1.0, 0.0)
    assert compare((torch.tensor([True]),), (torch.tensor([False]),)) == Difference(0.0, 1.0)
    assert compare((torch.zeros(2),), (torch.zeros(2),)) == Difference(1.0, 0.0)


class Logits(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels):
        return self.classifier.logits(pixels)


def test_real_weights(monkeypatch):
    """EfficientNet-Lite0 gives the classes that it gives in torch."""
    monkeypatch.setattr(trial, "_run", TRIED_OUT)
    module = zoo.build("timm/efficientnet_lite0.in1k").eval()
    photos = [Image.open(PHOTOS / f"{name}.jpg").convert("RGB") for name in ("chelsea", "coffee", "rocket", "sheep")]
    pixels = module.preprocess(photos)
    fast = compiled(Logits(module))
    with torch.inference_mode():
        expected, given = module.logits(pixels), fast(pixels)
    assert fast.engine == "openvino"
    assert torch.equal(given.argmax(1), expected.argmax(1))
    assert torch.allclose(given, expected, atol=1e-3)
    assert fast.difference.largest_relative < 1e-4


@pytest.mark.skipif("ZOO_SLOW_TESTS" not in os.environ, reason="NNCF takes ten seconds: ZOO_SLOW_TESTS=1 runs it")
def test_int8_from_photos(tmp_path, capfd):
    """Ranges from photos keep most classes; other photos are another graph; and nothing stands among the answers."""
    if find_spec("nncf") is None:  # not importorskip: imported by anybody but the kernel, it reports
        pytest.skip("NNCF is not installed")
    module = zoo.build("timm/efficientnet_lite0.in1k").eval()
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    pixels = module.preprocess(photos)
    calibration = [(pixel[None],) for pixel in pixels]
    for given, conversions in ((calibration, 1), (calibration, 0), (calibration[:4], 1)):
        fast = compiled(Logits(module), precision="int8", cache=tmp_path, calibration=given)
        with torch.inference_mode():
            agreement = (fast(pixels).argmax(1) == module.logits(pixels).argmax(1)).float().mean()
        assert (fast.engine, fast.conversions) == ("openvino", conversions)
        if given is calibration:  # ranges from four photos cut off what others need
            assert agreement > 0.7
            assert 1e-3 < fast.difference.largest_relative < 0.3
    assert capfd.readouterr() == ("", "")
    assert "openvino_telemetry" not in sys.modules
