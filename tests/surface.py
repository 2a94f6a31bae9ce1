"""The surfaces that plugins and users import, as text: one line a name, with its signature. tests/test_surface.py compares it."""

import dataclasses
import enum
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

SURFACES = ("zoo", "zoo.api", "zoo.nn", "zoo.testing")
FOLDER = Path(__file__).with_name("surfaces")


def recorded(version: int) -> Path:
    """What was promised under a version of the plugin API."""
    return FOLDER / f"api-{version}.txt"


def surface() -> str:
    return "".join(f"{line}\n" for name in SURFACES for line in _lines(name))


def _lines(package: str) -> Iterator[str]:
    module = import_module(package)
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if name == "__version__":
            continue
        yield from _described(f"{package}.{name}", value)


def _described(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"{path}{_signature(value)}"
        if dataclasses.is_dataclass(value):
            yield from (f"{path}.{field.name}" for field in dataclasses.fields(value) if not field.name.startswith("_"))
        for name, member in sorted(vars(value).items()):
            if name.startswith("_") or isinstance(value, enum.EnumMeta):
                continue
            if isinstance(member, property):
                yield f"{path}.{name} -> property"
            elif inspect.isfunction(inspect.unwrap(getattr(member, "__func__", member))):
                yield f"{path}.{name}{_signature(member)}"
    elif callable(value) and hasattr(value, "__module__") and not isinstance(value, type(inspect)):
        yield f"{path}{_signature(value)}"
    else:
        yield f"{path} = {value!r}" if isinstance(value, (int, str)) else f"{path}: {type(value).__name__}"


def _signature(value: Any) -> str:
    """Names, kinds and whether each is required: what a caller relies on. Annotations and the values of defaults may change."""
    try:
        parameters = inspect.signature(getattr(value, "__func__", value)).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    plain = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=parameter.default if parameter.default is inspect.Parameter.empty else ...,
        )
        for parameter in parameters
    ]
    return re.sub(r"\s+", " ", str(inspect.Signature(plain))).replace("=Ellipsis", "=...")


if __name__ == "__main__":
    from zoo.api import API_VERSION

    if "--write" in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        recorded(API_VERSION).write_text(surface(), encoding="utf-8")
    else:
        print(surface(), end="")
