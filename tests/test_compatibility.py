"""`zoo can`: answered from the cards, then by a trial with random weights; nothing is downloaded."""

import json

import pytest
import torch

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
        ("plugin", "declared"), ("device cpu", "verified"), ("dtype bfloat16", "verified")]  # fmt: skip
    assert not list(tmp_path.glob("blobs/*"))


def test_what_nobody_provides_is_no(zoo) -> None:
    run = zoo("can", "text/minilm-tiny", "--adapter", "loras", "--kernel", "text/minilm-tiny")
    assert run.returncode == 1
    assert (
        "adapter loras            no      declared  no installed plugin provides it; adapters are adapters/dora, "
        in run.stdout
    )
    assert "kernel text/minilm-tiny  no      declared  text/minilm-tiny is of kind encoder" in run.stdout


def test_an_adapter_is_for_the_kinds_that_its_card_names() -> None:
    (_, answer) = can("text/minilm-tiny", adapter="lora")
    assert (answer.can, answer.how) == (True, "declared")
    (_, answer) = can("text/minilm-tiny", adapter="prefix")
    assert answer.can is False
    assert answer.reason == "adapters/prefix applies to decoder"


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
