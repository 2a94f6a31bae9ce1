"""OpenVINO and NNCF, imported only where they are used.

Both send usage reports to their makers unless somebody opted out on this machine. The zoo sends nothing of its own accord: they are
imported without the package that reports (`openvino_telemetry`), for which both have a stand-in that does nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from zoo.api import PluginError

_REPORTS = "openvino_telemetry"
_NNCF = ("8 bits by OpenVINO need NNCF", "pip install 'modalzoo-openvino[int8]'")


def openvino() -> Any:
    """The package. Raises PluginError where it is not installed."""
    return _imported("openvino", "this kernel compiles by OpenVINO", "pip install modalzoo-openvino")


def nncf() -> Any:
    """The package. Raises PluginError where it is not installed."""
    return _imported("nncf", *_NNCF)


def require_nncf() -> None:
    """Raises PluginError where NNCF is not installed. It is imported when it is used: that takes seconds."""
    _require("nncf", *_NNCF)


def _require(name: str, need: str, command: str) -> None:
    if name not in sys.modules and find_spec(name) is None:
        raise PluginError(f"{need}, and {name} is not installed: {command}")


def _imported(name: str, need: str, command: str) -> Any:
    _require(name, need, command)
    with _without_reports(), without_logs():
        return import_module(name)


@contextmanager
def without_nncf() -> Iterator[None]:
    """Inside, NNCF is not seen: where it is imported, a conversion imports its part for torch, too, for seconds."""
    module = sys.modules.pop("nncf", None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules["nncf"] = module


@contextmanager
def without_logs() -> Iterator[None]:
    """Inside, no warning is logged: NNCF imports what looks for a GPU that nothing here needs."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def root_level_kept() -> Iterator[None]:
    """A conversion that fails leaves the root logger at ERROR: afterwards it is as it was, and everybody's warnings are heard."""
    before = logging.root.level
    try:
        yield
    finally:
        logging.root.setLevel(before)


@contextmanager
def _without_reports() -> Iterator[None]:
    """Inside, the package that reports cannot be imported."""
    present = _REPORTS in sys.modules
    if not present:
        sys.modules[_REPORTS] = None  # type: ignore[assignment] # how Python marks what must not be imported
    try:
        yield
    finally:
        if not present:
            del sys.modules[_REPORTS]
