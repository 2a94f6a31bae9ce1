"""Listing and help import neither torch nor any plugin."""

import subprocess
import sys

import pytest

COMMANDS = (["list"], ["list", "--json"], ["plugins"], ["plugins", "--json"], ["show", "efficientnet_lite0"], ["--help"])

CHILD = """
import sys
from zoo.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "numpy", "PIL", "pluggy", "timm", "tqdm"}
plugins = {name for name in sys.modules if name.startswith("zoo_")}
found = sorted((heavy & set(sys.modules)) | plugins)
print(code, *found, file=sys.stderr)
"""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_heavy_is_imported(command: list[str]) -> None:
    run = subprocess.run([sys.executable, "-c", CHILD, *command], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "0"
    assert run.stdout


def test_exports_do_not_shadow_modules() -> None:
    """`zoo.build` must stay the function, whatever was imported before."""
    import pkgutil

    import zoo

    modules = {module.name for module in pkgutil.iter_modules(zoo.__path__)}
    assert not modules & set(zoo.__all__)


def test_every_export_exists() -> None:
    import zoo

    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'nonsense'; it offers Card, Encoded"):
        zoo.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The imports for type checkers are those that __getattr__ makes."""
    import ast
    from pathlib import Path

    import zoo

    (block,) = [node for node in ast.parse(Path(zoo.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {name.name: line.module for line in block.body if isinstance(line, ast.ImportFrom) for name in line.names}
    assert seen == zoo._EXPORTS
    assert sorted(zoo.__all__) == sorted([*seen, "__version__"])
