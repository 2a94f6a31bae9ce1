"""Finding plugins (no plugin code runs) and activating one (its module is imported and registered with pluggy).

States: `ok`; `disabled` by the user; `broken` (it failed, with the traceback); `incompatible` (written for another plugin
API version); `missing-extra` (a dependency is not installed); `shadowed` (another distribution claims the same names).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo.card import Card, Provider
from zoo.errors import ManifestError, PluginError, ZooError
from zoo.manifest import Family, Manifest, api_matches, card_from_hook, read_manifest
from zoo.settings import Settings, state_dir

if TYPE_CHECKING:
    import pluggy

GROUP = "zoo"
MANIFEST = "zoo.toml"
API_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One entry point of the group `zoo` and what became of it.

    error and cure are empty while the state is `ok`. import_ms is set for a plugin without a manifest, whose module had
    to be imported to list it.
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
    cards: tuple[Card, ...] = ()
    families: tuple[Family, ...] = ()
    schemes: tuple[str, ...] = ()
    manifest_sha256: str | None = None
    import_ms: float | None = None

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


def scan(settings: Settings) -> list[Plugin]:
    """Every installed plugin, sorted by name and distribution so that the order on `sys.path` decides nothing.

    Only a plugin without a manifest is imported. Nothing raises but with `settings.strict`, where the first plugin that is
    broken raises PluginError.
    """
    plugins = [_inspect(entry_point, distribution, settings) for entry_point, distribution in _entry_points()]
    plugins.sort(key=lambda plugin: (plugin.name, plugin.distribution))
    if settings.strict:
        for plugin in plugins:
            if plugin.state in ("broken", "incompatible", "missing-extra"):
                raise PluginError(f"{describe(plugin)} is {plugin.state}: {plugin.error} (ZOO_STRICT is set)")
    return plugins


def describe(plugin: Plugin | Provider) -> str:
    """`plugin 'timm' (modalzoo-timm 0.1.0)`, as every message names a plugin."""
    name = plugin.name if isinstance(plugin, Plugin) else plugin.plugin
    return f"plugin '{name}' ({plugin.distribution} {plugin.version})"


def code_sha256(plugin: Plugin) -> str | None:
    """sha256 over the relative paths and bytes of every file of the plugin's package, or of its single module."""
    if plugin.location is None:
        return None
    digest = hashlib.sha256()
    for path in _package_files(plugin.location):
        digest.update(f"{path.relative_to(plugin.location.parent).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def activate(plugin: Plugin, manager: pluggy.PluginManager) -> ModuleType:
    """Import a plugin's module and register it; does nothing when that was done before.

    Raises PluginError when the plugin is unusable or fails now. A failure is recorded, so that later listings show the
    plugin as broken until its files change, and everything the plugin had registered is withdrawn.
    """
    if plugin.state in ("disabled", "incompatible", "missing-extra"):
        raise PluginError(f"{describe(plugin)} is {plugin.state}: {plugin.error}; {plugin.cure}")
    key = f"{plugin.distribution}:{plugin.name}"
    known = manager.get_plugin(key)
    if isinstance(known, ModuleType):
        return known
    try:
        module = importlib.import_module(plugin.module)
        manager.register(module, key)
        manager.check_pending()
    except (Exception, SystemExit) as error:
        if manager.has_plugin(key):
            manager.unregister(name=key)
        failed = _failed(plugin, error)
        _record(failed, _missing_module(plugin, error))
        raise PluginError(f"{describe(plugin)} is {failed.state}: {failed.error}; {failed.cure}") from error
    _forget(plugin)
    return module


def resolve(plugin: Plugin, target: str, manager: pluggy.PluginManager) -> Any:
    """`"package.module:function"` -> the function, inside the plugin's own package only.

    Raises PluginError when the target lies elsewhere or cannot be imported.
    """
    module_name, _, attribute = target.partition(":")
    if module_name.partition(".")[0] != plugin.package:
        raise PluginError(
            f"{describe(plugin)} points to {target!r}, but may only point inside its own package {plugin.package!r}"
        )
    activate(plugin, manager)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:
        failed = _failed(plugin, error)
        _record(failed, _missing_module(plugin, error))
        raise PluginError(f"{describe(plugin)} is {failed.state}: {failed.error}; {failed.cure}") from error


def call_hook(plugin: Plugin, hook: str, manager: pluggy.PluginManager, **arguments: Any) -> Any:
    """Call one plugin's implementation of a hook, and nobody else's; None when it has none.

    Raises PluginError, naming plugin and hook, whatever the hook raised.
    """
    activate(plugin, manager)
    key = f"{plugin.distribution}:{plugin.name}"
    others = [other for name, other in manager.list_name_plugin() if name != key and other is not None]
    try:
        results = manager.subset_hook_caller(hook, others)(**arguments)
    except ZooError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{describe(plugin)} raised {type(error).__name__} in its hook {hook}: {_one_line(error)}"
        ) from error
    return results[0] if isinstance(results, list) and results else results or None


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the zoo's hooks and no plugin."""
    import pluggy

    from zoo import hookspecs

    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(hookspecs)
    return manager


