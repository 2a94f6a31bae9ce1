"""docs/tutorial.md, line by line: its files are written, its commands run, and what they print is compared."""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest_shared import PHOTOS, REPOSITORY, make_environment

PAGE = REPOSITORY / "docs" / "tutorial.md"
STEP = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL)
SHIMS = {"zoo": "-m zoo", "pip": "-m pip"}


@pytest.fixture
def author(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """An empty folder, and the variables of an environment that has the zoo and reaches no index."""
    python = make_environment(tmp_path / "env", [])
    for name, arguments in SHIMS.items():
        shim = python.parent / name
        shim.write_text(f'#!/bin/sh\nexec {python} {arguments} "$@"\n')
        shim.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    pip = {"PIP_NO_BUILD_ISOLATION": "false", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return folder, {**os.environ, **pip, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}


def test_the_tutorial_does_what_it_says(author) -> None:
    folder, environment = author
    steps = list(STEP.finditer(PAGE.read_text(encoding="utf-8")))
    assert len(steps) > 10
    for step in steps:
        if step["file"]:
            write(folder, step["file"], step["body"])
        elif step["language"] == "console":
            for command in re.split(r"^\$ ", step["body"], flags=re.MULTILINE)[1:]:
                line, _, expected = command.partition("\n")
                run = subprocess.run(
                    ["sh", "-c", line.replace("PHOTOS", str(PHOTOS))],
                    cwd=folder, env=environment, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert run.returncode == (1 if "FAILED" in expected else 0), f"{line}\n{run.stdout}{run.stderr}"
                shown = " ".join(run.stdout.split())
                pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("..."))
                assert re.fullmatch(pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*"), shown, re.DOTALL), (
                    f"{line}\n{run.stdout}{run.stderr}"
                )


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    assert path.parent.is_dir()
    if "@SHA256@" in text:
        (weights,) = path.parent.glob("*.safetensors")
        text = text.replace("@SHA256@", hashlib.sha256(weights.read_bytes()).hexdigest())
    path.write_text(text)
