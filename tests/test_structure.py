"""The house stands as it was drawn: rooms, arrows, sizes (`make structure`), and what may import what."""

import ast
import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import structure
import tomlkit

ROOT = structure.ROOT
SURFACES = {"zoo", "zoo.api", "zoo.nn", "zoo.testing"}
LAYERS = next(
    contract["layers"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
)


def test_every_module_belongs_to_a_room() -> None:
    assert len(structure.loose_modules()) <= structure.MOST_LOOSE
    assert structure.rooms() == sorted(room for room in LAYERS if "|" not in room and room not in ("__main__", "api"))


def test_no_imports_run_in_circles() -> None:
    graph = structure.imports()
    assert structure.circles(graph) == []
    assert structure.circles(structure.arrows(graph)) == []


def test_a_circle_is_found() -> None:
    assert structure.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a <-> b <-> c"]


def test_the_core_does_not_go_through_its_own_front_door() -> None:
    """What `zoo` offers is loaded at its first use, which no linter sees: an import of it could lead anywhere."""
    assert structure.out_of_the_front_door() == []


def test_nothing_is_too_long() -> None:
    assert structure.long_files() == []
    assert structure.long_functions() == []
    assert structure.many_arguments() == []


def test_nothing_is_written_twice() -> None:
    assert structure.same_lines() == []


def test_an_upward_import_is_refused_in_every_room(tmp_path: Path) -> None:
    """One is planted in each room, and a module that belongs to none; the linter names them all."""
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo", ignore=shutil.ignore_patterns("__pycache__", "photos", "sounds"))
    rooms = [room.split(" | ")[-1] for room in LAYERS]
    planted = []
    for above, room in itertools.pairwise(rooms):
        folder = tmp_path / "zoo" / room
        target = f"zoo.{above}"
        if folder.is_dir():
            (folder / "planted.py").write_text(f"import {target}\n")
            planted.append((f"zoo.{room}.planted", target))
        else:
            with (tmp_path / "zoo" / f"{room}.py").open("a") as file:
                file.write(f"\n\nimport {target}\n")
            planted.append((f"zoo.{room}", target))
    (tmp_path / "zoo" / "homeless.py").write_text("")
    assert len(planted) == len(LAYERS) - 1
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    linter["root_packages"] = ["zoo"]
    linter["contracts"] = [contract for contract in linter["contracts"] if contract["type"] == "layers"]
    (tmp_path / "pyproject.toml").write_text(tomlkit.dumps({"tool": {"importlinter": linter}}))
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode == 1
    missed = [(module, target) for module, target in planted if f"{module} -> {target}" not in said]
    assert not missed, said
    assert "zoo.homeless" in said


def written_for_authors() -> list[Path]:
    """Plugins, the templates, test distributions, and pages whose samples people copy."""
    paths = [path for pattern in structure.CODE[1:] for path in ROOT.glob(pattern)]
    paths += [path for path in ROOT.glob("tests/dists/**/*.py") if "build" not in path.parts]
    paths += ROOT.glob("zoo/cli/scaffold/templates/**/*.tmpl")
    paths += [path for path in ROOT.glob("docs/**/*.md") if "decisions" not in path.parts]
    return sorted([*paths, ROOT / "README.md", *ROOT.glob("plugins/*/README.md"), ROOT / "adapters" / "README.md"])


@pytest.mark.parametrize("path", written_for_authors(), ids=structure.shown)
def test_authors_need_four_surfaces_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py" and "syntaxerror" not in path.name:
        found = {
            module
            for node in ast.walk(ast.parse(text))
            for module in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        }
    else:
        found = set(re.findall(r"^\s*(?:from|import) (zoo[\w.]*)", text, re.MULTILINE))
    rooms = {*structure.rooms(), "errors", "exports"}
    found |= {
        f"zoo.{name}"
        for name in re.findall(r"^\s*from zoo import (.+)$", text, re.MULTILINE)
        if set(re.findall(r"\w+", name)) & rooms
    }
    deeper = {module for module in found if module.split(".")[0] == "zoo"} - SURFACES
    assert not deeper, f"import it from {', '.join(sorted(SURFACES))}"


def test_a_decoder_of_layers_loads_no_adapter_and_no_kernel() -> None:
    child = "import sys, zoo.nn.decoder, zoo.nn; print(*[name for name in sys.modules if name.startswith(('zoo.adapters', 'zoo.nn.kernels'))])"
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
