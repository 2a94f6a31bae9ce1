"""Which rows of docs/faults.toml a test covers, and what was seen when it last ran.

    @pytest.mark.covers("W3", "A8")
    def test_mutants_never_crash(figure): ...
        figure(f"{mutants:,} mutants, {refused:,} refused")

`ZOO_FIGURES=docs/faults.json` keeps outcome, seconds and figure of every marked test that runs; `docs/reliability.py` prints them.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

FIGURES = os.environ.get("ZOO_FIGURES") and Path(os.environ["ZOO_FIGURES"]).absolute()  # tests may change the folder


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a line that says how much a test tried, for the table."""

    def keep(text: str) -> None:
        request.node.user_properties.append(("figure", text))

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    covered = any(True for _ in item.iter_markers("covers"))
    if covered and FIGURES and (report.when == "call" or report.failed):
        figures = [text for name, text in item.user_properties if name == "figure"]
        _keep(FIGURES, item.nodeid, report.outcome, call.duration, figures)
    return report


def _keep(path: Path, test: str, outcome: str, seconds: float, figures: list[str]) -> None:
    with FileLock(Path(tempfile.gettempdir(), f"{path.name}.lock")):  # several workers
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept[test] = {"outcome": outcome, "seconds": round(seconds, 1), "figure": "; ".join(figures)}
        rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept))
        path.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
