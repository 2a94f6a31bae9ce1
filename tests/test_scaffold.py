"""`zoo new`: what it writes is a real distribution that, installed, passes every check as it is."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest_shared import make_environment, once
from warm_interpreter import WarmInterpreter

from zoo.cli.scaffold import CHOICES, new_plugin
from zoo.errors import UsageError

INTERPRETERS = ("activation-ends-well", "process-stays-as-it-was", "works-after-fork", "works-after-spawn")
ALL = [(kind, modality) for kind, modalities in CHOICES.items() for modality in modalities]


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with one plugin of each kind and modality, and the python of an environment in which all are installed."""

    def written(folder: Path) -> None:
        for kind, modality in ALL:
            name = plugin_name(kind, modality)
            new_plugin(name, kind=kind, modality=modality, folder=folder / name)
        make_environment(folder / "env", [folder / plugin_name(*choice) for choice in ALL])

    folder = once(tmp_path_factory, "author", written)
    return folder, folder / "env" / "bin" / "python"


def plugin_name(kind: str, modality: str) -> str:
    return f"my-{kind.partition('_')[0]}-{modality}"


@pytest.fixture(scope="module")
def warm_author(author) -> Iterator[WarmInterpreter]:
    interpreter = WarmInterpreter(str(author[1]), ["torch"])
    yield interpreter
    interpreter.close()


@pytest.mark.parametrize(("kind", "modality"), ALL)
def test_it_passes_every_check_and_its_own_tests(author, warm_author, kind, modality) -> None:
    """The command line in its pyproject.toml brings the kit into pytest: no test of the kit is written there.

    At each push the checks that start interpreters, three quarters of the time, are made of one kind (the tutorial makes them of others).
    """
    folder, _ = author
    whole = os.environ.get("ZOO_SLOW_TESTS") == "1" or (kind, modality) == ("decoder", "text")
    chosen = () if whole else ("-k", " and ".join(f"not {name}" for name in INTERPRETERS))
    run = warm_author.run(
        ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *chosen],
        environment=os.environ,
        cwd=folder / plugin_name(kind, modality),
    )
    assert run.returncode == 0, run.stdout
    passed, left_out = (re.search(rf"(\d+) {word}", run.stdout) for word in ("passed", "deselected"))
    assert passed is not None
    assert (left_out is None) == whole
    assert int(passed[1]) + int(left_out[1] if left_out else 0) >= (
        12 if kind in ("transcriber", "adapter", "kernel") else 18
    )


@pytest.mark.skipif(
    os.environ.get("ZOO_SLOW_TESTS") != "1", reason="20 s of interpreters, as the tutorial has them: ZOO_SLOW_TESTS=1"
)
def test_the_result_is_a_badge_that_the_list_shows_until_a_file_changes(zoo, tmp_path) -> None:
    name = plugin_name("encoder", "text")
    new_plugin(name, kind="encoder", modality="text", folder=tmp_path / name)
    python = make_environment(tmp_path / "env", [tmp_path / name])
    run = zoo("check", name, "--json", "--out", str(tmp_path / "badge.json"), python=str(python))
    assert run.returncode == 0, run.stdout
    badge = json.loads(run.stdout)
    assert badge == json.loads((tmp_path / "badge.json").read_text())
    assert (badge["dist"], badge["version"], badge["failed"], badge["passed"]) == (f"modalzoo-{name}", "0.1.0", 0, 20)
    assert len(badge["files_sha256"]) == 64
    assert badge["results"][f"{name}/small"][0].keys() == {"check", "level", "status", "message", "seconds"}

    def listed() -> dict[str, object]:
        return {
            plugin["dist"]: plugin for plugin in json.loads(zoo("plugins", "--json", python=str(python)).stdout)["plugins"]
        }

    assert listed()[f"modalzoo-{name}"]["badge"]["files_sha256"] == badge["files_sha256"]
    assert f"modalzoo-{name} 0.1.0" in zoo("plugins", python=str(python)).stdout
    assert "20 passed, 2 skipped" in zoo("plugins", python=str(python)).stdout
    assert listed()["modalzoo-text"]["badge"] is None
    (module,) = tmp_path.glob("env/lib/*/site-packages/zoo_my_encoder_text/model.py")
    os.utime(module, (1, 1))  # touched, with the same bytes, as by a fresh checkout
    assert listed()[f"modalzoo-{name}"]["badge"]["passed"] == 20
    module.write_text(module.read_text() + "\n# changed\n")
    assert listed()[f"modalzoo-{name}"]["badge"] is None


