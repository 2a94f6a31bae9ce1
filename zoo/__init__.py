"""zoo: models published as plugins, joined, run and measured. Importing this module costs nothing; names load on first use."""

from typing import TYPE_CHECKING

from zoo.exports import exported

if TYPE_CHECKING:  # the same names for type checkers, which do not run __getattr__ (tests/test_startup.py compares)
    from zoo.adapters.adapt import adapt, adapters_of
    from zoo.data.templates import template_set
    from zoo.decoding.sampling import Sampling
    from zoo.errors import RandomWeightsWarning, ZooError
    from zoo.media.audio import Sound
    from zoo.media.readers import open_audio, open_image
    from zoo.models.build import ModelSpec, build, open_model
    from zoo.models.composition import compose, save, trained_parameters
    from zoo.models.encoded import Encoded
    from zoo.models.provenance import Provenance
    from zoo.registry.card import Card
    from zoo.registry.hooks import hookimpl
    from zoo.registry.lookup import cards, find, installed_plugins
    from zoo.registry.own_cards import register
    from zoo.tasks.adapter_training import TrainingOptions, train_adapter
    from zoo.tasks.classify import classify
    from zoo.tasks.embedding import embed
    from zoo.tasks.filtering import filter_pairs
    from zoo.tasks.generation import generate, score
    from zoo.tasks.language_model import open_language_model
    from zoo.tasks.media_prompt import read_media, written
    from zoo.tasks.quantization import quantize
    from zoo.tasks.search import search
    from zoo.tasks.text_classification import classify_texts
    from zoo.tasks.transcription import RunOptions, open_transcriber, transcribe
    from zoo.tasks.voice_activity import open_detector, speech_spans
    from zoo.training.fit import FitOptions, fit
    from zoo.weights.delivery import fetch

__version__ = "0.1.0"

_EXPORTS = {
    "Card": "zoo.registry.card",
    "Encoded": "zoo.models.encoded",
    "FitOptions": "zoo.training.fit",
    "ModelSpec": "zoo.models.build",
    "Provenance": "zoo.models.provenance",
    "RandomWeightsWarning": "zoo.errors",
    "RunOptions": "zoo.tasks.transcription",
    "Sampling": "zoo.decoding.sampling",
    "Sound": "zoo.media.audio",
    "TrainingOptions": "zoo.tasks.adapter_training",
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
    "fit": "zoo.training.fit",
    "generate": "zoo.tasks.generation",
    "hookimpl": "zoo.registry.hooks",
    "installed_plugins": "zoo.registry.lookup",
    "open_audio": "zoo.media.readers",
    "open_detector": "zoo.tasks.voice_activity",
    "open_image": "zoo.media.readers",
    "open_language_model": "zoo.tasks.language_model",
    "open_model": "zoo.models.build",
    "open_transcriber": "zoo.tasks.transcription",
    "quantize": "zoo.tasks.quantization",
    "read_media": "zoo.tasks.media_prompt",
    "register": "zoo.registry.own_cards",
    "save": "zoo.models.composition",
    "score": "zoo.tasks.generation",
    "search": "zoo.tasks.search",
    "speech_spans": "zoo.tasks.voice_activity",
    "template_set": "zoo.data.templates",
    "train_adapter": "zoo.tasks.adapter_training",
    "trained_parameters": "zoo.models.composition",
    "transcribe": "zoo.tasks.transcription",
    "written": "zoo.tasks.media_prompt",
}

__all__ = [
    "Card",
    "Encoded",
    "FitOptions",
    "ModelSpec",
    "Provenance",
    "RandomWeightsWarning",
    "RunOptions",
    "Sampling",
    "Sound",
    "TrainingOptions",
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
    "fit",
    "generate",
    "hookimpl",
    "installed_plugins",
    "open_audio",
    "open_detector",
    "open_image",
    "open_language_model",
    "open_model",
    "open_transcriber",
    "quantize",
    "read_media",
    "register",
    "save",
    "score",
    "search",
    "speech_spans",
    "template_set",
    "train_adapter",
    "trained_parameters",
    "transcribe",
    "written",
]

__getattr__, __dir__ = exported(__name__, _EXPORTS)
