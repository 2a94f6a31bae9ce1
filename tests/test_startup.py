"""Listing and help import neither torch nor any plugin."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest_shared import PHOTOS

COMMANDS = (["list"], ["list", "--json"], ["plugins"], ["plugins", "--json"], ["show", "efficientnet_lite0"], ["--help"])

CHILD = """
import sys
from zoo.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "numpy", "PIL", "pluggy", "psutil", "timm", "tqdm"}
plugins = {name for name in sys.modules if name.startswith("zoo_")}
found = sorted((heavy & set(sys.modules)) | plugins)
print(code, *found, file=sys.stderr)
"""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_heavy_is_imported(command: list[str]) -> None:
    run = subprocess.run([sys.executable, "-c", CHILD, *command], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "0"
    assert run.stdout


PHOTO = str(PHOTOS / "chelsea.jpg")
MISTYPED = {
    "classify": (["classify", "chelsae.jpg", "--labels", "a,b"], 1, "chelsae.jpg: there is no such file"),
    "classify several": (["classify", "a.jpg", "b.jpg", "--json"], 1, "a.jpg: there is no such file, nor any of the other 1"),
    "classify pattern": (["classify", "no*.jpg"], 2, "no*.jpg: no file matches the pattern"),
    "shots": (["classify", PHOTO, "--shots", "shotss"], 2, "--shots shotss: there is no such folder"),
    "weights": (["classify", PHOTO, "--weights", "w.pt"], 2, "--weights w.pt: there is no such file"),
    "labels": (["classify", PHOTO, "--labels-file", "l.txt"], 2, "--labels-file l.txt: cannot be read"),
    "embed": (["embed", "chelsae.jpg", "--out", "e.npz"], 1, "chelsae.jpg: there is no such file"),
    "embed out": (["embed", PHOTO, "--out", "nowhere/e.npz"], 2, "--out nowhere/e.npz: there is no folder nowhere"),
    "search": (["search", "photoss", "a cat"], 2, "photoss: there is no such folder, expected a folder of images"),
    "search by image": (["search", str(PHOTOS), "chelsae.jpg"], 2, "there is no file chelsae.jpg; if it is meant as text"),
    "filter": (["filter", "pairs.jsonl", "--dry-run"], 2, "pairs.jsonl: there is no such file"),
    "filter out": (["filter", str(PHOTOS), "--out", "no/out", "--threshold", "0"], 2, "--out no/out: there is no folder no"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTYPED)
def test_a_mistyped_path_is_said_before_torch_is_imported(case: str, tmp_path: Path) -> None:
    words, code, message = MISTYPED[case]
    run = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    *said, last = run.stderr.splitlines()
    exit_code, *imported = last.split()
    assert (int(exit_code), [message in line for line in said], run.stdout) == (code, [True], "")
    assert "torch" not in imported
    assert not [name for name in imported if name.startswith("zoo_")]


def test_each_command_is_added_by_the_module_that_the_table_names() -> None:
    """One that is asked for imports its own module alone, and says the same as in the whole."""
    from zoo.cli import COMMANDS, parser

    def choices(words: list[str]) -> dict:
        (action,) = (action for action in parser(words)._actions if isinstance(action.choices, dict))
        return action.choices

    whole = choices([])
    assert list(whole) == list(COMMANDS)
    for name in COMMANDS:
        assert choices([name])[name].format_help() == whole[name].format_help()
    child = "import sys; from zoo.cli import parser; parser(['list']); print(*[name for name in sys.modules if name.startswith('zoo.cli.')])"
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert sorted(run.stdout.split()) == ["zoo.cli.catalogue", "zoo.cli.output", "zoo.cli.plugin_commands"]


def test_exports_do_not_shadow_modules() -> None:
    """`zoo.build` must stay the function, whatever was imported before."""
    import pkgutil

    import zoo

    modules = {module.name for module in pkgutil.iter_modules(zoo.__path__)}
    assert not modules & set(zoo.__all__)


@pytest.mark.parametrize("name", ["zoo", "zoo.api"])
def test_every_export_exists(name: str) -> None:
    from importlib import import_module

    package = import_module(name)
    for exported in package.__all__:
        assert getattr(package, exported) is not None
    assert set(package._EXPORTS) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nonsense'; it offers "):
        package.nonsense  # noqa: B018


@pytest.mark.parametrize("name", ["zoo", "zoo.api"])
def test_type_checkers_see_the_same_names(name: str) -> None:
    """The imports for type checkers are those that __getattr__ makes."""
    import ast
    from importlib import import_module
    from pathlib import Path

    package = import_module(name)
    (block,) = [node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: f"{line.module}:{alias.name}" if alias.asname else line.module
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert seen == package._EXPORTS
    assert set(package.__all__) - {"__version__"} == set(seen)


def test_an_author_who_imports_the_api_imports_nothing_heavy() -> None:
    child = "import sys, zoo.api; zoo.api.hookimpl, zoo.api.UsageError; print(*sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
