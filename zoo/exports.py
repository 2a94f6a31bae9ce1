"""Names of a package that are loaded at their first use, so that importing the package costs nothing."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def exported(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562).

    names: what it offers, name -> module that has it; `module:other` where it has another name there.
    """
    offered = sorted(names)

    def __getattr__(name: str) -> Any:  # noqa: N807 - it becomes the package's
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(offered)}")
        module, _, other = names[name].partition(":")
        return getattr(import_module(module), other or name)

    def __dir__() -> list[str]:  # noqa: N807 - as above
        return offered

    return __getattr__, __dir__