def _entry_points() -> Iterator[tuple[metadata.EntryPoint, metadata.Distribution]]:
    """Entry points of the group, one distribution at a time; the first of equally named distributions counts, as for pip."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        # Most distributions have no entry point of ours: a substring test spares them from being parsed.
        if f"[{GROUP}]" not in (distribution.read_text("entry_points.txt") or ""):
            continue
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name in seen:
            continue
        seen.add(name)
        for entry_point in distribution.entry_points.select(group=GROUP):
            yield entry_point, distribution


def _inspect(entry_point: metadata.EntryPoint, distribution: metadata.Distribution, settings: Settings) -> Plugin:
    plugin = Plugin(
        name=entry_point.name,
        distribution=distribution.metadata["Name"],
        version=distribution.version,
        module=entry_point.module,
    )
    names = {plugin.name, plugin.distribution}
    if names & set(settings.disabled) or (settings.only is not None and not names & set(settings.only)):
        reason = "left out by ZOO_PLUGINS" if not names & set(settings.disabled) else "disabled by you"
        return replace(plugin, state="disabled", error=reason, cure=f"zoo enable {plugin.name}")
    try:
        spec = find_spec(plugin.package)
    except (ImportError, ValueError) as error:
        spec, reason = None, _one_line(error)
    else:
        reason = f"its module {plugin.package!r} cannot be found"
    if spec is None:
        return _broken(plugin, f"{reason}: the installation is incomplete", _reinstall(plugin))
    folder = next(iter(spec.submodule_search_locations or ()), None)
    if folder is None:
        plugin = replace(plugin, location=Path(spec.origin) if spec.origin else None)
        return _inspect_without_manifest(plugin, distribution)
    plugin = replace(plugin, location=Path(folder))
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return _inspect_without_manifest(plugin, distribution)
    try:
        manifest = read_manifest(
            path,
            plugin=plugin.name,
            distribution=plugin.distribution,
            version=plugin.version,
            package=plugin.package,
            api_version=API_VERSION,
        )
    except (ManifestError, OSError) as error:
        return _broken(plugin, _one_line(error), f"mend the manifest, or: zoo uninstall {plugin.distribution}")
    return _with_manifest(plugin, distribution, manifest)


def _with_manifest(plugin: Plugin, distribution: metadata.Distribution, manifest: Manifest) -> Plugin:
    plugin = replace(
        plugin,
        cards=manifest.cards,
        families=manifest.families,
        schemes=manifest.schemes,
        manifest_sha256=manifest.sha256,
    )
    if not api_matches(manifest.api, API_VERSION):
        return replace(
            plugin,
            state="incompatible",
            error=f"written for plugin API {manifest.api}; this zoo has {API_VERSION}",
            cure=f"install a release of {plugin.distribution} that fits, or another modalzoo",
        )
    missing = _missing_requirements(distribution)
    if missing:
        return replace(
            plugin,
            state="missing-extra",
            error=f"not installed: {', '.join(missing)}",
            cure=f"pip install {' '.join(repr(item) if ' ' in item or '<' in item or '>' in item else item for item in missing)}",
        )
    return recorded(plugin)


def _inspect_without_manifest(plugin: Plugin, distribution: metadata.Distribution) -> Plugin:
    """Import the module and ask its `zoo_cards` hook, in a manager of its own."""
    missing = _missing_requirements(distribution)
    if missing:
        return replace(
            plugin,
            state="missing-extra",
            error=f"not installed: {', '.join(missing)}",
            cure=f"pip install {' '.join(missing)}",
        )
    start = time.perf_counter()
    manager = new_manager()
    try:
        activate(plugin, manager)
        rows = call_hook(plugin, "zoo_cards", manager)
        cards = tuple(card_from_hook(row, plugin.provider) for row in rows or ())
        if not cards:
            raise PluginError("it has neither a zoo.toml beside its module nor a hook zoo_cards that returns cards")
    except PluginError as error:
        cause = error.__cause__ or error
        return replace(_failed(plugin, cause), import_ms=1000 * (time.perf_counter() - start))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's hook returned must not reach the listing
        return replace(_failed(plugin, error), import_ms=1000 * (time.perf_counter() - start))
    return replace(plugin, cards=cards, import_ms=1000 * (time.perf_counter() - start))


def _missing_requirements(distribution: metadata.Distribution) -> list[str]:
    missing = []
    for requirement in distribution.requires or ():
        specification, _, marker = requirement.partition(";")
        if "extra" in marker:
            continue
        name = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", specification)
        if name is None:
            continue
        try:
            metadata.distribution(name[1])
        except metadata.PackageNotFoundError:
            if not marker or _marker_holds(marker):
                missing.append(specification.strip())
    return missing


def _marker_holds(marker: str) -> bool:
    from packaging.markers import InvalidMarker, Marker  # rarely needed, and slow to import

    try:
        return Marker(marker.strip()).evaluate()
    except InvalidMarker:
        return True


def record_failure(plugin: Plugin, error: str, details: str) -> Plugin:
    """The plugin as broken for a reason seen from outside (it hung, it ended its interpreter), remembered."""
    failed = replace(_broken(plugin, error, _replace_it(plugin)), traceback=details)
    _record(failed)
    return failed


def _replace_it(plugin: Plugin) -> str:
    return (
        f"update it (pip install -U {plugin.distribution}), zoo disable {plugin.name}, "
        f"or zoo uninstall {plugin.distribution}"
    )


def _reinstall(plugin: Plugin) -> str:
    return f"pip install --force-reinstall {plugin.distribution}, or: zoo uninstall {plugin.distribution}"


def _broken(plugin: Plugin, error: str, cure: str) -> Plugin:
    return replace(plugin, state="broken", error=error, cure=cure)


def _failed(plugin: Plugin, error: BaseException) -> Plugin:
    text = "".join(traceback.format_exception(error))
    module = _missing_module(plugin, error)
    if module:
        return replace(
            plugin,
            state="missing-extra",
            error=f"it imports {module!r}, which is not installed",
            cure=f"install the distribution that brings {module!r} (often: pip install {module})",
            traceback=text,
        )
    return replace(_broken(plugin, f"{type(error).__name__}: {_one_line(error)}", _replace_it(plugin)), traceback=text)


def _missing_module(plugin: Plugin, error: BaseException) -> str:
    """The top-level module of someone else's distribution that an import failed to find, or an empty string."""
    name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    top = name.partition(".")[0]
    return "" if top == plugin.package else top


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


