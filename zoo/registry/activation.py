"""Running a plugin's code: its module is imported and registered with pluggy, alone, and its hooks are called alone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.errors import PluginError, ZooError
from zoo.registry.plugin import Plugin, broken, describe, failed, missing_module, one_line, replace_it
from zoo.registry.records import attempt, drop_record, ended_the_interpreter, read_record, write_record
from zoo.registry.terminal import message as terminal_message

if TYPE_CHECKING:
    import pluggy

    from zoo.registry import child

TRIAL_TIMEOUT_S = 60.0
LISTING_TIMEOUT_S = 10.0
TRY_AGAIN = "zoo doctor tries it once more"
UNUSABLE = ("disabled", "incompatible", "missing-extra")

_Result = TypeVar("_Result")


def activate(plugin: Plugin, manager: pluggy.PluginManager) -> ModuleType:
    """Import a plugin's module and register it; does nothing when that was done before.

    A plugin that ended the interpreter the last time is tried in a process of its own first. What the import changed of the
    whole process (default dtype, random states, ...) is put back, with a warning.
    Raises PluginError when the plugin is unusable or fails now. A failure is recorded, so that later listings show the
    plugin as broken until its files change, and everything the plugin had registered is withdrawn.
    """
    if plugin.state in UNUSABLE:
        raise PluginError(f"{describe(plugin)} is {plugin.state}: {plugin.error}; {plugin.cure}")
    key = f"{plugin.distribution}:{plugin.name}"
    known = manager.get_plugin(key)
    if isinstance(known, ModuleType):
        return known
    if ended_the_interpreter(plugin):
        tried = try_in_child(plugin, timeout_s=TRIAL_TIMEOUT_S)
        if tried.error:
            raise PluginError(f"{describe(plugin)} is {tried.state}: {tried.error}; {tried.cure}")

    def register() -> ModuleType:
        module = importlib.import_module(plugin.module)
        try:
            manager.register(module, key)
            manager.check_pending()
            _check_hooks(module, manager)
        except BaseException:
            if manager.has_plugin(key):
                manager.unregister(name=key)
            raise
        return module

    module = _run(plugin, register)
    drop_record("activation", plugin)
    return module


def _check_hooks(module: ModuleType, manager: pluggy.PluginManager) -> None:
    """Raise TypeError for a hook that pluggy takes without a word: one that is not marked is never called, and an argument that has a
    default, or is given by its name alone, never comes.
    """
    import inspect

    for name in dir(module):
        hook = getattr(module, name, None)
        if not inspect.isroutine(hook):
            continue
        if manager.parse_hookimpl_opts(module, name) is None:
            if hasattr(manager.hook, name) and hook.__module__ == module.__name__:
                raise TypeError(f"{name} has the name of a hook and is not marked as one: write @hookimpl above it")
            continue
        for parameter in inspect.signature(hook).parameters.values():
            if (
                parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD
                or parameter.default is not inspect.Parameter.empty
            ):
                raise TypeError(
                    f"the hook {name} has the argument {parameter}: hooks take theirs by the names of zoo.api's, without defaults"
                )


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
    return _run(plugin, lambda: getattr(importlib.import_module(module_name), attribute))


def _run(plugin: Plugin, function: Callable[[], _Result]) -> _Result:
    """Import code of a plugin, with everything that can come of it recorded. Raises PluginError."""
    from zoo.registry.surroundings import guarded  # only what runs a plugin pays for it

    try:
        with (
            attempt(plugin),
            redirect_stdout(sys.stderr),
            guarded(lambda words: warn(f"{describe(plugin)}, when it was imported, {words}")),
        ):
            return function()
    except (Exception, SystemExit) as error:
        failure = record_failure(plugin, error)
        raise PluginError(f"{describe(plugin)} is {failure.state}: {failure.error}; {failure.cure}") from error


def call_hook(plugin: Plugin, hook: str, manager: pluggy.PluginManager, **arguments: Any) -> Any:
    """Call one plugin's implementation of a hook, and nobody else's; None when it has none.

    Raises PluginError, naming plugin and hook, whatever the hook raised.
    """
    activate(plugin, manager)
    key = f"{plugin.distribution}:{plugin.name}"
    others = [other for name, other in manager.list_name_plugin() if name != key and other is not None]
    try:
        with redirect_stdout(sys.stderr):  # stdout carries the answer and nothing else
            results = manager.subset_hook_caller(hook, others)(**arguments)
            result = results[0] if isinstance(results, list) and results else results or None
            # A hook may be a generator: what it does happens here, not where its rows are read.
            return list(result) if isinstance(result, Iterator) else result
    except ZooError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{describe(plugin)} raised {type(error).__name__} in its hook {hook}: {one_line(error)}"
        ) from error


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the zoo's hooks and no plugin."""
    import pluggy

    from zoo.registry import hooks as hookspecs

    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(hookspecs)
    return manager


