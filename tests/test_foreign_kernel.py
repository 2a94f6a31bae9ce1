"""A kernel of a stranger's, one file and one card, installed: it passes the kit, runs the commands, takes adapters, is saved and opened."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest_shared import DISTS, make_environment

USE = """
import torch
import zoo

torch.manual_seed(0)
spec = zoo.ModelSpec("smollm/tiny", weights=None)
made = zoo.quantize(spec, "int6", skip=["head"], out="six")
assert set(made.layers.values()) == {"int6"}, made.layers
adapters = zoo.adapt(made.built, "lora", name="own")
tokens = torch.randint(0, 200, (2, 7))
loss = made.built.module(tokens).square().mean()
loss.backward()
assert all(parameter.grad is not None for parameter in adapters.parameters()), "gradients pass its layers"
with torch.inference_mode():
    before = made.built.module(tokens)
    for parameter in adapters.parameters():
        parameter.add_(0.1)
    changed = made.built.module(tokens)
adapters.use()
opened = zoo.open_model("six")
with torch.inference_mode():
    assert torch.equal(opened.module(tokens), made.built.module(tokens))
assert not torch.equal(before, changed)
print(zoo.generate("a", model="six", max_tokens=4).provenance.kernel)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_environment(tmp_path_factory.mktemp("sixbits") / "env", [DISTS / "zoodist-sixbits"]))


def run(python: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_it_passes_the_kit(python: str) -> None:
    checked = run(python, "-m", "zoo", "check", "sixbits", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    results = {result["check"]: result["status"] for result in json.loads(checked.stdout)["results"]["sixbits/int6"]}
    assert len(results) == 9
    assert set(results.values()) == {"passed"}


def test_it_is_kept_opened_and_adapted(python: str, tmp_path: Path) -> None:
    used = run(python, "-W", "ignore", "-c", USE, cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    assert used.stdout == "sixbits/int6\n"


def test_commands_run_by_it(python: str, photos: Path) -> None:
    text = run(
        python, "-m", "zoo", "generate", "The capital of France is", "--kernel", "int6", "--max-tokens", "2", "--json"
    )
    assert text.returncode == 0, text.stderr
    document = json.loads(text.stdout)
    assert (document["kernel"], document["results"][0]["text"]) == ("int6", " Paris.")
    photo = run(
        python,
        "-m",
        "zoo",
        "classify",
        str(photos / "chelsea.jpg"),
        "--labels",
        "a cat,a dog",
        "--kernel",
        "sixbits/int6",
        "--json",
    )
    assert photo.returncode == 0, photo.stderr
    document = json.loads(photo.stdout)
    assert (document["kernel"], document["results"][0]["label"]) == ("sixbits/int6", "a cat")
