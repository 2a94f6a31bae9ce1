"""What a plugin must keep to be let in: hooks as they are specified, an api that is known, and a place on the list where there is one."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoo.errors import PluginError
from zoo.registry.activation import activate, new_manager
from zoo.registry.lookup import Registry
from zoo.registry.plugin import Plugin
from zoo.registry.settings import load_settings

HEAD = "from zoo.api import hookimpl\n"
ROW = "[{'name': 'a', 'kind': 'encoder', 'modalities': ['text']}]"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Lay a plugin of one file beside the installed ones, as pip would; returns its module."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    def lay(name: str, code: str) -> Path:
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[zoo]\n{name} = odd_{name}\n")
        (info / "direct_url.json").write_text(json.dumps({"url": f"file:///work/{name}", "dir_info": {}}))
        (folder / f"odd_{name}.py").write_text(code)
        return folder / f"odd_{name}.py"

    return lay


WRONG = {
    "misspelt": ("@hookimpl\ndef zoo_card(): return []", "unknown hook 'zoo_card'"),
    "misspelt argument": ("@hookimpl\ndef zoo_build(card, argument): ...", "argument"),
    "one more": ("@hookimpl\ndef zoo_cards(pattern): return []", "pattern"),
    "one more with a default": (
        "@hookimpl\ndef zoo_cards(pattern='*'): return []",
        "zoo_cards has the argument pattern='*'",
    ),
    "a default": ("@hookimpl\ndef zoo_build(card, arguments=None): ...", "zoo_build has the argument arguments=None"),
    "by name alone": ("@hookimpl\ndef zoo_build(card, *, arguments): ...", "zoo_build has the argument arguments"),
    "all there is": ("@hookimpl\ndef zoo_build(**given): ...", r"zoo_build has the argument \*\*given"),
    "as many as there are": ("@hookimpl\ndef zoo_build(*given): ...", r"zoo_build has the argument \*given"),
    "not marked": (
        "def zoo_cards(): return []",
        "zoo_cards has the name of a hook and is not marked as one: write @hookimpl",
    ),
}


@pytest.mark.covers("P5")
@pytest.mark.parametrize("fault", WRONG)
def test_a_hook_that_is_none_is_an_error_when_the_plugin_is_loaded(site, fault: str) -> None:
    code, message = WRONG[fault]
    path = site("odd", HEAD + code + "\n")
    plugin, manager = Plugin(name="odd", distribution="odd", version="1.0", module="odd_odd", location=path), new_manager()
    try:
        with pytest.raises(PluginError, match=rf"plugin 'odd' \(odd 1.0\) is broken: .*{message}"):
            activate(plugin, manager)
        assert manager.list_name_plugin() == []
    finally:
        sys.modules.pop("odd_odd", None)


def test_a_hook_may_leave_out_what_it_does_not_need(site) -> None:
    code = "@hookimpl\ndef zoo_build(card): ...\n@hookimpl(specname='zoo_cards')\ndef rows(): return []\ndef zoo_of_mine(a=1): ...\n"
    path = site("odd", HEAD + code)
    plugin = Plugin(name="odd", distribution="odd", version="1.0", module="odd_odd", location=path)
    try:
        assert activate(plugin, new_manager()).__name__ == "odd_odd"
    finally:
        sys.modules.pop("odd_odd", None)


@pytest.mark.covers("P5")
def test_the_command_says_so_when_it_lists(zoo, site) -> None:
    site("odd", f"{HEAD}def zoo_cards(): return {ROW}\n")
    (plugin,) = [one for one in json.loads(zoo("plugins", "--json").stdout)["plugins"] if one["name"] == "odd"]
    assert (plugin["state"], plugin["cards"]) == ("broken", [])
    assert "zoo_cards has the name of a hook and is not marked as one" in plugin["error"]


@pytest.mark.covers("A27")
def test_a_plugin_that_is_not_on_the_list_is_not_imported(
    zoo, site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked for; on the list, or where there is none, it is, and all that can be known of it is shown."""
    marker = tmp_path / "marker"
    site("odd", f"open({str(marker)!r}, 'w').close()\n{HEAD}@hookimpl\ndef zoo_cards(): return {ROW}\n")

    def row() -> dict[str, Any]:
        (plugin,) = [one for one in json.loads(zoo("plugins", "--json").stdout)["plugins"] if one["name"] == "odd"]
        return plugin

    for way in ("variable", "config"):
        if way == "variable":
            monkeypatch.setenv("ZOO_PLUGINS", "text")
        else:
            monkeypatch.delenv("ZOO_PLUGINS")
            (tmp_path / "config.toml").write_text('only = ["text"]\n')
        assert (row()["state"], row()["version"], row()["origin"]) == ("disabled", "1.0", "file:///work/odd")
        registry = Registry(load_settings())
        assert not [card for card in registry.cards() if card.name.startswith("odd/")]
        with pytest.raises(PluginError, match=r"'odd/a' cannot be had: plugin 'odd' \(odd 1.0\) is disabled"):
            registry.find("odd/a")
        assert not marker.exists()
    run = zoo("embed", "x", "--model", "odd/a", "--weights", "none", "--out", str(tmp_path / "e.npz"))
    assert (run.returncode, "plugin 'odd' (odd 1.0) is disabled" in run.stderr) == (1, True), run.stderr
    assert not marker.exists()
    (tmp_path / "config.toml").unlink()
    plugin = row()
    assert marker.exists()
    assert (plugin["state"], plugin["version"], plugin["origin"], len(plugin["files_sha256"])) == (
        "ok", "1.0", "file:///work/odd", 64
    )  # fmt: skip
    assert plugin["location"] == str(tmp_path / "site" / "odd_odd.py")
