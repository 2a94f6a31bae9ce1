"""State that belongs to the whole process, which a plugin has no business to change: noticed, named and put back."""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class _Setting:
    """One piece of state. `read` returns a comparable value; `module` must be loaded for it to exist; `fresh` gives its value
    in a process that has only just loaded that module. `quiet`: libraries change it when they are imported without meaning
    anything by it; it is put back without a word.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None] | None = None
    module: str | None = None
    fresh: Callable[[], Any] | None = None
    quiet: bool = False


def _torch() -> Any:
    return sys.modules["torch"]


def _flag(path: str, fresh: Any, name: str, module: str) -> _Setting:
    """An attribute of a loaded module, by its path inside it."""
    *parents, attribute = path.split(".")

    def owner() -> Any:
        found: Any = sys.modules[module]
        for parent in parents:
            found = getattr(found, parent)
        return found

    return _Setting(
        name, lambda: getattr(owner(), attribute), lambda value: setattr(owner(), attribute, value), module, lambda: fresh
    )


def _torch_function(name: str) -> _Setting:
    """One that everybody calls, in both places where it can be called."""

    def put(functions: tuple[Any, Any]) -> None:
        setattr(_torch(), name, functions[0])
        setattr(_torch().serialization, name, functions[1])

    return _Setting(
        f"the function torch.{name}",
        lambda: (getattr(_torch(), name), getattr(_torch().serialization, name)),
        put,
        "torch",
        lambda: (getattr(_torch().serialization, name),) * 2,
    )


def _signal_handlers() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in sorted(signal.valid_signals()) if hasattr(number, "name")}


def _restore_signals(handlers: dict[str, Any]) -> None:
    """Only a main thread can; a handler that Python did not set cannot be set again."""
    for name, handler in handlers.items():
        number = signal.Signals[name]
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _root_logger() -> tuple[int, tuple[Any, ...]]:
    root = sys.modules["logging"].root
    return root.level, tuple(root.handlers)


def _restore_root_logger(value: tuple[int, tuple[Any, ...]]) -> None:
    root = sys.modules["logging"].root
    root.setLevel(value[0])
    root.handlers[:] = value[1]


def _socket() -> Any:
    return sys.modules["socket"]


def _numpy_state() -> Any:
    """Comparable, without numpy's printing of 624 numbers, which takes longer than most builders."""
    state = sys.modules["numpy"].random.get_state()
    return (
        tuple(part.tobytes() if hasattr(part, "tobytes") else part for part in state) if isinstance(state, tuple) else state
    )


def _blanket_filters() -> list[str]:
    """Filters that silence every warning: by action, whatever the message and the module."""
    return [
        action for action, message, category, module, line in warnings.filters
        if action == "ignore" and message is None and category is Warning and module is None and line == 0
    ]  # fmt: skip


_SETTINGS = (
    _Setting("the working directory", lambda: str(Path.cwd()), os.chdir),
    _Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting("the signal handlers", _signal_handlers, _restore_signals),
    _flag("root.manager.disable", 0, "the level up to which all logging is off", "logging"),
    _Setting(
        "the handlers or the level of the root logger",
        _root_logger,
        _restore_root_logger,
        module="logging",
        fresh=lambda: (sys.modules["logging"].WARNING, ()),
    ),
    _Setting(
        "the default timeout of sockets",
        lambda: _socket().getdefaulttimeout(),
        lambda value: _socket().setdefaulttimeout(value),
        module="socket",
        fresh=lambda: None,
    ),
    _flag("MAX_IMAGE_PIXELS", 1024 * 1024 * 1024 // 4 // 3, "Pillow's limit of pixels", "PIL.Image"),
    _flag("LOAD_TRUNCATED_IMAGES", False, "Pillow's refusal of truncated images", "PIL.ImageFile"),
    _Setting("the state of Python's random", random.getstate, random.setstate, quiet=True),
    _Setting("the warning filters (everything is silenced)", _blanket_filters),
    _Setting("the environment", lambda: dict(os.environ)),
    _Setting("the state of numpy.random", _numpy_state, module="numpy"),
    _Setting(
        "torch's default dtype",
        lambda: _torch().get_default_dtype(),
        lambda value: _torch().set_default_dtype(value),
        module="torch",
        fresh=lambda: _torch().float32,
    ),
    _Setting(
        "torch's default device",
        lambda: str(_torch().get_default_device()),
        lambda value: _torch().set_default_device(None if value == "cpu" else value),
        module="torch",
        fresh=lambda: "cpu",
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
        lambda value: _torch().set_grad_enabled(value),
        module="torch",
        fresh=lambda: True,
    ),
    _Setting(
        "torch's deterministic algorithms",
        lambda: _torch().are_deterministic_algorithms_enabled(),
        lambda value: _torch().use_deterministic_algorithms(value),
        module="torch",
        fresh=lambda: False,
    ),
    _Setting(
        "torch's float32 matmul precision",
        lambda: _torch().get_float32_matmul_precision(),
        lambda value: _torch().set_float32_matmul_precision(value),
        module="torch",
        fresh=lambda: "highest",
    ),
    _flag("backends.mkldnn.enabled", True, "torch's use of oneDNN", "torch"),
    _flag("backends.cudnn.enabled", True, "torch's use of cuDNN", "torch"),
    _flag("backends.cudnn.benchmark", False, "cuDNN's choice of algorithms by trial", "torch"),
    _flag("backends.cudnn.deterministic", False, "cuDNN's deterministic algorithms", "torch"),
    _torch_function("load"),
    _torch_function("save"),
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
            with suppress(OSError, RuntimeError, ValueError):
                setting.restore(_before(setting, before))
                words += [] if setting.quiet else [text]
    return words


def _differences(before: dict[str, Any]) -> Iterator[tuple[_Setting, str]]:
    for setting in _SETTINGS:
        if setting.module is not None and setting.module not in sys.modules:
            continue
        if setting.name not in before and setting.fresh is None:
            continue
        old, value = _before(setting, before), setting.read()
        if value != old:
            yield setting, _words(setting.name, old, value)


def _before(setting: _Setting, before: dict[str, Any]) -> Any:
    """The value that a setting had, or would have had if its module had been loaded."""
    return before[setting.name] if setting.name in before or setting.fresh is None else setting.fresh()


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
