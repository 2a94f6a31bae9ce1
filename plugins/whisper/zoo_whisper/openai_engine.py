"""The same weights under openai-whisper's own code: a second implementation of each card, to compare the two by one option.

It reads the whole sound into memory, gives one window at the end, and has neither batches nor kernels nor resumption: that is what ours
is for. What is asked means the same; samples above temperature 0 are drawn otherwise.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from zoo.api import AudioReader, Segment, TranscriptionOptions, UsageError, Window, Word
from zoo_whisper.keys import OPENAI, TOPS
from zoo_whisper.log_mel import HOP, SAMPLE_RATE_HZ
from zoo_whisper.one_by_one import clips_of
from zoo_whisper.openai_package import openai_whisper
from zoo_whisper.options import WhisperOptions, numbers, token_ids

OURS_ALONE = ("seed", "normalise", "clip_timestamps", "temperature", "suppress_tokens", "condition_on_previous_text")
THEIRS = {ours: theirs for theirs, ours in OPENAI.items()}
_BLOCK = re.compile(r"(encoder|decoder)\.stack\.blocks\.(\d+)\.(.+)\.(weight|bias)")
_built: WeakKeyDictionary[torch.nn.Module, Any] = WeakKeyDictionary()


def openai_windows(
    model: Any, reader: AudioReader, asked: TranscriptionOptions, language: str | None, state: Mapping[str, Any] | None
) -> Iterator[Window]:
    """What `whisper.transcribe` writes, as one window. Raises UsageError for batches, which it does not have."""
    if asked.batch_size != 1:
        raise UsageError(f"the engine openai decodes one window after another: leave out batch_size={asked.batch_size}")
    if state is not None:
        return
    samples = np.concatenate([np.empty(0, np.float32), *reader.blocks()])
    own = WhisperOptions(**asked.own)
    points = clips_of(numbers("clip_timestamps", own.clip_timestamps), asked.speech, len(samples) // HOP, reader.label)
    found: Mapping[str, Any] = {"segments": [], "language": None}
    if points and len(samples):
        given = _options(own, asked, language)
        given["clip_timestamps"] = [frame * HOP / SAMPLE_RATE_HZ for clip in points for frame in clip]
        found = _transcribed(openai_model(model), samples, given, own.seed)
    segments = tuple(_segment(each) for each in found["segments"] if each["text"].strip())
    heard = found["language"] if model.controls.multilingual else None
    yield Window(segments=segments, reached_s=len(samples) / SAMPLE_RATE_HZ, language=heard, state={"done": True})


def openai_model(ours: Any) -> Any:
    """`whisper.model.Whisper` with the very tensors of one of ours, made once for each. Raises UsageError for layers that were rounded."""
    if ours in _built:
        return _built[ours]
    heads = ours.encoder.stack.blocks[0].attention.heads
    size = openai_whisper().model.ModelDimensions(
        n_mels=ours.encoder.bands,
        n_audio_ctx=len(ours.encoder.positions_TD),
        n_audio_state=ours.decoder.width,
        n_audio_head=heads,
        n_audio_layer=len(ours.encoder.stack.blocks),
        n_vocab=ours.decoder.vocabulary,
        n_text_ctx=ours.decoder.context,
        n_text_state=ours.decoder.width,
        n_text_head=heads,
        n_text_layer=ours.decoder.layers,
    )
    theirs = openai_whisper().model.Whisper(size)
    state = {to_openai(key): tensor.detach() for key, tensor in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"encoder.positional_embedding"}:
        raise UsageError("the engine openai takes the weights as they were published: choose it where the model is opened")
    flags = torch.zeros(ours.decoder.layers, heads, dtype=torch.bool)
    for layer, head in ours.alignment_heads:
        flags[layer, head] = True
    theirs.register_buffer("alignment_heads", flags.to_sparse(), persistent=False)
    _built[ours] = theirs.to(next(ours.parameters()).device).eval()
    return _built[ours]


def to_openai(key: str) -> str:
    """Our name of a tensor -> OpenAI's."""
    block = _BLOCK.fullmatch(key)
    if block is not None:
        return f"{block[1]}.blocks.{block[2]}.{THEIRS.get(block[3], block[3])}.{block[4]}"
    if key == "decoder.position_embedding.weight":
        return "decoder.positional_embedding"
    top, _, parameter = key.rpartition(".")
    return f"{_TOPS_OF_THEIRS.get(top, top)}.{parameter}"


_TOPS_OF_THEIRS = {ours: theirs for theirs, ours in reversed(TOPS.items())}  # OpenAI's stand first there


def _options(own: WhisperOptions, asked: TranscriptionOptions, language: str | None) -> dict[str, Any]:
    given = {each.name: getattr(own, each.name) for each in fields(own) if each.name not in OURS_ALONE}
    temperature = [own.temperature] if isinstance(own.temperature, (int, float)) else own.temperature
    given["temperature"] = numbers("temperature", temperature)
    given["suppress_tokens"] = token_ids("suppress_tokens", own.suppress_tokens)
    given["condition_on_previous_text"] = own.condition_on_previous_text is not False
    if asked.speech is not None:  # as for our engine: somebody speaks there
        given["no_speech_threshold"] = None
    return {**given, "language": language, "task": asked.task, "word_timestamps": asked.word_timestamps, "fp16": False}


def _transcribed(theirs: Any, samples: Any, given: dict[str, Any], seed: int | None) -> Mapping[str, Any]:
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(enabled=seed is not None):
            warnings.simplefilter("ignore")  # of files that it leaves open, and of numpy's future
            if seed is not None:
                torch.manual_seed(seed)
            result: Mapping[str, Any] = theirs.transcribe(samples, **given)
    finally:
        torch.set_num_threads(
            threads
        )  # the times of its words are found by numba, which gives OpenMP, and so torch, all cores
    return result


def _segment(found: Mapping[str, Any]) -> Segment:
    words = found.get("words")
    return Segment(
        start_s=float(found["start"]),
        end_s=float(found["end"]),
        text=found["text"],
        tokens=tuple(found["tokens"]),
        average_log_probability=found["avg_logprob"],
        no_speech_probability=found["no_speech_prob"],
        compression_ratio=found["compression_ratio"],
        temperature=found["temperature"],
        words=None if words is None else tuple(_word(word) for word in words),
    )


def _word(found: Mapping[str, Any]) -> Word:
    return Word(
        text=found["word"],
        start_s=float(found["start"]),
        end_s=float(found["end"]),
        probability=float(found["probability"]),
    )
