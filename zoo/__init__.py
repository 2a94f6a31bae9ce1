"""zoo: models published as plugins, joined, run and measured. Importing this module costs nothing; names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers, which do not run __getattr__ (tests/test_startup.py compares)
    from zoo.adapters.adapt import adapt, adapters_of
    from zoo.errors import ZooError
    from zoo.models.build import build, open_model
    from zoo.models.composition import compose
    from zoo.models.encoded import Encoded
    from zoo.registry.card import Card
    from zoo.registry.hooks import hookimpl
    from zoo.registry.lookup import cards, find, installed_plugins
    from zoo.tasks.classify import classify
    from zoo.tasks.embedding import embed
    from zoo.tasks.filtering import filter_pairs
    from zoo.tasks.generation import generate, score
    from zoo.tasks.language_model import open_language_model
    from zoo.tasks.search import search
    from zoo.tasks.text_classification import classify_texts
    from zoo.tasks.transcription import transcribe
    from zoo.weights.delivery import fetch

__version__ = "0.1.0"

_EXPORTS = {
    "Card": "zoo.registry.card",
    "Encoded": "zoo.models.encoded",
    "ZooError": "zoo.errors",
    "adapt": "zoo.adapters.adapt",
    "adapters_of": "zoo.adapters.adapt",
    "build": "zoo.models.build",
    "cards": "zoo.registry.lookup",
    "classify": "zoo.tasks.classify",
    "classify_texts": "zoo.tasks.text_classification",
    "compose": "zoo.models.composition",
    "embed": "zoo.tasks.embedding",
    "fetch": "zoo.weights.delivery",
    "filter_pairs": "zoo.tasks.filtering",
    "find": "zoo.registry.lookup",
    "generate": "zoo.tasks.generation",
    "hookimpl": "zoo.registry.hooks",
    "installed_plugins": "zoo.registry.lookup",
    "open_language_model": "zoo.tasks.language_model",
    "open_model": "zoo.models.build",
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
