"""Where the zoo keeps things: the home of the user, the variables, and what is said where neither is there."""

import os
import pwd
from pathlib import Path

import pytest

from zoo.errors import ManifestError
from zoo.registry.lookup import default_registry
from zoo.registry.settings import cache_dir, config_file, state_dir

PLACES = {"ZOO_CONFIG": config_file, "ZOO_CACHE": cache_dir, "ZOO_STATE": state_dir}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a home: no HOME, and no entry in the table of users, as in a container that runs under any number."""

    def no_entry(_: int) -> None:
        raise KeyError(_)

    for name in [*PLACES, "HOME", *(name for name in os.environ if name.startswith("XDG_"))]:
        monkeypatch.delenv(name, raising=False)
    default_registry.cache_clear()
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("variable", PLACES)
def test_without_a_home_one_line_says_what_to_do(nobody: Path, monkeypatch, variable: str) -> None:
    for given in (None, "~/zc"):
        if given:
            monkeypatch.setenv(variable, given)
        with pytest.raises(
            ManifestError,
            match=rf"^there is no home folder .*{variable}.*: set HOME, or ZOO_CONFIG, ZOO_CACHE and ZOO_STATE",
        ):
            PLACES[variable]()
    monkeypatch.setenv(variable, str(nobody / "there"))
    assert PLACES[variable]() == nobody / "there"
    monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(nobody))
    assert PLACES[variable]().is_relative_to(nobody)


def test_a_command_without_a_home_makes_no_folder(nobody: Path, main, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", "~/zc")
    run = main("list")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(
        "zoo: there is no home folder (no HOME, and the user has no entry), and ZOO_CONFIG is not set: "
    )
    for name in PLACES:
        monkeypatch.setenv(name, str(nobody / name))
    assert main("list").returncode == 0
    run = main("classify", "~/a.jpg", "--labels", "a,b", "--model", "clip/tiny", "--weights", "none")
    assert (run.returncode, "~/a.jpg: there is no such file" in run.stderr) == (1, True)
    assert not (nobody / "~").exists()


def test_a_tilde_in_a_variable_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no shell expands it: in a file of variables, in quotes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZOO_CACHE", "~/zc")
    assert cache_dir() == tmp_path / "zc"
