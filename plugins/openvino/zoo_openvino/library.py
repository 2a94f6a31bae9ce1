"""OpenVINO and NNCF, imported only where they are used.

Both send usage reports to their makers unless somebody opted out on this machine. The zoo sends nothing of its own accord: they are
imported without the package that reports (`openvino_telemetry`), for which both have a stand-in that does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from zoo.api import PluginError

_REPORTS = "openvino_telemetry"


def openvino() -> Any:
    """The package. Raises PluginError where it is not installed."""
    return _imported("openvino", "this kernel compiles by OpenVINO", "pip install modalzoo-openvino")


def nncf() -> Any:
    """The package. Raises PluginError where it is not installed."""
    return _imported("nncf", "8 bits by OpenVINO need NNCF", "pip install 'modalzoo-openvino[int8]'")


def _imported(name: str, need: str, command: str) -> Any:
    if name not in sys.modules and find_spec(name) is None:
        raise PluginError(f"{need}, and {name} is not installed: {command}")
    with _without_reports():
        return import_module(name)


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
