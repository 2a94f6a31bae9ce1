"""`zoo new`: what it writes is a real distribution, installed by pip, that passes every check as it is."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest_shared import make_environment

from zoo.errors import UsageError
from zoo.scaffold import CHOICES, new_plugin

ALL = [(kind, modality) for kind, modalities in CHOICES.items() for modality in modalities]


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with one plugin of each kind and modality, and the python of an environment in which all are installed."""
    folder = tmp_path_factory.mktemp("author")
    for kind, modality in ALL:
        new_plugin(plugin_name(kind, modality), kind=kind, modality=modality, folder=folder / plugin_name(kind, modality))
    return folder, make_environment(folder / "env", [folder / plugin_name(*choice) for choice in ALL])


def plugin_name(kind: str, modality: str) -> str:
    return f"my-{kind.partition('_')[0]}-{modality}"


@pytest.mark.parametrize(("kind", "modality"), ALL)
def test_it_passes_every_check_and_its_own_tests(author, kind, modality) -> None:
    """The command line in its pyproject.toml brings the kit into pytest: no test of the kit is written there."""
    folder, python = author
    run = subprocess.run(
        [python, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=folder / plugin_name(kind, modality), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 18


def test_the_result_is_a_badge_that_the_list_shows_until_a_file_changes(author, zoo, tmp_path) -> None:
    folder, python = author
    name = plugin_name("encoder", "text")
    run = zoo("check", name, "--json", "--out", str(tmp_path / "badge.json"), python=str(python))
    assert run.returncode == 0, run.stdout
    badge = json.loads(run.stdout)
    assert badge == json.loads((tmp_path / "badge.json").read_text())
    assert (badge["dist"], badge["version"], badge["failed"], badge["passed"]) == (f"modalzoo-{name}", "0.1.0", 0, 18)
    assert len(badge["files_sha256"]) == 64
    assert badge["results"][f"{name}/small"][0].keys() == {"check", "level", "status", "message", "seconds"}

    def listed() -> dict[str, object]:
        return {
            plugin["dist"]: plugin for plugin in json.loads(zoo("plugins", "--json", python=str(python)).stdout)["plugins"]
        }

    assert listed()[f"modalzoo-{name}"]["badge"]["files_sha256"] == badge["files_sha256"]
    assert f"modalzoo-{name} 0.1.0" in zoo("plugins", python=str(python)).stdout
    assert "passed all 18" in zoo("plugins", python=str(python)).stdout
    assert listed()["modalzoo-text"]["badge"] is None
    (module,) = folder.glob("env/lib/*/site-packages/zoo_my_encoder_text/model.py")
    module.write_text(module.read_text() + "\n# changed\n")
    assert listed()[f"modalzoo-{name}"]["badge"] is None


@pytest.mark.parametrize(("kind", "modality"), ALL)
def test_it_is_small(tmp_path, kind, modality) -> None:
    files = new_plugin("tiny", kind=kind, modality=modality, folder=tmp_path / "new")
    package = [file for file in files if file.parent.name == "zoo_tiny" and file.suffix == ".py"]
    assert sum(len(file.read_text().splitlines()) for file in package) < 40
    assert {"pyproject.toml", "README.md", "test.yml", "test_model.py", "zoo.toml"} <= {file.name for file in files}


def test_what_cannot_be_written_says_why(tmp_path) -> None:
    with pytest.raises(UsageError, match="small letters, digits and single hyphens, as in birdsong-net; got 'Bird Song'"):
        new_plugin("Bird Song", kind="encoder", folder=tmp_path / "new")
    with pytest.raises(UsageError, match="no template for the kind 'bridge' yet; there are for encoder, dual_encoder"):
        new_plugin("bird", kind="bridge", folder=tmp_path / "new")
    with pytest.raises(
        UsageError, match="no template for the kind encoder and audio yet; for encoder there are for image, text"
    ):
        new_plugin("bird", kind="encoder", modality="audio", folder=tmp_path / "new")
    with pytest.raises(UsageError, match="exists already: choose another place with --into, or remove it"):
        new_plugin("bird", kind="encoder", folder=tmp_path)
    assert not (tmp_path / "new").exists()
