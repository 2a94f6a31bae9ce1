"""`zoo lock`: what was written compares equal until something changes, and each difference says what mends it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest_shared import DISTS, make_environment


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_environment(tmp_path_factory.mktemp("lock") / "env", [DISTS / "zoodist-good"]))


def test_a_lock_is_compared_with_what_is_there(zoo, python, tmp_path) -> None:
    file = str(tmp_path / "zoo.lock")
    assert zoo("lock", "--file", file, python=python).returncode == 0
    same = zoo("lock", "--file", file, "--check", python=python)
    assert (same.returncode, same.stdout) == (0, f"{file}: nothing differs\n")

    zoo("pin", "timm", "modalzoo-timm", python=python)
    changed = zoo("lock", "--file", file, "--check", "--json", python=python, ZOO_DISABLE="text")
    assert changed.returncode == 1
    assert json.loads(changed.stdout)["differences"] == [
        "modalzoo-text is not enabled, unlike when it was locked: zoo enable text",
        "[pins] timm is modalzoo-timm, locked is not set: zoo lock, or take it out of the config file",
    ]


def test_other_bytes_versions_and_plugins_are_differences(zoo, python, tmp_path) -> None:
    file = tmp_path / "zoo.lock"
    zoo("lock", "--file", str(file), python=python)
    text = file.read_text()

    def differences(changed: str, **environment: str) -> str:
        file.write_text(changed)
        return zoo("lock", "--file", str(file), "--check", python=python, **environment).stdout

    assert "zoodist-good is 1.0, locked is 0.9: zoo install 'zoodist-good==0.9'" in differences(
        text.replace('distribution = "zoodist-good"\nversion = "1.0"', 'distribution = "zoodist-good"\nversion = "0.9"')
    )
    name = subprocess.run(
        [python, "-c", "import zoodist_good; print(zoodist_good.__file__)"], capture_output=True, text=True, check=True
    )
    module = Path(name.stdout.strip())
    original = module.read_text()
    module.write_text(original + "# changed\n")
    assert "zoodist-good 1.0 has other files than were locked: pip install --force-reinstall" in differences(text)
    module.write_text(original)
    start = text.index('[[plugin]]\nname = "good"')
    end = text.find("[[plugin]]", start + 1)
    assert "zoodist-good is installed and not locked: zoo disable good" in differences(text[:start] + text[end:])
    missing = differences(text.replace('"zoodist-good"', '"zoodist-better"'))
    assert "zoodist-better 1.0 is not installed: zoo install 'zoodist-better==1.0'" in missing


def test_what_is_no_lock_file_is_refused(zoo, tmp_path) -> None:
    run = zoo("lock", "--check", "--file", str(tmp_path / "none"))
    assert (run.returncode, "there is no lock file; write one with: zoo lock" in run.stderr) == (1, True)
    (tmp_path / "odd").write_text("format = 2")
    assert "not a lock file of format 1" in zoo("lock", "--check", "--file", str(tmp_path / "odd")).stderr
    if os.geteuid() != 0:
        assert zoo("lock", "--file", "/zoo.lock").returncode == 1
