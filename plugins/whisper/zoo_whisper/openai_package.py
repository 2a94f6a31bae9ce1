"""The package openai-whisper, the authority for Whisper's data: imported when a model is built, so that a listing does not pay for it.

The names that begin with an underscore are used where it has no others; the tests compare what they give.
"""

from __future__ import annotations

import base64
import gzip
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from zoo.api import UsageError


@cache
def openai_whisper() -> Any:
    """The package itself, with its modules as attributes."""
    import whisper
    import whisper.normalizers
    import whisper.timing
    import whisper.tokenizer

    return whisper


def alignment_heads(name: str, layers: int, heads: int) -> list[tuple[int, int]]:
    """(layer, head) of the cross-attention that follows the words in one of OpenAI's models. Raises UsageError for any other name."""
    known = openai_whisper()._ALIGNMENT_HEADS  # noqa: SLF001 - it has no public name
    if name not in known:
        raise UsageError(f"alignment_heads are those of {', '.join(known)}, or pairs of layer and head, got {name!r}")
    flags = np.frombuffer(gzip.decompress(base64.b85decode(known[name])), bool)
    if flags.size != layers * heads:
        raise UsageError(f"alignment_heads of {name} are of {flags.size} heads, the model has {layers} x {heads}")
    return [(int(layer), int(head)) for layer, head in np.argwhere(flags.reshape(layers, heads))]


@cache
def tokenizer(multilingual: bool, languages: int, language: str | None) -> Any:
    """Its `Tokenizer`, for a model of so many languages."""
    with _files_left_open():
        return openai_whisper().tokenizer.get_tokenizer(
            multilingual, num_languages=languages, language=language, task="transcribe"
        )


def normalised(text: str, language: str | None) -> str:
    """A text as word errors are counted on it: without punctuation, in small letters, and in English numbers and spellings as one.

    language: its code; None is English, as of a model that knows nothing else.
    """
    return str(_normaliser(language in ("en", None))(text)).strip()


@cache
def _normaliser(english: bool) -> Any:
    normalizers = openai_whisper().normalizers
    with _files_left_open():
        return normalizers.EnglishTextNormalizer() if english else normalizers.BasicTextNormalizer()


@contextmanager
def _files_left_open() -> Iterator[None]:
    """It leaves the files of its data to the garbage collector; nobody can act on a warning of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def named_alignment_heads(given: str | Sequence[Sequence[int]], layers: int, heads: int) -> list[tuple[int, int]]:
    """Pairs as they are given, those of a model by its name, and all of the upper half for none. Raises UsageError for others."""
    if isinstance(given, str):
        return alignment_heads(given, layers, heads)
    wrong = [pair for pair in given if not (0 <= pair[0] < layers and 0 <= pair[1] < heads)]
    if wrong:
        raise UsageError(f"alignment_heads are (layer, head) of {layers} x {heads}, got {wrong[0]}")
    chosen = [(int(layer), int(head)) for layer, head in given]
    return chosen or [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]
