"""zoo: models published as plugins, joined, run and measured. Importing this module costs nothing; names load on first use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Card": "zoo.card",
    "Encoded": "zoo.batch",
    "ZooError": "zoo.errors",
    "build": "zoo.construct",
    "cards": "zoo.registry",
    "classify": "zoo.tasks.classify",
    "embed": "zoo.tasks.embedding",
    "fetch": "zoo.weights",
    "filter_pairs": "zoo.tasks.filtering",
    "find": "zoo.registry",
    "hookimpl": "zoo.hookspecs",
    "installed_plugins": "zoo.registry",
    "open_model": "zoo.construct",
    "search": "zoo.tasks.search",
}

__all__ = [  # noqa: PLE0604 - every name is a string, computed so that the list exists once
    "__version__",
    *_EXPORTS,
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
