"""`zoo can`: answered from the cards, then by a trial with random weights; nothing is downloaded."""

import json
import os

import pytest
import torch

import zoo as library
from zoo.errors import UnknownNameError, UsageError
from zoo.testing.compatibility import can


def test_yes_with_a_trial_and_without_a_download(zoo, tmp_path) -> None:
    run = zoo(
        "can",
        "text/all-minilm-l6-v2",
        "--dtype",
        "bfloat16",
        "--device",
        "cpu",
        "--json",
        ZOO_CACHE=str(tmp_path),
        ZOO_OFFLINE="1",
    )
    document = json.loads(run.stdout)
    assert (run.returncode, document["can"]) == (0, True)
    assert [(answer["question"], answer["how"]) for answer in document["answers"]] == [
        ("plugin", "declared"), ("device cpu", "verified"), ("dtype bfloat16", "verified"), ("device cpu, dtype bfloat16", "verified"),
    ]  # fmt: skip
    assert not list(tmp_path.glob("blobs/*"))


def test_what_nobody_provides_is_no(zoo) -> None:
    run = zoo("can", "text/minilm-tiny", "--adapter", "loras", "--kernel", "text/minilm-tiny")
    assert run.returncode == 1
    assert (
        "adapter loras            no      declared  no installed plugin provides it; adapters are adapters/dora, "
        in run.stdout
    )
    assert (
        "kernel text/minilm-tiny  no      declared  text/minilm-tiny is of kind encoder; a kernel is one of float32, absmax, "
        in run.stdout
    )


def test_what_can_be_alone_is_tried_together() -> None:
    """Each of two may be possible, and both at once not: DoRA needs the length of each row, which a rounded weight does not keep."""
    *apart, together = can("smollm/tiny", adapter="lora", kernel="int4", device="cpu")
    assert all(answer.can for answer in apart)
    assert (together.question, together.can) == ("adapter lora, kernel int4, device cpu", True)
    *apart, together = can("smollm/tiny", adapter="dora", kernel="int4")
    assert all(answer.can for answer in apart)
    assert (together.can, together.how) == (False, "verified")
    assert "runs by a kernel (Int4Linear), which rounds its weight for good" in together.reason
    assert len(can("smollm/tiny", adapter="lora", kernel="int4", verify=False)) == 3, "nothing was tried"


def test_an_adapter_is_tried_where_its_card_allows_it() -> None:
    (_, answer) = can("text/minilm-tiny", adapter="lora")
    assert (answer.can, answer.how) == (True, "verified")
    assert answer.reason.startswith("run with random weights under a new one, which trains ")
    (_, answer) = can("text/minilm-tiny", adapter="prefix")
    assert (answer.can, answer.how, answer.reason) == (False, "declared", "adapters/prefix applies to decoder")
    (_, answer) = can("perceiver/mlp-tiny", adapter="lora")
    assert (answer.can, answer.how) == (False, "verified"), (
        "its card says bridges, and this one has no layer of those names"
    )
    assert answer.reason.startswith("no layer is called 'query': this model has")
    (_, answer) = can("text/minilm-tiny", adapter="lora", verify=False)
    assert (answer.can, answer.reason.endswith("; not tried")) == (True, True)


@pytest.mark.parametrize(
    ("name", "kernel", "expected"),
    [
        ("smollm/tiny", "int4", (True, "verified")),
        pytest.param(
            *("whisper/random", "int8", (True, "verified")),
            marks=pytest.mark.skipif(os.environ.get("ZOO_SLOW_TESTS") != "1", reason="a minute: ZOO_SLOW_TESTS=1"),
        ),
        ("text/minilm-tiny", "int8", (True, "verified")),
        ("perceiver/mlp-tiny", "int8", (False, "declared")),
        ("smollm/tiny", "nf3", (False, "declared")),
    ],
)
def test_a_kernel_is_tried_with_what_runs_by_kernels(main, name: str, kernel: str, expected: tuple[bool, str]) -> None:
    (_, answer) = can(name, kernel=kernel)
    assert (answer.can, answer.how) == expected, answer
    assert main("can", name, "--kernel", kernel).returncode == (0 if expected[0] else 1)


def test_a_kernel_that_would_change_nothing_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder without a linear layer ran as it was under the name of the kernel."""
    monkeypatch.setattr("zoo.models.kernels.apply_layers", lambda module, _: module)
    (_, answer) = can("smollm/tiny", kernel="int8")
    words = "smollm/tiny has no linear layer that kernel int8 could run: leave it out"
    assert (answer.can, answer.reason) == (False, words)
    with pytest.raises(UsageError, match=words):
        library.generate("a", model=library.ModelSpec("smollm/tiny", weights=None, kernel="int8"))


def test_what_nobody_runs_is_unknown(main) -> None:
    (_, answer) = can("adapters/lora", dtype="bfloat16")
    assert (answer.can, answer.how) == (None, "unknown")
    assert main("can", "adapters/lora", "--dtype", "bfloat16").returncode == 1


def test_declared_only_says_unknown() -> None:
    answers = can("text/minilm-tiny", dtype="float16", verify=False)
    assert [(answer.can, answer.how) for answer in answers] == [(True, "declared"), (None, "unknown")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there() -> None:
    (_, answer) = can("text/minilm-tiny", device="cuda")
    assert answer.can is False
    assert answer.reason.startswith("not on this machine: ")


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UnknownNameError, match="did you mean text/minilm-tiny"):
        can("minilm-tin")
    with pytest.raises(UsageError, match="dtype is one of float32, bfloat16, float16; got 'int8'"):
        can("text/minilm-tiny", dtype="int8")
