"""All that a plugin imports, with `zoo.nn` for layers and `zoo.testing` for tests: contracts, errors, readers of media and weights.

It has a version (`API_VERSION`), which a manifest asks for by a range (`api = ">=1,<2"`): docs/versions.md says what may change when.
Importing this module costs nothing; names load on first use.
"""

from typing import TYPE_CHECKING

from zoo.exports import exported

if TYPE_CHECKING:  # the same names for type checkers, which do not run __getattr__ (tests/test_startup.py compares)
    from zoo.adapters.adapter import Adapter, Columns, Held, Mixed, Numbers, Part, Virtual, part_key
    from zoo.adapters.target_modules import Base, Place
    from zoo.decoding.generation import generate as generate_tokens
    from zoo.decoding.generation import stream as stream_tokens
    from zoo.decoding.sampling import Sampling
    from zoo.decoding.scoring import perplexity, score_choices
    from zoo.errors import (
        AmbiguousNameError,
        HashMismatchError,
        ManifestError,
        MediaError,
        PluginError,
        ResolutionError,
        StateMismatchError,
        UnknownNameError,
        UsageError,
        WeightsError,
        WeightsMissingError,
        ZooError,
    )
    from zoo.media.audio import Sound, to_waveforms
    from zoo.media.audio_reader import AudioReader
    from zoo.media.image import to_pixels
    from zoo.media.readers import open_image, open_reader
    from zoo.models.build import Built
    from zoo.models.contracts import (
        Bridge,
        Classifier,
        Decoder,
        DualEncoder,
        Encoder,
        Tokenizer,
        Transcriber,
        VoiceActivity,
    )
    from zoo.models.encoded import Encoded
    from zoo.models.fusion.fused import Fused
    from zoo.models.kernels import apply_kernel
    from zoo.models.transcript import Segment, Span, TranscriptionOptions, Window, Word
    from zoo.nn.kernels.contract import CompileRequest, Kernel, LayerFormat
    from zoo.registry.card import Card
    from zoo.registry.discovery import API_VERSION
    from zoo.registry.hooks import hookimpl
    from zoo.registry.manifest import MODEL_NAME
    from zoo.registry.modality import AUDIO, IMAGE, SERIES, TEXT, VIDEO
    from zoo.registry.settings import offline
    from zoo.training.losses import Completion, centroid_loss, completion_loss, encode_completions
    from zoo.weights.derived import derived
    from zoo.weights.formats.gguf_blocks import Blocks, dequantise, published
    from zoo.weights.plugin_formats import read_weights as read_state_dict
    from zoo.weights.settings import arguments_from, settings_of
    from zoo.weights.stores import hub_file
    from zoo.weights.strict_load import load_strict, refuse_nonfinite

