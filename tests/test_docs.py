"""Pages lead somewhere, and every field of a manifest has words."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest_shared import REPOSITORY

from zoo.registry.manifest import _CARD_FIELDS

sys.path.insert(0, str(REPOSITORY / "docs"))
import reference

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "plugins/*/*.md", "adapters/*.md")
    for path in REPOSITORY.glob(pattern)
    if ".venv" not in path.parts
)
TRAINING = "for step in range(20):"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, which has {sorted(anchors(target))}"


SLOW = pytest.mark.skipif(
    os.environ.get("ZOO_SLOW_TESTS") != "1", reason="15 s of a composition of real weights: ZOO_SLOW_TESTS=1"
)


@pytest.mark.parametrize("page", ["docs/language.md", pytest.param("docs/fusion.md", marks=SLOW), "docs/speech.md"])
def test_the_samples_of_a_page_run(page: str, tmp_path: Path) -> None:
    """Its Python blocks one after another, as somebody would who follows it; at each push, a training has two steps."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    text = "\n".join(blocks)
    if os.environ.get("ZOO_SLOW_TESTS") != "1":
        text = text.replace(TRAINING, "for step in range(2):")
        assert page != "docs/fusion.md" or text.count("for step in range(2):") == 1
    (tmp_path / "zoo" / "cli").mkdir(parents=True)
    (tmp_path / "zoo" / "cli" / "demo").symlink_to(REPOSITORY / "zoo" / "cli" / "demo")
    (tmp_path / "sample.py").write_text(text, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-P", "sample.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_every_field_has_words() -> None:
    card = reference.fields_of(reference.Card)
    assert set(card) == _CARD_FIELDS
    for dataclass, _ in reference.TABLES:
        for name, (kind, meaning) in reference.fields_of(dataclass).items():
            assert len(meaning) > 10, (name, kind)


def test_every_hook_has_a_page_with_an_implementation_of_it() -> None:
    assert {hook.__name__ for hook in reference.hooks()} == set(reference.EXAMPLES)
    for name in reference.EXAMPLES:
        page = (REPOSITORY / "docs" / "hooks" / f"{name}.md").read_text(encoding="utf-8")
        assert f"def {name}(" in page
