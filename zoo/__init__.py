"""zoo: models published as plugins, joined, run and measured. Importing this module costs nothing; names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers, which do not run __getattr__ (tests/test_startup.py compares)
    from zoo.adaptation.adapters import adapt, adapters_of
    from zoo.batch import Encoded
    from zoo.card import Card
    from zoo.composition import compose
    from zoo.construct import build, open_model
    from zoo.errors import ZooError
    from zoo.hookspecs import hookimpl
    from zoo.registry import cards, find, installed_plugins
    from zoo.tasks.classify import classify
    from zoo.tasks.embedding import embed
    from zoo.tasks.filtering import filter_pairs
    from zoo.tasks.generation import generate, score
    from zoo.tasks.language_model import open_language_model
    from zoo.tasks.search import search
    from zoo.tasks.text_classification import classify_texts
    from zoo.tasks.transcription import transcribe
    from zoo.weights import fetch

__version__ = "0.1.0"

_EXPORTS = {
    "Card": "zoo.card",
    "Encoded": "zoo.batch",
    "ZooError": "zoo.errors",
    "adapt": "zoo.adaptation.adapters",
    "adapters_of": "zoo.adaptation.adapters",
    "build": "zoo.construct",
    "cards": "zoo.registry",
    "classify": "zoo.tasks.classify",
    "classify_texts": "zoo.tasks.text_classification",
    "compose": "zoo.composition",
    "embed": "zoo.tasks.embedding",
    "fetch": "zoo.weights",
    "filter_pairs": "zoo.tasks.filtering",
    "find": "zoo.registry",
    "generate": "zoo.tasks.generation",
    "hookimpl": "zoo.hookspecs",
    "installed_plugins": "zoo.registry",
    "open_language_model": "zoo.tasks.language_model",
    "open_model": "zoo.construct",
    "score": "zoo.tasks.generation",
    "search": "zoo.tasks.search",
    "transcribe": "zoo.tasks.transcription",
}

__all__ = [
    "Card",
    "Encoded",
    "ZooError",
    "__version__",
    "adapt",
    "adapters_of",
    "build",
    "cards",
    "classify",
    "classify_texts",
    "compose",
    "embed",
    "fetch",
    "filter_pairs",
    "find",
    "generate",
    "hookimpl",
    "installed_plugins",
    "open_language_model",
    "open_model",
    "score",
    "search",
    "transcribe",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
