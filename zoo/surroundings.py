"""State that belongs to the whole process, which a plugin has no business to change: noticed, named and put back."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class _Setting:
    """One piece of state. `read` returns a comparable value; `module` must be loaded for it to exist; `fresh` is its value in
    a process that has only just loaded that module. `quiet`: libraries change it when they are imported without meaning
    anything by it; it is put back without a word.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None] | None = None
    module: str | None = None
    fresh: Any = None
    quiet: bool = False


def _torch() -> Any:
    return sys.modules["torch"]


def _numpy_state() -> str:
    return repr(sys.modules["numpy"].random.get_state())


def _blanket_filters() -> list[str]:
    """Filters that silence every warning: by action, whatever the message and the module."""
    return [
        action for action, message, category, module, line in warnings.filters
        if action == "ignore" and message is None and category is Warning and module is None and line == 0
    ]  # fmt: skip


_SETTINGS = (
    _Setting("the working directory", lambda: str(Path.cwd()), os.chdir),
    _Setting("the state of Python's random", random.getstate, random.setstate, quiet=True),
    _Setting("the warning filters (everything is silenced)", _blanket_filters),
    _Setting("the environment", lambda: dict(os.environ)),
    _Setting("the state of numpy.random", _numpy_state, module="numpy"),
    _Setting(
        "torch's default dtype",
        lambda: _torch().get_default_dtype(),
        lambda value: _torch().set_default_dtype(value or _torch().float32),
        module="torch",
        fresh="torch.float32",
    ),
    _Setting(
        "torch's default device",
        lambda: str(_torch().get_default_device()),
        lambda value: _torch().set_default_device(None if value in (None, "cpu") else value),
        module="torch",
        fresh="cpu",
    ),
    _Setting(
        "torch's number of threads",
        lambda: _torch().get_num_threads(),
        lambda value: _torch().set_num_threads(value),
        module="torch",
    ),
    _Setting(
        "torch's grad mode",
        lambda: _torch().is_grad_enabled(),
        lambda value: _torch().set_grad_enabled(value is not False),
        module="torch",
        fresh=True,
    ),
    _Setting(
        "torch's deterministic algorithms",
        lambda: _torch().are_deterministic_algorithms_enabled(),
        lambda value: _torch().use_deterministic_algorithms(bool(value)),
        module="torch",
        fresh=False,
    ),
    _Setting(
        "torch's random state",
        lambda: _torch().get_rng_state().numpy().tobytes(),
        lambda value: _torch().set_rng_state(_torch().frombuffer(bytearray(value), dtype=_torch().uint8)),
        module="torch",
    ),
)


def snapshot() -> dict[str, Any]:
    """Setting -> value, for what exists in this process now. Loads nothing."""
    return {
        setting.name: setting.read() for setting in _SETTINGS if setting.module is None or setting.module in sys.modules
    }


def changes(before: dict[str, Any]) -> list[str]:
    """What differs from `before`, in words."""
    return [words for _, words in _differences(before)]


def restore(before: dict[str, Any]) -> list[str]:
    """Put back what differs from `before`, where that is possible; returns what was put back, in words.

    The environment and the warning filters are left: libraries that a plugin loads set both on purpose.
    """
    words = []
    for setting, text in _differences(before):
        if setting.restore is not None:
            with suppress(OSError, RuntimeError):
                setting.restore(before.get(setting.name))
                words += [] if setting.quiet else [text]
    return words


def _differences(before: dict[str, Any]) -> Iterator[tuple[_Setting, str]]:
    for setting in _SETTINGS:
        if setting.module is not None and setting.module not in sys.modules:
            continue
        known = setting.name in before
        if not known and setting.fresh is None:
            continue
        value = setting.read()
        old = before[setting.name] if known else setting.fresh
        if (value if known else _as_fresh(value, setting.fresh)) != old:
            yield setting, _words(setting.name, old, value)


def _as_fresh(value: Any, fresh: Any) -> Any:
    return str(value) if isinstance(fresh, str) else value


def _words(name: str, old: Any, new: Any) -> str:
    if isinstance(old, dict):
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        return f"{name} ({', '.join(changed)})"
    if isinstance(old, (bytes, tuple, list)) or len(str(old)) > 60:
        return name
    return f"{name} from {old} to {new}"


@contextmanager
def guarded(report: Callable[[str], None]) -> Iterator[None]:
    """Around code of a plugin: what it changed is put back, and `report` is called with a sentence about it."""
    before = snapshot()
    try:
        yield
    finally:
        for words in restore(before):
            report(f"changed {words}; it was put back")
