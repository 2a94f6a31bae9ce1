"""The surfaces that plugins and users import, as text: one line a name, with its signature. tests/test_surface.py compares it."""

import dataclasses
import enum
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

SURFACES = ("zoo", "zoo.api", "zoo.nn", "zoo.testing")
RESULTS = (
    "classify",
    "embed",
    "search",
    "filter_pairs",
    "transcribe",
    "generate",
    "score",
    "train_adapter",
    "fit",
)  # functions of zoo, whose results are read
PROTOCOL = " is a contract"
FOLDER = Path(__file__).with_name("surfaces")


def recorded(version: int) -> Path:
    """What was promised under a version of the plugin API."""
    return FOLDER / f"api-{version}.txt"


def surface() -> str:
    lines = [*(line for name in SURFACES for line in _lines(name)), *_results(), *_hooks(), *_manifest()]
    return "".join(f"{line}\n" for line in lines)


def _results() -> Iterator[str]:
    """Fields of what tasks return."""
    import zoo

    for name in RESULTS:
        result = typing.get_type_hints(getattr(zoo, name))["return"]
        yield from (f"zoo.{name} -> {result.__name__}.{field.name}" for field in dataclasses.fields(result))


def _hooks() -> Iterator[str]:
    from zoo.registry import hooks

    for name, hook in inspect.getmembers(hooks, inspect.isfunction):
        if name.startswith("zoo_"):
            yield f"hook {name}{_signature(hook)}"


def _manifest() -> Iterator[str]:
    """Fields of a manifest, each with whether it is required."""
    from zoo.registry import card, manifest, offers

    for row in (
        card.Card,
        card.Weights,
        card.File,
        manifest.Family,
        offers.Command,
        offers.Reader,
        offers.Format,
        offers.OwnCheck,
    ):
        for field in dataclasses.fields(row):
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield f"manifest {row.__name__}.{field.name}{', required' if required else ''}"


def lost(promised: Sequence[str], found: Sequence[str]) -> list[str]:
    """Lines of a promise that are not kept: those that went, and new methods that a plugin's own classes would now need."""
    contracts = {line.partition("(")[0] for line in promised if line.endswith(PROTOCOL)}
    needed = [line for line in found if line not in promised and line.rpartition(".")[0].partition("(")[0] in contracts]
    return [line for line in promised if line not in found] + needed


def _lines(package: str) -> Iterator[str]:
    module = import_module(package)
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if name == "__version__":
            continue
        yield from _described(f"{package}.{name}", value)


def _described(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"{path}{_signature(value)}{PROTOCOL if getattr(value, '_is_protocol', False) else ''}"
        if issubclass(value, BaseException):
            yield from (f"{path} is a {base.__name__}" for base in value.__mro__[1:-2])
        yield from (f"{path}.{name}" for name in vars(value).get("__annotations__", {}) if not name.startswith("_"))
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


def _shown_default(value: Any) -> Any:
    """A default as it is where its text is the same in every process, else that there is one."""
    return value if value is inspect.Parameter.empty or isinstance(value, (str, int, float, bool, type(None))) else ...


def _signature(value: Any) -> str:
    """Names, kinds and defaults: what a caller relies on. Annotations may change."""
    try:
        parameters = inspect.signature(getattr(value, "__func__", value)).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    plain = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=_shown_default(parameter.default),
        )
        for parameter in parameters
    ]
    return re.sub(r"\s+", " ", str(inspect.Signature(plain))).replace("=Ellipsis", "=...")


if __name__ == "__main__":
    from zoo.api import API_VERSION

    if "--write" in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        known = recorded(API_VERSION)
        broken = lost(known.read_text(encoding="utf-8").splitlines(), surface().splitlines()) if known.exists() else []
        if broken and "--unreleased" not in sys.argv:
            sys.exit(
                "\n".join(
                    (f"promised by API version {API_VERSION}; raise it, or (before a release) add --unreleased:", *broken)
                )
            )
        recorded(API_VERSION).write_text(surface(), encoding="utf-8")
    else:
        print(surface(), end="")