def try_in_child(plugin: Plugin, *, timeout_s: float) -> Plugin:
    """The plugin as a trial in a process of its own found it: activated, and the modules of its builders imported."""
    from zoo.registry import child  # listings that ask no child do not pay for it

    outcome = child.call(
        "zoo.registry.activation:_activate_here", {**identify(plugin), "targets": targets(plugin)}, timeout_s=timeout_s
    )
    drop_record("attempt", plugin)
    if outcome.finished:
        drop_record("activation", plugin)
        return plugin if plugin.state == "shadowed" else replace(plugin, state="ok", error="", cure="", traceback="")
    known = with_failure(plugin)
    if outcome.exit_code == 1 and known.error and known.state != "shadowed":
        return known  # the child could still say what it was
    return _ended(plugin, f"activating it {outcome.end}", outcome, timeout_s)


def targets(plugin: Plugin) -> list[str]:
    """Every function that the plugin's cards name."""
    rows = [row.keys for card in plugin.cards for row in card.weights]
    named = (
        *(card.build for card in plugin.cards),
        *(card.settings for card in plugin.cards),
        *rows,
        *plugin.offers.targets(),
    )
    return list(dict.fromkeys(target for target in named if target))


def list_in_child(plugin: Plugin) -> Mapping[str, Any] | Plugin:
    """`rows` of the hook `zoo_cards` of a plugin without a manifest, `import_ms` and `imports_torch`; or the failed plugin.

    It is asked in a process of its own, once; the answer is kept until the plugin's files change.
    """
    record = read_record("listing", plugin)
    if record is None or ("rows" not in record and _lapsed(record)):
        from zoo.registry import child

        outcome = child.call("zoo.registry.activation:_list_here", identify(plugin), timeout_s=LISTING_TIMEOUT_S)
        drop_record("attempt", plugin)
        if outcome.finished:
            record = outcome.value
        else:
            failure = with_failure(plugin)
            if outcome.exit_code != 1 or not failure.error:
                failure = _ended(plugin, f"importing it to list it {outcome.end}", outcome, LISTING_TIMEOUT_S)
            record = {"state": failure.state, "error": failure.error, "cure": failure.cure, "traceback": failure.traceback,
                      "depends_on": (read_record("activation", plugin) or {}).get("depends_on")}  # fmt: skip
        write_record("listing", plugin, record)
    if "rows" in record:
        return record
    state, error, cure, details = (str(record.get(key, "")) for key in ("state", "error", "cure", "traceback"))
    return replace(plugin, state=state, error=error, cure=cure, traceback=details)


def with_failure(plugin: Plugin) -> Plugin:
    """The plugin with the failure of an earlier activation, if its files have not changed since."""
    if ended_the_interpreter(plugin):
        return replace(
            broken(
                plugin,
                "the last process that imported it came to its end while it did",
                f"{TRY_AGAIN}; or {replace_it(plugin)}",
            ),
        )
    record = read_record("activation", plugin)
    if record is None or _lapsed(record):
        return plugin
    missing = str(record.get("missing_module", ""))
    state = str(record.get("state"))
    if (missing and find_spec(missing) is not None) or state not in ("broken", "missing-extra"):
        return plugin
    error, cure, details = (str(record.get(key, "")) for key in ("error", "cure", "traceback"))
    return replace(plugin, state=state, error=error, cure=cure, traceback=details)


