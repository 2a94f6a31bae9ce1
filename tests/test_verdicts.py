"""A verdict about a plugin ends with its cause, and names whoever is at fault."""

import importlib
import sys
from pathlib import Path

import pytest

from zoo.errors import PluginError
from zoo.registry.blame import at_fault, damaged_distributions
from zoo.registry.diagnosis import environment
from zoo.registry.discovery import scan
from zoo.registry.lookup import Registry
from zoo.registry.settings import load_settings
from zoo.testing.compatibility import can

MANIFEST = """api = ">=1,<2"
[[card]]
name = "one"
kind = "encoder"
modalities = ["image"]
build = "odduser:build"
licence = "MIT"
default_for = ["odd task"]
"""
HOOK = "from zoo import hookimpl\n\n@hookimpl\ndef zoo_cards():\n    return [{'name': 'one', 'kind': 'encoder', 'modalities': ['image'], 'build': 'odduser:build'}]\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the plugin `odd`, whose module imports `odddep`, which raises."""
    folder = tmp_path / "site"
    (folder / "odduser").mkdir(parents=True)
    (folder / "odduser" / "zoo.toml").write_text(MANIFEST)
    (folder / "odduser" / "__init__.py").write_text("import odddep\n\ndef build(**_):\n    return odddep.build()\n")
    distribution(folder, "odd", "[zoo]\nodd = odduser\n")
    (folder / "odddep.py").write_text("raise RuntimeError('odddep was built for another machine')\n")
    monkeypatch.syspath_prepend(folder)
    yield folder
    forget()


def distribution(folder: Path, name: str, entry_points: str | bytes) -> Path:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(entry_points.encode() if isinstance(entry_points, str) else entry_points)
    return info


def forget() -> None:
    """What a process that begins now would not have imported."""
    for name in ("odduser", "odddep"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def registry() -> Registry:
    forget()
    return Registry(load_settings())


def state(known: Registry) -> str:
    return next(plugin.state for plugin in known.plugins if plugin.name == "odd")


def fail(known: Registry) -> None:
    with pytest.raises(PluginError, match="RuntimeError: odddep was built for another machine"):
        known.builder(known.find("odd/one").card)
    assert state(registry()) == "broken", "a listing knows of it"


def test_it_ends_when_a_dependency_is_mended(site: Path) -> None:
    fail(registry())
    (site / "odddep.py").write_text("def build():\n    return 1\n")
    assert state(registry()) == "ok"
    assert registry().default("odd task") == "odd:odd/one"


def test_it_ends_when_something_is_installed(site: Path) -> None:
    fail(registry())
    distribution(site, "other", "")
    assert state(registry()) == "ok", "who is installed since may be what was missing"


def test_what_nobody_could_know_is_tried_again_before_it_is_refused(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause is a variable: no file is another."""
    (site / "odddep.py").write_text(
        "import os\nif os.environ.get('ODD') != '1':\n    raise RuntimeError('odddep was built for another machine')\n"
    )
    fail(registry())
    known = registry()
    with pytest.raises(
        PluginError, match="the default model for 'odd task' cannot be used: .* odddep was built for another"
    ):
        known.default("odd task")
    monkeypatch.setenv("ODD", "1")
    known = registry()
    assert state(known) == "broken"
    assert known.default("odd task") == "odd:odd/one"
    assert state(known) == state(registry()) == "ok"
    monkeypatch.delenv("ODD")
    fail(registry())
    monkeypatch.setenv("ODD", "1")
    assert can("odd/one", dtype="bfloat16", registry=registry())[0].can is True


def test_a_plugin_that_could_not_be_listed_is_asked_again_when_its_dependency_is_mended(site: Path) -> None:
    (site / "odduser" / "zoo.toml").unlink()
    (site / "odduser" / "__init__.py").write_text(f"import odddep\n\n{HOOK}")
    assert state(registry()) == "broken"
    assert state(registry()) == "broken"
    (site / "odddep.py").write_text("")
    known = registry()
    assert state(known) == "ok"
    assert known.find("odd/one").name == "odd/one"


@pytest.mark.parametrize(
    "damage", ["[console_scripts]\nno equals sign\n", b"[x]\na = \xff\n"], ids=["unparsable", "no UTF-8"]
)
def test_a_damaged_distribution_is_named_and_spoils_no_plugin_for_longer(site: Path, damage: str | bytes) -> None:
    (site / "odddep.py").write_text("from importlib.metadata import entry_points\nentry_points(group='torch.backends')\n")
    info = distribution(site, "bent", damage)
    known = registry()
    with pytest.raises(PluginError) as caught:
        known.builder(known.find("odd/one").card)
    words = f"is broken: the metadata of the distribution bent is damaged ({info}: "
    assert words in str(caught.value)
    assert str(caught.value).endswith(f"; pip install --force-reinstall bent, or remove {info}")
    assert [one.name for one in damaged_distributions()] == ["bent"]
    (plugin,) = (one for one in scan(load_settings()) if one.name == "odd")
    assert (plugin.state, plugin.cure) == ("broken", f"pip install --force-reinstall bent, or remove {info}")
    (info / "entry_points.txt").write_text("")
    assert state(registry()) == "ok"
    assert damaged_distributions() == []


def test_who_is_not_installed_is_not_damaged(site: Path) -> None:
    distribution(site, "bent", "[console_scripts]\nno equals sign\n")
    from importlib import metadata

    with pytest.raises(metadata.PackageNotFoundError) as caught:
        metadata.version("nonesuch")
    assert at_fault(caught.value) is None
    assert at_fault(RuntimeError("something else")) is None


def test_the_command_names_a_damaged_distribution_and_shows_no_traceback(
    site: Path, main, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    # As torch does when it is imported, and here it was imported long ago.
    monkeypatch.setattr("zoo.tasks.generation.generate", lambda *_, **__: metadata.entry_points(group="torch.backends"))
    info = distribution(site, "bent", "[console_scripts]\nno equals sign\n")
    run = main("generate", "a", "--model", "smollm/tiny", "--weights", "none")
    assert run.returncode == 1
    assert run.stderr.startswith(f"zoo: the metadata of the distribution bent is damaged ({info}: ")
    assert run.stderr.count("\n") == 1
    assert [f"remove {info}" in one for one in environment()["damaged"]] == [True], "as zoo doctor says"
