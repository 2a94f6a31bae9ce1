"""Running a plugin's code: its module is imported and registered with pluggy, alone, and its hooks are called alone."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo.errors import PluginError, ZooError
from zoo.plugin import Plugin, describe, failed, missing_module, one_line
from zoo.quarantine import forget, record

if TYPE_CHECKING:
    import pluggy


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
        failure = failed(plugin, error)
        record(failure, missing_module(plugin, error))
        raise PluginError(f"{describe(plugin)} is {failure.state}: {failure.error}; {failure.cure}") from error
    forget(plugin)
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
        failure = failed(plugin, error)
        record(failure, missing_module(plugin, error))
        raise PluginError(f"{describe(plugin)} is {failure.state}: {failure.error}; {failure.cure}") from error


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
            f"{describe(plugin)} raised {type(error).__name__} in its hook {hook}: {one_line(error)}"
        ) from error
    return results[0] if isinstance(results, list) and results else results or None


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the zoo's hooks and no plugin."""
    import pluggy

    from zoo import hookspecs

    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(hookspecs)
    return manager