def record_failure(plugin: Plugin, error: BaseException) -> Plugin:
    """The plugin that failed; it is remembered until its files change, or what the failure depended on."""
    from zoo.registry.blame import at_fault, depended_on

    failure, culprit = failed(plugin, error), at_fault(error)
    if culprit is not None:
        failure = replace(failure, error=culprit.error, cure=culprit.cure)
    _remember(failure, depended_on(error), missing_module(plugin, error))
    return failure


def _remember(failure: Plugin, depends_on: Mapping[str, Any], missing: str = "") -> None:
    fields = {"state": failure.state, "error": failure.error, "cure": failure.cure, "traceback": failure.traceback}
    write_record("activation", failure, {**fields, "missing_module": missing, "depends_on": depends_on})


def _lapsed(record: Mapping[str, Any]) -> bool:
    """Whether a failure depended on what is other now."""
    from zoo.registry.blame import changed_since  # listings without a failure do not pay for it

    known = record.get("depends_on")
    return not isinstance(known, Mapping) or changed_since(known)


def warn(message: object) -> None:
    """Something is not as it should be and the work goes on: one line through the logger `zoo`."""
    import logging  # listings that have nothing to say do not pay for it

    logging.getLogger("zoo").warning("%s", terminal_message(str(message)))


def _ended(plugin: Plugin, error: str, outcome: child.Outcome, timeout_s: float) -> Plugin:
    limit = f" ({timeout_s:g} s)" if outcome.exit_code is None else ""
    words = f"; the last it said: {outcome.last_words}" if outcome.last_words else ""
    cure = f"{TRY_AGAIN}; or {replace_it(plugin)}"
    failure = replace(broken(plugin, f"{error}{limit}{words}", cure), traceback=outcome.stderr)
    from zoo.registry.blame import depended_on

    _remember(failure, depended_on())
    return failure


def identify(plugin: Plugin) -> dict[str, Any]:
    """The plugin as JSON, for a child, which must not scan: scanning is what it is a child of."""
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.module,
        "location": None if plugin.location is None else str(plugin.location),
    }


def identified(fields: Mapping[str, Any]) -> Plugin:
    location = fields["location"]
    return Plugin(
        name=fields["name"],
        distribution=fields["distribution"],
        version=fields["version"],
        module=fields["module"],
        location=None if location is None else Path(location),
    )


def _activate_here(fields: Mapping[str, Any]) -> bool:
    """In a child: activate a plugin and import its builders."""
    plugin, manager = identified(fields), new_manager()
    drop_record("attempt", plugin)
    activate(plugin, manager)
    for target in fields["targets"]:
        resolve(plugin, target, manager)
    return True


def _list_here(fields: Mapping[str, Any]) -> dict[str, Any]:
    """In a child: the rows of `zoo_cards`, as plain data."""
    import time

    plugin, manager = identified(fields), new_manager()
    drop_record("attempt", plugin)
    start = time.perf_counter()
    activate(plugin, manager)
    try:
        rows = [_plain(row) for row in call_hook(plugin, "zoo_cards", manager) or ()]
    except (PluginError, TypeError) as error:
        record_failure(plugin, error.__cause__ or error)
        raise
    return {
        "rows": rows,
        "import_ms": 1000 * (time.perf_counter() - start),
        "imports_torch": "torch" in sys.modules,
    }


def _plain(value: Any) -> Any:
    """Mappings and sequences as JSON has them. Raises TypeError for anything that is not data."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a hook must return mappings with the fields of a [[card]] table, got {value!r:.120}")
