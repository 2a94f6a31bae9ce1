"""zoo.toml: every field is checked, and an error names file and line."""

from pathlib import Path

import pytest

from zoo.errors import ManifestError
from zoo.registry.manifest import Manifest, api_matches, read_manifest

GOOD = """api = ">=1,<2"

[[card]]
name = "first"
kind = "encoder"
modalities = ["image"]
build = "pkg.model:build"
parameters = 12
variant = { depth = 2 }

[[card.weights]]
tag = "a"

[[card.weights.file]]
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
bytes = 3
sources = ["file:/x", ["pypi:a==1/b#sha256=00", "pypi:c==1/d#sha256=00"]]

[[card]]
name = "second"
kind = "encoder"
modalities = ["text", "image"]
keys = "pkg.keys:rename"
"""


def read(tmp_path: Path, text: str) -> Manifest:
    path = tmp_path / "zoo.toml"
    path.write_text(text, encoding="utf-8")
    return read_manifest(
        path.read_bytes(), path, plugin="plug", distribution="dist", version="1", package="pkg", api_version=1
    )


def test_reads_cards(tmp_path: Path) -> None:
    manifest = read(tmp_path, GOOD)
    first, second = manifest.cards
    assert (first.name, second.name) == ("plug/first", "plug/second")
    assert first.variant == {"depth": 2}
    assert (first.keys, second.keys) == (None, "pkg.keys:rename")
    assert first.weights[0].files[0].sources == ("file:/x", ("pypi:a==1/b#sha256=00", "pypi:c==1/d#sha256=00"))
    assert first.weights[0].size_bytes == 3
    assert first.provider.manifest_sha256 == manifest.sha256


def test_cards_cannot_be_changed(tmp_path: Path) -> None:
    card = read(tmp_path, GOOD).cards[0]
    with pytest.raises(AttributeError):
        card.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        card.variant["depth"] = 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('api = ">=1,<2"', 'api = "1"', 1, 'api is a range such as ">=1,<2", got \'1\''),
        ('kind = "encoder"\nmodalities = ["image"]', 'kind = "encodr"\nmodalities = ["image"]', 5, "kind must be one of"),
        ('modalities = ["text", "image"]', 'modalities = ["text", "smell"]', 22, "modalities must be among"),
        ("parameters = 12", "parameter = 12", 8, "unknown field 'parameter'; known are"),
        ("parameters = 12", 'parameters = "12"', 8, "parameters must be a whole number, got '12'"),
        ('build = "pkg.model:build"', 'build = "pkg.model"', 7, 'build is "package.module:function"'),
        ('build = "pkg.model:build"', 'build = "os:system"', 7, "build may only point inside the plugin's own package 'pkg'"),
        ('keys = "pkg.keys:rename"', 'keys = "os.path:join"', 23, "keys may only point inside the plugin's own package 'pkg'"),
        ('name = "second"', 'name = "../second"', 20, "must match"),
        ('name = "second"', 'name = "first"', 20, "two cards are called 'plug/first'"),
        ('sha256 = "00', 'sha256 = "0G', 15, "sha256 must be 64 lower-case hex digits"),
        ('sources = ["file:/x"', 'sources = ["/x"', 17, 'a source is "scheme:..."'),
        ("[[card.weights]]", "[[card.weights", 11, "not valid TOML"),
    ],
)  # fmt: skip
def test_errors_name_the_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path / 'zoo.toml'}:{line}: ")
    assert message in str(caught.value)


def test_another_api_version_is_not_read_further(tmp_path: Path) -> None:
    assert read(tmp_path, 'api = ">=2"\nfuture = "unknown here"\n').cards == ()


@pytest.mark.parametrize(
    ("api", "version", "expected"),
    [(">=1,<2", 1, True), (">=1,<2", 2, False), ("==3", 3, True), (">1", 1, False), ("<=4", 4, True)],
)
def test_api_ranges(api: str, version: int, expected: bool) -> None:
    assert api_matches(api, version) is expected
