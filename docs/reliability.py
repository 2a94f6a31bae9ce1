"""The page of faults and attacks: each row of faults.toml with the tests that cover it, and what they last saw.

A test is found by its marker, `@pytest.mark.covers("W3")`, without being run. What was seen lies in faults.json:
`ZOO_FIGURES=docs/faults.json python -m pytest` writes it.
"""

import ast
import json
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = "docs/reliability.md"
ROWS = ROOT / "docs" / "faults.toml"
SEEN = ROOT / "docs" / "faults.json"
TESTS = ("tests/test_*.py", "plugins/*/tests/test_*.py", "adapters/tests/test_*.py")
PARTS = {"P": "Plugins", "W": "Weights, adapters, cache", "M": "Media and prompts", "A": "Attacks"}
HEAD = """<!-- Written from docs/faults.toml and the tests by docs/generate.py: make docs. -->

# Faults and attacks

What may go wrong, what must hold then, the tests that try it, and what they saw when they last ran (`ZOO_FIGURES=docs/faults.json` keeps it).
A row that no test covers says so. Kills and write errors in every command that writes are tried by `benchmarks/faults.py`; its figures
are in [benchmarks.md](benchmarks.md).
"""


def page() -> str:
    """The whole of docs/reliability.md. Raises SystemExit for a test that names a row which is not there."""
    rows = tomllib.loads(ROWS.read_text(encoding="utf-8"))["row"]
    tests = covering()
    unknown = sorted(tests.keys() - {row["id"] for row in rows})
    if unknown:
        raise SystemExit(f"{tests[unknown[0]][0]} covers {unknown[0]}, which docs/faults.toml does not have")
    seen = json.loads(SEEN.read_text(encoding="utf-8")) if SEEN.exists() else {}
    without = [row["id"] for row in rows if row["id"] not in tests and "absent" not in row]
    lines = [HEAD, f"{len(rows)} rows, {len(without)} of them without a test{': ' if without else ''}{', '.join(without)}."]
    for letter, title in PARTS.items():
        lines += ["", f"## {title}", "", "| | fault or input | what holds | tests | last run |", "|---|---|---|---|---|"]
        lines += [_line(row, tests.get(row["id"], []), seen) for row in rows if row["id"].startswith(letter)]
    return "\n".join(lines) + "\n"


def covering() -> dict[str, list[str]]:
    """Row -> tests that cover it, as `path::function`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for pattern in TESTS for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if "mark.covers(" not in text:
            continue
        for test, row in _marked(ast.parse(text)):
            found[row].append(f"{path.relative_to(ROOT).as_posix()}::{test}")
    return found


def _marked(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(function, row) of every marker; `pytestmark` of a file counts for all its tests."""
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    of_file = [
        row
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        for call in ast.walk(node.value)
        for row in _rows(call)
    ]
    for test in tests:
        for row in (*of_file, *(row for decorator in test.decorator_list for row in _rows(decorator))):
            yield test.name, row


def _rows(node: ast.AST) -> list[str]:
    """What a marker names; nothing for another node."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.covers":
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def _line(row: dict[str, str], tests: list[str], seen: dict[str, dict[str, Any]]) -> str:
    if not tests:
        shown, figures = row.get("absent", "**none**"), ""
    else:
        shown = "<br>".join(f"[`{test.partition('::')[2]}`](../{test.partition('::')[0]})" for test in tests)
        figures = "<br>".join(_figure(test, seen) for test in tests)
    return f"| {row['id']} | {row['fault']} | {row['held']} | {shown} | {figures} |"


def _figure(test: str, seen: dict[str, dict[str, Any]]) -> str:
    """What a test saw, its parameters together."""
    runs = [kept for name, kept in seen.items() if name.partition("[")[0] == test]
    if not runs:
        return "not run"
    bad = [kept["outcome"] for kept in runs if kept["outcome"] != "passed"]
    text = "; ".join(dict.fromkeys(kept["figure"] for kept in runs if kept["figure"]))
    outcome = bad[0] if bad else "passed"
    return f"{outcome}{f' {len(runs)} times' if len(runs) > 1 else ''}{f': {text}' if text else ''}"
