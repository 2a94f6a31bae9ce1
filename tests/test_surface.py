"""What plugins and users import is what the version of the plugin API promises."""

import difflib

import pytest
import surface

from zoo.api import API_VERSION


def test_the_surfaces_are_those_of_the_api_version() -> None:
    """A name or an argument that goes needs a new version; one that comes is written down (docs/versions.md)."""
    promised = surface.recorded(API_VERSION).read_text(encoding="utf-8").splitlines()
    found = surface.surface().splitlines()
    gone = surface.lost(promised, found)
    new = [line for line in found if line not in promised]
    told = "\n".join(difflib.unified_diff(promised, found, lineterm="", n=0))
    assert not gone, f"raise API_VERSION, or bring it back:\n{told}"
    assert not new, f"write it down, python tests/surface.py --write:\n{told}"


@pytest.mark.parametrize("name", surface.SURFACES)
def test_a_surface_is_small_and_says_what_it_has(name: str) -> None:
    from importlib import import_module

    module = import_module(name)
    assert module.__doc__
    assert len(module.__all__) <= 80
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for exported in module.__all__:
        assert getattr(module, exported) is not None
    with pytest.raises(AttributeError):
        module.nonsense  # noqa: B018


def test_a_break_is_seen() -> None:
    promised = surface.surface().splitlines()
    assert surface.lost(promised, promised) == []
    assert surface.lost(promised, promised[1:]) == promised[:1]
    (contract,) = [line.partition("(")[0] for line in promised if line.startswith("zoo.api.Bridge(")]
    assert surface.lost(promised, [*promised, f"{contract}.colour(self)"]) == [f"{contract}.colour(self)"]
    assert surface.lost(promised, [*promised, "zoo.api.colour()"]) == []
    assert "zoo.api.MediaError is a ZooError" in promised
    assert "zoo.api.Classifier.labels" in promised
    assert any(line.startswith("zoo.open_model(") and "weights='card'" in line for line in promised)
