"""Every test runs with a config and a state folder of its own; the weights cache is the user's, filled by `zoo fetch`."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).parents[1]
DISTS = Path(__file__).with_name("dists")
PHOTOS = REPOSITORY / "zoo" / "cli" / "demo" / "photos"

# Examples of hypothesis: few, the same ones each time, and none that is too slow for a busy machine. ZOO_SLOW_TESTS=1: many, and
# other ones each time. A test that needs more asks for a multiple of `settings.default.max_examples`.
settings.register_profile("push", max_examples=20, derandomize=True, deadline=None, database=None)
settings.register_profile("whole", max_examples=200, deadline=None)
settings.load_profile("whole" if os.environ.get("ZOO_SLOW_TESTS") == "1" else "push")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that with several workers none ends alone with it."""
    items.sort(key=lambda item: item.path.name != "test_tutorial.py")


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ZOO_STATE", str(tmp_path / ".state"))
    for name in ("ZOO_DISABLE", "ZOO_PLUGINS", "ZOO_STRICT", "ZOO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def zoo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command `zoo` in a process of its own."""

    def run(*arguments: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "zoo", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command `zoo` in this process, which has imported everything already."""
    from zoo.cli import main as command

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        try:
            code = command(arguments)
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run


@pytest.fixture
def photos() -> Path:
    return PHOTOS


def make_environment(folder: Path, dists: list[Path]) -> Path:
    """A virtual environment that sees this one's packages (pip and setuptools too), with `dists` built and installed by pip; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "outer.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    if dists:
        command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*map(str, command), *map(str, dists)], check=True)
    return python
