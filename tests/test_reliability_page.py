"""docs/reliability.md knows every row and finds the tests by their markers."""

import ast
import re
import sys
import tomllib

import pytest
from conftest_shared import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))
import reliability


def test_a_marker_is_found_on_a_test_and_on_a_file():
    tree = ast.parse(
        'pytestmark = [pytest.mark.covers("W1")]\n'
        '@pytest.mark.covers("W3", "A8")\ndef test_a(): ...\n'
        '@pytest.mark.parametrize("x", [1])\ndef test_b(): ...\n'
    )
    assert list(reliability._marked(tree)) == [("test_a", "W1"), ("test_a", "W3"), ("test_a", "A8"), ("test_b", "W1")]


def test_every_row_is_printed_and_one_without_a_test_says_so(monkeypatch, tmp_path):
    ids = [row["id"] for row in tomllib.loads(reliability.ROWS.read_text())["row"]]
    assert (len(ids), len(set(ids))) == (8 + 10 + 9 + 28, len(ids))
    monkeypatch.setattr(reliability, "covering", lambda: {"W3": ["tests/test_weights.py::test_x"]})
    seen = tmp_path / "faults.json"
    seen.write_text('{"tests/test_weights.py::test_x[1]": {"outcome": "passed", "seconds": 1.0, "figure": "9 of 9"}}')
    monkeypatch.setattr(reliability, "SEEN", seen)
    page = reliability.page()
    rows = dict(re.findall(r"^\| (\w+) \|.*\| ([^|]*\| [^|]*) \|$", page, flags=re.MULTILINE))
    assert list(rows) == ids
    assert "**none**" in rows["W1"]
    assert rows["W3"].endswith("passed: 9 of 9")
    assert "serves nothing" in rows["A22"]


def test_a_test_of_no_row_is_refused(monkeypatch):
    monkeypatch.setattr(reliability, "covering", lambda: {"W99": ["tests/test_weights.py::test_x"]})
    with pytest.raises(SystemExit, match="W99"):
        reliability.page()
