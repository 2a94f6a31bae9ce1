"""docs/tutorial.md, line by line: its files are written, its commands run, and what they print is compared.

At each push the kit is spared what it has done or will do on the same page, for most of the time goes into the interpreters that it
starts: in `pytest` it leaves out the checks that start some, and `zoo check mood` waits for the same command at the end of the page,
where what it prints is held to both places. With ZOO_SLOW_TESTS=1 everything is done as it is written.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest_shared import PHOTOS, REPOSITORY, make_environment
from warm_interpreter import WarmInterpreter

PAGE = REPOSITORY / "docs" / "tutorial.md"
STEP = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL)
WHOLE = os.environ.get("ZOO_SLOW_TESTS") == "1"
INTERPRETERS = ("activation-ends-well", "process-stays-as-it-was", "works-after-fork", "works-after-spawn")
DONE_LATER = {"zoo check mood": "zoo check mood --out badge.json"}
SHIMS = {"zoo": "-m zoo", "pip": "-m pip"}


@dataclass
class Author:
    """Somebody with an empty folder, and an environment that has the zoo and reaches no index."""

    folder: Path
    python: Path
    environment: dict[str, str]
    warm: WarmInterpreter | None = None

    def do(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line of the page; what is a command of Python's alone, in an interpreter that has imported torch already.

        What is installed is seen by an interpreter that starts afterwards: each installation ends the one before.
        """
        line = line.replace("PHOTOS", str(PHOTOS))
        words = re.fullmatch(r"(?:(zoo)|python -m (pytest)) ([^'\"|&;<>$*]*)", line)
        if words is None or words[3].split()[0] in ("install", "uninstall"):
            self.close()
            command = ["sh", "-c", line]
            return subprocess.run(
                command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
            )
        if self.warm is None:
            self.warm = WarmInterpreter(str(self.python), ["torch"])
        return self.warm.run(["-m", words[1] or words[2], *words[3].split()], environment=self.environment, cwd=self.folder)

    def close(self) -> None:
        if self.warm is not None:
            self.warm.close()
            self.warm = None


@pytest.fixture
def author(tmp_path: Path) -> Iterator[Author]:
    python = make_environment(tmp_path / "env", [])
    for name, arguments in SHIMS.items():
        shim = python.parent / name
        shim.write_text(f'#!/bin/sh\nexec {python} {arguments} "$@"\n')
        shim.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    pip = {"PIP_NO_BUILD_ISOLATION": "false", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    somebody = Author(folder, python, {**os.environ, **pip, "PATH": path, "COLUMNS": "200"})
    yield somebody
    somebody.close()


def test_the_tutorial_does_what_it_says(author: Author) -> None:
    if not WHOLE:
        left_out = " and ".join(f"not {name}" for name in INTERPRETERS)
        author.environment["PYTEST_ADDOPTS"] = f'-k "{left_out}"'
    steps = list(STEP.finditer(PAGE.read_text(encoding="utf-8")))
    assert len(steps) > 10
    awaited: dict[str, str] = {}
    for step in steps:
        if step["file"]:
            write(author.folder, step["file"], step["body"])
        elif step["language"] == "console":
            for command in re.split(r"^\$ ", step["body"], flags=re.MULTILINE)[1:]:
                line, _, expected = command.partition("\n")
                if not WHOLE and line in DONE_LATER:
                    awaited[DONE_LATER[line]] = f"{expected}..."
                    continue
                shown = run(line, author, code=1 if "FAILED" in expected else 0)
                for one in (expected, awaited.pop(line, "...")):
                    assert is_shown(one, shown), f"{line}\n{shown}"
    assert not awaited


def run(line: str, author: Author, *, code: int) -> str:
    """What a command of the page prints. What `pytest` left out counts as passed."""
    run = author.do(line)
    assert run.returncode == code, f"{line}\n{run.stdout}{run.stderr}"
    return re.sub(
        r"(\d+) passed, (\d+) skipped, (\d+) deselected",
        lambda found: f"{int(found[1]) + int(found[3])} passed, {found[2]} skipped",
        run.stdout,
    )


def is_shown(expected: str, shown: str) -> bool:
    """Whether a page's words stand there, whatever stands at its `...`; spaces and lines do not matter."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("..."))
    pattern = pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*")
    return re.fullmatch(pattern, " ".join(shown.split()), re.DOTALL) is not None


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    assert path.parent.is_dir()
    if "@SHA256@" in text:
        (weights,) = path.parent.glob("*.safetensors")
        text = text.replace("@SHA256@", hashlib.sha256(weights.read_bytes()).hexdigest())
    path.write_text(text)