# A plugin with a manifest is not imported by listings, so what its activation did is remembered between processes.


def _records_file() -> Path:
    return state_dir() / "activations.json"


def _read_records() -> dict[str, Mapping[str, str]]:
    try:
        records = json.loads(_records_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def _write_records(records: Mapping[str, Mapping[str, str]]) -> None:
    path = _records_file()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        pass  # a read-only home loses the record, never the answer


def _record_key(plugin: Plugin) -> str:
    return f"{plugin.distribution}:{plugin.name} {plugin.version}"


def _fingerprint(plugin: Plugin) -> str:
    if plugin.location is None or not plugin.location.exists():
        return ""
    stats = [(str(path), path.stat()) for path in _package_files(plugin.location)]
    return hashlib.sha256(repr([(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]).encode()).hexdigest()


def _package_files(location: Path) -> list[Path]:
    if location.is_file():
        return [location]
    return sorted(path for path in location.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _record(plugin: Plugin, missing_module: str = "") -> None:
    fields = {"state": plugin.state, "error": plugin.error, "cure": plugin.cure, "traceback": plugin.traceback}
    records = _read_records()
    records[_record_key(plugin)] = {**fields, "fingerprint": _fingerprint(plugin), "missing_module": missing_module}
    _write_records(records)


def _forget(plugin: Plugin) -> None:
    records = _read_records()
    if records.pop(_record_key(plugin), None) is not None:
        _write_records(records)


def recorded(plugin: Plugin) -> Plugin:
    """The plugin with the failure of an earlier activation, if its files have not changed since."""
    record = _read_records().get(_record_key(plugin))
    if record is None or record.get("fingerprint") != _fingerprint(plugin):
        return plugin
    missing_module = str(record.get("missing_module", ""))
    if missing_module and find_spec(missing_module) is not None:
        return plugin
    state = str(record.get("state"))
    if state not in ("broken", "missing-extra"):
        return plugin
    error, cure, details = (str(record.get(key, "")) for key in ("error", "cure", "traceback"))
    return replace(plugin, state=state, error=error, cure=cure, traceback=details)