_EXPORTS = {
    "API_VERSION": "zoo.registry.discovery",
    "AUDIO": "zoo.registry.modality",
    "Adapter": "zoo.adapters.adapter",
    "AmbiguousNameError": "zoo.errors",
    "AudioReader": "zoo.media.audio_reader",
    "Base": "zoo.adapters.target_modules",
    "Blocks": "zoo.weights.formats.gguf_blocks",
    "Bridge": "zoo.models.contracts",
    "Built": "zoo.models.build",
    "Card": "zoo.registry.card",
    "Classifier": "zoo.models.contracts",
    "Columns": "zoo.adapters.adapter",
    "CompileRequest": "zoo.nn.kernels.contract",
    "Completion": "zoo.training.losses",
    "Decoder": "zoo.models.contracts",
    "DualEncoder": "zoo.models.contracts",
    "Encoded": "zoo.models.encoded",
    "Encoder": "zoo.models.contracts",
    "Fused": "zoo.models.fusion.fused",
    "HashMismatchError": "zoo.errors",
    "Held": "zoo.adapters.adapter",
    "IMAGE": "zoo.registry.modality",
    "Kernel": "zoo.nn.kernels.contract",
    "LayerFormat": "zoo.nn.kernels.contract",
    "MODEL_NAME": "zoo.registry.manifest",
    "ManifestError": "zoo.errors",
    "MediaError": "zoo.errors",
    "Mixed": "zoo.adapters.adapter",
    "Numbers": "zoo.adapters.adapter",
    "Part": "zoo.adapters.adapter",
    "Place": "zoo.adapters.target_modules",
    "PluginError": "zoo.errors",
    "ResolutionError": "zoo.errors",
    "SERIES": "zoo.registry.modality",
    "Sampling": "zoo.decoding.sampling",
    "Segment": "zoo.models.transcript",
    "Sound": "zoo.media.audio",
    "Span": "zoo.models.transcript",
    "StateMismatchError": "zoo.errors",
    "TEXT": "zoo.registry.modality",
    "Tokenizer": "zoo.models.contracts",
    "Transcriber": "zoo.models.contracts",
    "TranscriptionOptions": "zoo.models.transcript",
    "UnknownNameError": "zoo.errors",
    "UsageError": "zoo.errors",
    "VIDEO": "zoo.registry.modality",
    "Virtual": "zoo.adapters.adapter",
    "VoiceActivity": "zoo.models.contracts",
    "WeightsError": "zoo.errors",
    "WeightsMissingError": "zoo.errors",
    "Window": "zoo.models.transcript",
    "Word": "zoo.models.transcript",
    "ZooError": "zoo.errors",
    "apply_kernel": "zoo.models.kernels",
    "arguments_from": "zoo.weights.settings",
    "centroid_loss": "zoo.training.losses",
    "completion_loss": "zoo.training.losses",
    "dequantise": "zoo.weights.formats.gguf_blocks",
    "derived": "zoo.weights.derived",
    "encode_completions": "zoo.training.losses",
    "generate_tokens": "zoo.decoding.generation:generate",
    "hookimpl": "zoo.registry.hooks",
    "hub_file": "zoo.weights.stores",
    "load_strict": "zoo.weights.strict_load",
    "offline": "zoo.registry.settings",
    "open_image": "zoo.media.readers",
    "open_reader": "zoo.media.readers",
    "part_key": "zoo.adapters.adapter",
    "perplexity": "zoo.decoding.scoring",
    "published": "zoo.weights.formats.gguf_blocks",
    "read_state_dict": "zoo.weights.plugin_formats:read_weights",
    "refuse_nonfinite": "zoo.weights.strict_load",
    "score_choices": "zoo.decoding.scoring",
    "settings_of": "zoo.weights.settings",
    "stream_tokens": "zoo.decoding.generation:stream",
    "to_pixels": "zoo.media.image",
    "to_waveforms": "zoo.media.audio",
}

__all__ = [
    "API_VERSION",
    "AUDIO",
    "IMAGE",
    "MODEL_NAME",
    "SERIES",
    "TEXT",
    "VIDEO",
    "Adapter",
    "AmbiguousNameError",
    "AudioReader",
    "Base",
    "Blocks",
    "Bridge",
    "Built",
    "Card",
    "Classifier",
    "Columns",
    "CompileRequest",
    "Completion",
    "Decoder",
    "DualEncoder",
    "Encoded",
    "Encoder",
    "Fused",
    "HashMismatchError",
    "Held",
    "Kernel",
    "LayerFormat",
    "ManifestError",
    "MediaError",
    "Mixed",
    "Numbers",
    "Part",
    "Place",
    "PluginError",
    "ResolutionError",
    "Sampling",
    "Segment",
    "Sound",
    "Span",
    "StateMismatchError",
    "Tokenizer",
    "Transcriber",
    "TranscriptionOptions",
    "UnknownNameError",
    "UsageError",
    "Virtual",
    "VoiceActivity",
    "WeightsError",
    "WeightsMissingError",
    "Window",
    "Word",
    "ZooError",
    "apply_kernel",
    "arguments_from",
    "centroid_loss",
    "completion_loss",
    "dequantise",
    "derived",
    "encode_completions",
    "generate_tokens",
    "hookimpl",
    "hub_file",
    "load_strict",
    "offline",
    "open_image",
    "open_reader",
    "part_key",
    "perplexity",
    "published",
    "read_state_dict",
    "refuse_nonfinite",
    "score_choices",
    "settings_of",
    "stream_tokens",
    "to_pixels",
    "to_waveforms",
]

__getattr__, __dir__ = exported(__name__, _EXPORTS)
