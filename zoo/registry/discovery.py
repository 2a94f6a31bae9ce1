"""Finding plugins: entry points and manifests are read, and no plugin code runs in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from zoo.errors import ManifestError, PluginError
from zoo.registry.activation import TRIAL_TIMEOUT_S, list_in_child, try_in_child, with_failure
from zoo.registry.documents import parse_toml
from zoo.registry.manifest import Manifest, api_matches, card_from_hook, read_manifest
from zoo.registry.plugin import Plugin, broken, describe, failed, one_line
from zoo.registry.records import drop_record, read_record
from zoo.registry.settings import Settings

GROUP = "zoo"
MANIFEST = "zoo.toml"
API_VERSION = 1
UNLISTED = "unlisted"  # until its hook has been asked; no plugin that leaves this file is in this state


def scan(settings: Settings) -> list[Plugin]:
    """Every installed plugin, sorted by name and distribution so that the order on `sys.path` decides nothing.

    Only a plugin without a manifest is imported, in a process of its own. Nothing raises but with `settings.strict`, where the first plugin that is
    broken raises PluginError.
    """
    plugins: list[Plugin] = []
    unlisted: list[Plugin] = []
    for distribution, notes in _distributions():
        for plugin in _plugins_of(distribution, settings):
            (plugins if plugin.state != UNLISTED else unlisted).append(replace(plugin, notes=notes))
    plugins += _list_in_children(unlisted)
    plugins.sort(key=lambda plugin: (plugin.name, plugin.distribution))
    if settings.strict:
        plugins = [try_again(one, timeout_s=TRIAL_TIMEOUT_S) if one.state == "broken" else one for one in plugins]
        for plugin in plugins:
            if plugin.state in ("broken", "incompatible", "missing-extra"):
                raise PluginError(f"{describe(plugin)} is {plugin.state}: {plugin.error} (ZOO_STRICT is set)")
    return plugins


def plugin_distributions() -> dict[str, list[str]]:
    """Distribution -> names of its plugins, from metadata alone: complete whatever state the plugins are in."""
    owners: dict[str, list[str]] = {}
    for distribution, _ in _distributions():
        try:
            names = [entry_point.name for entry_point in distribution.entry_points.select(group=GROUP)]
        except Exception:  # noqa: BLE001 - damaged metadata may fail in any way, and is no reason to keep the distribution
            names = []
        owners[_name(distribution)] = names
    return owners


def manifest_hashes(plugin: Plugin) -> set[str]:
    """Every sha256 that a plugin's manifest names, whatever state the plugin is in; runs no plugin code.

    A manifest for another API version, or one with a wrong field, still says which bytes it needs: any 64 hex digits in it
    count. Without a manifest, what the plugin answered when it was last listed counts.
    Raises PluginError, naming the plugin, when neither can be read.
    """
    text = _manifest_text(plugin)
    return set(re.findall(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", text))


def manifest_tasks(plugin: Plugin) -> set[str]:
    """The tasks that a plugin offers a default model for, whatever state it is in; what cannot be read offers none."""
    try:
        document = parse_toml(_manifest_text(plugin))
        return {task for card in document["card"] for task in card.get("default_for", ()) if isinstance(task, str)}
    except (PluginError, ValueError, LookupError, TypeError, AttributeError):
        return {task for card in plugin.cards for task in card.default_for}


def _manifest_text(plugin: Plugin) -> str:
    """The manifest as it lies there, or the rows of the hook as JSON; an empty string while the plugin's cards came from it just now.

    Raises PluginError, naming the plugin, when neither can be read.
    """
    try:
        spec = find_spec(plugin.package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise PluginError(f"the manifest of {describe(plugin)} cannot be read: its module {plugin.package!r} is not there")
    folder = next(iter(spec.submodule_search_locations or ()), None)
    try:
        if folder is None:
            raise FileNotFoundError("a single module")
        text = _read(spec, Path(folder) / MANIFEST).decode("utf-8")
        parse_toml(text)  # one that is cut off would be missing hashes
    except OSError as error:
        if plugin.cards:
            return ""  # they came from its hook, just now
        where = folder if folder is not None else spec.origin
        record = read_record("listing", replace(plugin, location=Path(where) if where else None))
        if record is None or "rows" not in record:
            raise PluginError(
                f"{describe(plugin)} is {plugin.state} and has no manifest that can be read, so its cards are not known"
            ) from error
        text = json.dumps(record["rows"])
    except ValueError as error:
        raise PluginError(f"the manifest of {describe(plugin)} cannot be read: {one_line(error)}") from error
    return text


def _distributions() -> Iterator[tuple[metadata.Distribution, tuple[str, ...]]]:
    """Distributions with entry points of the group; the first of equally named ones counts, as for pip.

    The others (a stale egg-info beside an editable installation, say) are named in the notes.
    """
    found: dict[str, list[metadata.Distribution]] = {}
    for distribution in metadata.distributions():
        # Most distributions have no entry point of ours: a substring test spares them from being parsed.
        if f"[{GROUP}]" in _entry_point_text(distribution):
            name = re.sub(r"[-_.]+", "-", _name(distribution)).lower()
            found.setdefault(name, []).append(distribution)
    for distribution, *others in found.values():
        notes = tuple(
            f"{_name(other)} {_version(other)} also lies in {_folder(other)}, after {_folder(distribution)} on sys.path, and "
            f"is not used: remove the one that is stale"
            for other in others
            if _folder(other) != _folder(distribution)
        )
        yield distribution, notes


def _plugins_of(distribution: metadata.Distribution, settings: Settings) -> Iterator[Plugin]:
    """The plugins of a distribution; a broken one in their place when its metadata cannot be made sense of."""
    unknown = Plugin(name=_name(distribution), distribution=_name(distribution), version=_version(distribution), module="")
    try:
        entry_points = list(distribution.entry_points.select(group=GROUP))
        _ = [(entry_point.module, _metadata(distribution)["Name"]) for entry_point in entry_points]
    except Exception as error:  # noqa: BLE001 - the metadata of one distribution must not cost the others theirs
        yield broken(unknown, f"its installed metadata is damaged ({type(error).__name__})", _reinstall(unknown))
        return
    for entry_point in entry_points:
        try:
            yield _inspect(entry_point, distribution, settings)
        except Exception as error:  # noqa: BLE001 - as above
            plugin = replace(unknown, name=entry_point.name)
            yield broken(plugin, f"it cannot be read ({type(error).__name__}: {one_line(error)})", _reinstall(plugin))


def _entry_point_text(distribution: metadata.Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError:
        return f"[{GROUP}]"  # it is read again, and named, where plugins are made


@cache
def _metadata(distribution: metadata.Distribution) -> metadata.PackageMetadata:
    """Parsed once: the library parses it anew for each field."""
    return distribution.metadata


def _name(distribution: metadata.Distribution) -> str:
    """Its name; that of its folder when its metadata is missing."""
    try:
        name = _metadata(distribution)["Name"]
    except Exception:  # noqa: BLE001 - damaged metadata may fail in any way
        name = None
    folder = Path(str(getattr(distribution, "_path", ""))).stem
    return str(name or folder.partition("-")[0] or "unknown")


def _version(distribution: metadata.Distribution) -> str:
    try:
        return _metadata(distribution)["Version"] or "unknown"
    except Exception:  # noqa: BLE001 - as above
        return "unknown"


def _folder(distribution: metadata.Distribution) -> str:
    return str(Path(str(distribution.locate_file(""))).resolve())


def _inspect(entry_point: metadata.EntryPoint, distribution: metadata.Distribution, settings: Settings) -> Plugin:
    plugin = Plugin(
        name=entry_point.name,
        distribution=_name(distribution),
        version=_version(distribution),
        module=entry_point.module,
    )
    names = {plugin.name, plugin.distribution}
    if names & set(settings.disabled) or (settings.only is not None and not names & set(settings.only)):
        return _disabled(plugin, settings)
    try:
        spec = find_spec(plugin.package)
    except (ImportError, ValueError) as error:
        spec, reason = None, one_line(error)
    else:
        reason = f"its module {plugin.package!r} cannot be found"
    if spec is None:
        return broken(plugin, f"{reason}: the installation is incomplete", _reinstall(plugin))
    folder = next(iter(spec.submodule_search_locations or ()), None)
    if folder is None:
        plugin = replace(plugin, location=Path(spec.origin) if spec.origin else None)
        return _without_manifest(plugin, distribution)
    plugin = replace(plugin, location=Path(folder))
    path = Path(folder) / MANIFEST
    try:
        raw = _read(spec, path)
    except OSError:
        return _without_manifest(plugin, distribution)
    try:
        manifest = read_manifest(
            raw,
            path,
            plugin=plugin.name,
            distribution=plugin.distribution,
            version=plugin.version,
            package=plugin.package,
            api_version=API_VERSION,
        )
    except ManifestError as error:
        return broken(plugin, one_line(error), f"mend the manifest, or: zoo uninstall {plugin.distribution}")
    return _with_manifest(plugin, distribution, manifest)


def _disabled(plugin: Plugin, settings: Settings) -> Plugin:
    """Says who disabled it, and the way back that works."""
    names = {plugin.name, plugin.distribution}
    if names & set(settings.disabled_by_environment):
        error, cure = "disabled by the variable ZOO_DISABLE", "take it out of ZOO_DISABLE"
    elif names & set(settings.disabled):
        error, cure = "disabled by you", f"zoo enable {plugin.name}"
    else:
        error, cure = "not among those that ZOO_PLUGINS or `only` in the config file allow", "add it there"
    return replace(plugin, state="disabled", error=error, cure=cure)


def _read(spec: ModuleSpec, path: Path) -> bytes:
    """A file beside a package, which may lie inside a zip file (a wheel on `sys.path`)."""
    get_data = getattr(spec.loader, "get_data", None)
    return path.read_bytes() if get_data is None else bytes(get_data(str(path)))


def _with_manifest(plugin: Plugin, distribution: metadata.Distribution, manifest: Manifest) -> Plugin:
    plugin = replace(
        plugin,
        cards=manifest.cards,
        families=manifest.families,
        schemes=manifest.schemes,
        offers=manifest.offers,
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
    return _incomplete(plugin, missing) if missing else with_failure(plugin)


def _without_manifest(plugin: Plugin, distribution: metadata.Distribution) -> Plugin:
    missing = _missing_requirements(distribution)
    return _incomplete(plugin, missing) if missing else replace(plugin, state=UNLISTED)


def _list_in_children(plugins: list[Plugin]) -> list[Plugin]:
    """Ask the hook `zoo_cards` of each, in a process of its own: nothing that a listing meets may hang it or end it."""
    if len(plugins) < 2:
        return [_list_in_child(plugin) for plugin in plugins]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        return list(pool.map(_list_in_child, plugins))


def try_again(plugin: Plugin, *, timeout_s: float) -> Plugin:
    """A plugin after a trial in a process of its own, whatever is kept of the last one: what failed may have been the machine.

    One that is disabled or incomplete, or whose manifest is wrong, is as it was.
    """
    if plugin.state == "broken" and not plugin.cards and read_record("listing", plugin) is not None:
        drop_record("listing", plugin)
        plugin = _list_in_child(plugin)
    known = bool(plugin.cards or plugin.families or plugin.schemes or plugin.offers)
    return try_in_child(plugin, timeout_s=timeout_s) if known and plugin.state in ("ok", "shadowed", "broken") else plugin


def _list_in_child(plugin: Plugin) -> Plugin:
    plugin = replace(plugin, state="ok")
    answer = list_in_child(plugin)
    if isinstance(answer, Plugin):
        return answer
    plugin = replace(plugin, import_ms=answer["import_ms"], listing_imports_torch=answer["imports_torch"])
    try:
        cards = tuple(card_from_hook(row, plugin.provider) for row in answer["rows"])
        if not cards:
            raise PluginError("it has neither a zoo.toml beside its module nor a hook zoo_cards that returns cards")
    except (ManifestError, PluginError) as error:
        return failed(plugin, error)
    return with_failure(replace(plugin, cards=cards))


def _incomplete(plugin: Plugin, missing: list[str]) -> Plugin:
    requirements = " ".join(repr(item) if set(item) & set(" <>") else item for item in missing)
    return replace(
        plugin, state="missing-extra", error=f"not installed: {', '.join(missing)}", cure=f"pip install {requirements}"
    )


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


def _reinstall(plugin: Plugin) -> str:
    return f"pip install --force-reinstall {plugin.distribution}, or: zoo uninstall {plugin.distribution}"
