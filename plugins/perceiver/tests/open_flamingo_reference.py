"""OpenFlamingo's own layers: its file `helpers.py` out of the published wheel, which is fetched but never installed.

The package itself asks for versions of torch and open_clip that nothing else here has; this one file needs `einops` and
`einops_exts` alone.
"""

import functools
import zipimport
from importlib.util import module_from_spec
from types import ModuleType

import pytest

from zoo.errors import WeightsMissingError
from zoo.weights.stores import fetch_wheel

VERSION = "2.0.1"
WHEEL_SHA256 = "df55893ef74a0691f7ce54592c1ca155a8e246160e2a658086031bf6b5eddbc8"


@functools.cache
def reference() -> ModuleType:
    """The module with `PerceiverResampler`, `MaskedCrossAttention` and `GatedCrossAttentionBlock`.

    Skips the test that asks where einops is not installed, or where the wheel is in no cache and the package index out of reach.
    """
    for needed in ("einops", "einops_exts"):
        pytest.importorskip(needed, reason=f"OpenFlamingo's layers need {needed}: pip install -r requirements-dev.txt")
    try:
        wheel = fetch_wheel("open_flamingo", VERSION, WHEEL_SHA256)
    except WeightsMissingError as error:
        pytest.skip(f"OpenFlamingo {VERSION} cannot be fetched: {error}")
    spec = zipimport.zipimporter(f"{wheel}/open_flamingo/src").find_spec("helpers")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