@pytest.mark.parametrize(("kind", "modality"), ALL)
def test_it_is_small(tmp_path, kind, modality) -> None:
    files = new_plugin("tiny", kind=kind, modality=modality, folder=tmp_path / "new")
    package = [file for file in files if file.parent.name == "zoo_tiny" and file.suffix == ".py"]
    assert sum(len(file.read_text().splitlines()) for file in package) < (60 if kind == "kernel" else 45)
    assert {"pyproject.toml", "README.md", "test.yml", "test_model.py", "zoo.toml"} <= {file.name for file in files}


def test_a_wheel_brings_every_template(tmp_path) -> None:
    """setuptools' patterns leave out folders that begin with a dot: what it would put into a wheel is asked of itself."""
    root = Path(__file__).parent.parent
    shutil.copytree(root / "zoo", tmp_path / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / name, tmp_path)
    script = "import setuptools, sys; sys.argv = ['setup.py', '-q', 'build_py', '--build-lib', 'built']; setuptools.setup()"
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    templates = Path("zoo", "cli", "scaffold", "templates")
    written, built = (
        {path.relative_to(top) for path in (top / templates).rglob("*") if path.is_file()}
        for top in (tmp_path, tmp_path / "built")
    )
    assert built == written
    assert templates / "plugin" / ".github" / "workflows" / "test.yml.tmpl" in built
    assert templates / "decoder-text" / "PACKAGE" / "model.py.tmpl" in built


def test_only_what_has_a_template_is_offered(main, tmp_path) -> None:
    offered = main("new", "--help").stdout
    assert "--kind {encoder,dual_encoder,decoder,transcriber,bridge,adapter,kernel}" in offered
    assert "--modality {image,text,audio}" in offered
    refused = main("new", "bird", "--kind", "generator", "--into", str(tmp_path / "new"))
    assert refused.returncode == 2
    assert "invalid choice: 'generator' (choose from" in refused.stderr
    refused = main("new", "bird", "--kind", "decoder", "--modality", "image", "--into", str(tmp_path / "new"))
    assert refused.returncode == 2
    assert "no template for the kind decoder and image yet; for decoder there are for text" in refused.stderr


def test_a_name_that_is_installed_already_is_said(main, tmp_path) -> None:
    said = main("new", "clip", "--into", str(tmp_path / "new")).stderr
    assert (
        "zoo: warning: plugin 'clip' is installed already (modalzoo-clip 0.1.0): installing this one would replace it"
        in said
    )
    assert "warning" not in main("new", "bird", "--into", str(tmp_path / "bird")).stderr


def test_the_zoo_can_come_from_elsewhere_until_it_is_on_the_index(tmp_path) -> None:
    files = {file.name: file.read_text() for file in new_plugin("bird", kind="encoder", folder=tmp_path / "new")}
    assert "ZOO: ${{ vars.ZOO || 'modalzoo' }}" in files["test.yml"]
    assert files["test.yml"].index('pip install "$ZOO"') < files["test.yml"].index("pip install -e '.[test]'")
    assert "install it first from a checkout of its repository" in files["README.md"]


def test_what_cannot_be_written_says_why(tmp_path) -> None:
    with pytest.raises(UsageError, match="small letters, digits and single hyphens, as in birdsong-net; got 'Bird Song'"):
        new_plugin("Bird Song", kind="encoder", folder=tmp_path / "new")
    with pytest.raises(UsageError, match="no template for the kind 'generator' yet; there are for encoder, dual_encoder"):
        new_plugin("bird", kind="generator", folder=tmp_path / "new")
    with pytest.raises(
        UsageError, match="no template for the kind encoder and video yet; for encoder there are for image, text, audio"
    ):
        new_plugin("bird", kind="encoder", modality="video", folder=tmp_path / "new")
    with pytest.raises(UsageError, match="exists already: choose another place with --into, or remove it"):
        new_plugin("bird", kind="encoder", folder=tmp_path)
    assert not (tmp_path / "new").exists()
