"""A method of a stranger's, one file and one card, installed: it passes the kit, and shares a batch with ours."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest_shared import DISTS, make_environment

MIX = """
import torch
import zoo
from zoo.adapters.adapt import adapters_of
from zoo.decoding.generation import generate

torch.manual_seed(0)
model = zoo.build("lm/llama-tiny", weights=None)
names = []
for method, options in (("vera", {"r": 8}), ("lora", {}), ("vera/vera", {"targets": "all-linear"}), ("ia3", {}), ("prefix", {"count": 3})):
    names.append(f"{method} {len(names)}")
    zoo.adapt(model, method, name=names[-1], activate=False, **options)
adapters = adapters_of(model)
with torch.no_grad():
    for name in names:
        for parameter in adapters[name].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
names.append(None)
prompts = [model.tokenizer.encode("a stranger's method"[: 4 + 2 * number]) for number in range(len(names))]
together = generate(model, prompts, max_tokens=6, adapters=names)
alone = [generate(model, [prompt], max_tokens=6, adapters=[name])[0] for prompt, name in zip(prompts, names)]
assert [one.ids for one in together] == [one.ids for one in alone]
assert len({one.ids for one in together}) > 3
adapters.use(names[0])
before = [generate(model, [prompts[0]], max_tokens=6)[0].ids]
adapters.merge()
assert [generate(model, [prompts[0]], max_tokens=6)[0].ids] == before
adapters.unmerge()
adapters.save(names[0], "own.safetensors")
adapters.load("own.safetensors", name="read")
assert [generate(model, [prompts[0]], max_tokens=6)[0].ids] == before
print(adapters.describe())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_environment(tmp_path_factory.mktemp("vera") / "env", [DISTS / "zoodist-vera"]))


def test_it_passes_the_kit(python: str) -> None:
    run = subprocess.run([python, "-m", "zoo", "check", "vera", "--json"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    document = json.loads(run.stdout)
    assert "rows-keep-their-own" in run.stdout
    assert document


def test_its_rows_are_mixed_with_ours(python: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [python, "-c", MIX],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert "parameters are trained" in run.stdout


def test_it_is_listed_and_refused_by_peft(python: str, tmp_path: Path) -> None:
    listed = subprocess.run([python, "-m", "zoo", "adapt", "list"], capture_output=True, text=True, check=False)
    assert "vera/vera" in listed.stdout
    code = "import zoo; zoo.adapt(zoo.build('lm/llama-tiny', weights=None), 'vera', r=4).export('default', 'out')"
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "HF PEFT has no method like vera/vera: save() writes a file of ours" in run.stderr
