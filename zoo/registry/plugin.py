"""One plugin: what is known about it, its state, and how messages name it.

States: `ok`; `disabled` by the user; `broken` (it failed, with the traceback); `incompatible` (written for another plugin
API version); `missing-extra` (a dependency is not installed); `shadowed` (another distribution claims the same names).
"""

from __future__ import annotations

import hashlib
import json
import traceback
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.registry.card import Card, Provider
from zoo.registry.manifest import Family
from zoo.registry.offers import Offers

DISTRIBUTION_OF_THIS_PROCESS = "this process"  # of models that were registered (`zoo.register`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One entry point of the group `zoo` and what became of it.

    error and cure are empty while the state is `ok`. notes are true in any state (a second installation, say). import_ms and
    listing_imports_torch are for a plugin without a manifest, whose module had to be imported to list it.
    """

    name: str
    distribution: str
    version: str
    module: str
    location: Path | None = None
    state: str = "ok"
    error: str = ""
    cure: str = ""
    traceback: str = ""
    notes: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    families: tuple[Family, ...] = ()
    schemes: tuple[str, ...] = ()
    offers: Offers = field(default_factory=Offers)
    manifest_sha256: str | None = None
    import_ms: float | None = None
    listing_imports_torch: bool = False

    @property
    def provider(self) -> Provider:
        return Provider(
            plugin=self.name,
            distribution=self.distribution,
            version=self.version,
            manifest_sha256=self.manifest_sha256,
        )

    @property
    def package(self) -> str:
        """The top-level package; a card's `build` may only point inside it."""
        return self.module.partition(".")[0]


def describe(plugin: Plugin | Provider) -> str:
    """`plugin 'leaves' (zoo-leaves 0.1.0)`, as every message names a plugin."""
    name = plugin.name if isinstance(plugin, Plugin) else plugin.plugin
    return f"plugin '{name}' ({plugin.distribution} {plugin.version})"


def code_sha256(plugin: Plugin) -> str | None:
    """sha256 over the relative paths and bytes of every file of the plugin's package, or of its single module."""
    if plugin.location is None:
        return None
    digest = hashlib.sha256()
    for path in package_files(plugin.location):
        name = (
            path.relative_to(plugin.location.parent).as_posix()
            if path.is_relative_to(plugin.location.parent)
            else path.name
        )
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def origin(plugin: Plugin) -> str | None:
    """The address that pip noted when it installed the distribution (PEP 610): of a folder, a file or a repository; None: an index."""
    url = _direct_url(plugin).get("url")
    return url if isinstance(url, str) else None


def package_files(location: Path) -> list[Path]:
    """The files that a plugin's code lies in: its package's, its single module, or the zip file that holds it."""
    for archive in (location, *location.parents):
        if archive.is_file():
            return [archive]
        if archive.is_dir():
            break
    return sorted(path for path in location.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def broken(plugin: Plugin, error: str, cure: str) -> Plugin:
    return replace(plugin, state="broken", error=error, cure=cure)


def failed(plugin: Plugin, error: BaseException) -> Plugin:
    text = "".join(traceback.format_exception(error))
    module = missing_module(plugin, error)
    if module:
        return replace(
            plugin,
            state="missing-extra",
            error=f"it imports {module!r}, which is not installed",
            cure=f"install the distribution that brings {module!r} (often: pip install {module})",
            traceback=text,
        )
    return replace(broken(plugin, f"{type(error).__name__}: {one_line(error)}", replace_it(plugin)), traceback=text)


def missing_module(plugin: Plugin, error: BaseException) -> str:
    """The top-level module of someone else's distribution that an import failed to find, or an empty string."""
    name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    top = name.partition(".")[0]
    return "" if top == plugin.package else top


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


def replace_it(plugin: Plugin) -> str:
    """The cure for code that fails: the publisher's next release, or for one's own folder the editor."""
    if _is_editable(plugin):
        return f"mend it, then: zoo check {plugin.name}"
    return (
        f"update it (pip install -U {plugin.distribution}), zoo disable {plugin.name}, "
        f"or zoo uninstall {plugin.distribution}"
    )


def _is_editable(plugin: Plugin) -> bool:
    """Whether pip installed it so that edits count (PEP 610)."""
    folder = _direct_url(plugin).get("dir_info")
    return isinstance(folder, dict) and folder.get("editable") is True


def _direct_url(plugin: Plugin) -> dict[str, Any]:
    try:
        document = json.loads(metadata.distribution(plugin.distribution).read_text("direct_url.json") or "{}")
    except Exception:  # noqa: BLE001 - damaged metadata may fail in any way, and this is only a hint
        return {}
    return document if isinstance(document, dict) else {}
