"""Sounds -> what is said in them, by any transcriber; a recording of any length in constant memory, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from zoo.data.inputs import audio_files, printable
from zoo.data.journal import Journal, alone, read_about
from zoo.errors import MediaError, PluginError, UsageError, ZooError
from zoo.media.audio import MAX_DECODE_S, AudioSource, Sound
from zoo.media.audio_reader import AudioReader
from zoo.media.file import expanded
from zoo.media.readers import open_reader
from zoo.models.build import Built, ModelSpec, spec_of, with_kernel
from zoo.models.contracts import Transcriber
from zoo.models.kernels import FLOAT32, Asked, check_kernel
from zoo.models.provenance import Provenance, provenance_of
from zoo.models.transcript import MAX_DURATION_S, Segment, Span, TranscriptionOptions, Window, Word, inside
from zoo.nn.extension import extensions_in
from zoo.registry.modality import AUDIO
from zoo.registry.plugin import describe
from zoo.registry.suggest import did_you_mean, nearest
from zoo.tasks.encoding import open_for, plugin_errors
from zoo.tasks.voice_activity import open_detector, speech_spans

TASK = "transcribe"
PROGRESS_FROM_S = 60.0  # a shorter sound is done before a bar could be read
BATCHES_IGNORE = "each window is decoded by itself: none is told what was written before it"

OnWindow = Callable[[str, Window], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What is said in one sound, or the reason why nobody knows.

    language: its code, as given or as it sounded; None where the model knows but one, or nothing was heard. duration_s: of the sound.
    warnings: what is odd about the sound and changed how it was read.
    """

    input: str
    text: str
    language: str | None
    duration_s: float
    segments: tuple[Segment, ...]
    error: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcription:
    """Transcripts in the order of the inputs, and what produced them.

    settings: the options that were given. note: what batches change; None without.
    """

    provenance: Provenance
    settings: dict[str, Any]
    results: tuple[Transcript, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a transcription is done and told of: nothing of it changes a word.

    max_duration_s, max_decode_s: longer sounds are refused, and those that take longer to decode. Raises UsageError for none above 0.
    journal: a file in which a sound that takes long is safe: if the work is interrupted, the same call goes on from there; it is
        removed when the work is done, and `on_done` has returned. For one sound.
    on_window: called with the sound's name and each window as soon as it is there. on_done: called with what is returned.
    """

    max_duration_s: float = MAX_DURATION_S
    max_decode_s: float = MAX_DECODE_S
    journal: str | Path | None = None
    on_window: OnWindow | None = None
    on_done: Callable[[Transcription], None] | None = None

    def __post_init__(self) -> None:
        for name, limit_s in (("max_duration_s", self.max_duration_s), ("max_decode_s", self.max_decode_s)):
            if not limit_s > 0:
                raise UsageError(f"{name} is a number of seconds above 0, got {limit_s}")


AS_USUAL = RunOptions()


def transcribe(
    audio: AudioSource | Sequence[AudioSource],
    *,
    model: str | ModelSpec | Built | None = None,
    language: str | None = None,
    task: str = "transcribe",
    vad: bool | Built = False,
    batch_size: int = 1,
    engine: str | None = None,
    run: RunOptions = AS_USUAL,
    progress: bool = False,
    **options: Any,
) -> Transcription:
    """Transcribe sounds.

    audio: one or many of: path, folder, pattern, the bytes of a file, `zoo.Sound`.
    model: a transcriber; the installed default when None. A `zoo.ModelSpec` says how it is opened: weights, device, dtype and kernel.
        To ask many times, build it once: `zoo.open_transcriber`.
    language: a code or a name; None: as it sounds. task: "translate" writes English.
    vad: look for voices first (`zoo.tasks.voice_activity`) and listen only there; a detector that is built, or the default.
    batch_size: windows decoded together; more than 1 looks for voices, too, to cut windows in the pauses, and decodes each by itself.
    engine: whose code computes, of those that the model names in `engines`; its first when None. For a model that is not built yet.
    run: limits, a journal for a sound that takes long, and what is called meanwhile.
    options: of the model itself, as word_timestamps, beam_size, temperature, initial_prompt: those that it names in `options`.
    Raises UsageError for arguments that make no sense, and what building the model raises. A sound that cannot be read becomes a result
    with `error`; it never costs the others theirs.
    """
    sounds = _sources(audio)
    if run.journal is not None and len(sounds) != 1:
        raise UsageError(f"a journal is of one sound, got {len(sounds)}")
    if "speech" in options:
        raise UsageError("speech is found by vad=True")
    if task not in ("transcribe", "translate"):
        raise UsageError(f"task is transcribe or translate, got {task!r}")
    built = open_transcriber(model, engine=engine)
    wanted = vad is not False or batch_size > 1
    _check_options(built, [*options, *(["batch_size"] if batch_size != 1 else []), *(["speech"] if wanted else [])])
    detector = vad if isinstance(vad, Built) else open_detector() if wanted else None
    given = {"language": language, "task": task, "batch_size": batch_size, "vad": vad is not False, **options}
    if hasattr(built.module, "engines"):
        given["engine"] = _engine_of(built)
    if detector is not None:
        _refuse_early(built, given)
    journal = None if run.journal is None else Path(run.journal)
    work = _Run(built, detector, given, run, progress=progress)
    results = [work.transcript(source, journal=journal) for source in sounds]
    outcome = Transcription(
        provenance=provenance_of(
            built, kernel=built.kernel or device_and_format(built)[1], helped=() if detector is None else (detector,)
        ),
        settings=given,
        results=tuple(results),
        note=BATCHES_IGNORE if batch_size > 1 else None,
    )
    if run.on_done is not None:
        run.on_done(outcome)
    if journal is not None and results[0].error is None:
        journal.unlink(missing_ok=True)
    return outcome


def open_transcriber(model: str | ModelSpec | Built | None = None, *, engine: str | None = None) -> Built:
    """A transcriber, with a kernel: the named one, the one handed over, or the installed default.

    engine: whose code computes, of those that the model has; its first when None, and what was chosen for one that is built.
    Raises UsageError for a model of another kind and an engine that it lacks, PluginError for one that keeps no such contract.
    """
    asked = model if isinstance(model, Built) else spec_of(model)
    kernel = None if isinstance(asked, Built) else asked.kernel
    if kernel is not None:
        check_kernel(kernel)
    plain = asked if isinstance(asked, Built) else replace(asked, kernel=None, skip=(), per_layer={})
    layers = Asked() if isinstance(asked, Built) else Asked(skip=asked.skip, per_layer=asked.per_layer)
    built = open_for(TASK, plain, kinds=("transcriber",), modalities=(AUDIO,))
    module: Any = built.module
    if not isinstance(module, Transcriber):
        raise PluginError(
            f"{describe(built.found.card.provider)}: {built.name} has no sample_rate_hz, languages, options and windows"
        )
    if engine is not None:
        _choose_engine(built, engine, is_open=isinstance(asked, Built))
    if built.kernel is not None and not isinstance(asked, Built):  # what zoo quantize wrote runs by its own
        if kernel not in (None, built.kernel, built.kernel.partition("/")[2]):
            raise UsageError(f"{built.name} is quantised by {built.kernel}: leave out kernel {kernel}")
        return built
    if isinstance(asked, Built) or asked.dtype is not None or str(asked.device) != "cpu":
        return built if kernel in (None, FLOAT32) else with_kernel(built, str(kernel), asked=layers)
    return with_kernel(built, kernel or FLOAT32, asked=layers)


def _choose_engine(built: Built, engine: str, *, is_open: bool) -> None:
    module: Any = built.module
    engines = tuple(getattr(module, "engines", ()))
    if engine not in engines:
        has = f"an engine of it is one of {', '.join(engines)}" if engines else "it has no choice of engines"
        raise UsageError(f"{built.name} has no engine {engine!r}: {has}")
    if is_open and module.engine != engine:
        raise UsageError(
            f"{built.name} was opened for engine {module.engine}: zoo.open_transcriber(..., engine={engine!r})"
        )
    if not is_open:
        module.use_engine(engine)


def _engine_of(built: Built) -> str:
    """Whose code computes. Raises UsageError for adapters under code that does not know them."""
    module: Any = built.module
    if module.engine != module.engines[0] and any(extension.names for extension in extensions_in(module)):
        raise UsageError(
            f"engine {module.engine} runs no adapters: leave out one of the two, or merge them (zoo adapt merge)"
        )
    return str(module.engine)


def device_and_format(built: Built) -> tuple[str, str]:
    """Where a model computes, and the number format of its parameters."""
    example = next(built.module.parameters(), torch.empty(0))
    return str(example.device), str(example.dtype).removeprefix("torch.")


class _Run:
    """One call of `transcribe`: what holds for every sound of it."""

    def __init__(
        self,
        built: Built,
        detector: Built | None,
        given: Mapping[str, Any],
        run: RunOptions,
        *,
        progress: bool,
    ) -> None:
        self.built, self.detector, self.given = built, detector, dict(given)
        self.run, self.progress = run, progress

    def transcript(self, source: AudioSource, *, journal: Path | None) -> Transcript:
        label = printable(str(source)) if isinstance(source, (str, Path)) else "the sound"
        module: Any = self.built.module
        try:
            with (
                open_reader(
                    source,
                    sample_rate_hz=module.sample_rate_hz,
                    max_duration_s=self.run.max_duration_s,
                    max_decode_s=self.run.max_decode_s,
                ) as reader,
                closing(self._windows(reader, source, journal)) as windows,
            ):
                result = self._collected(label, reader, windows)
        except KeyboardInterrupt as stop:
            if journal is None:
                raise
            raise KeyboardInterrupt(f"what was done is kept in {journal}; the same command goes on from there") from stop
        except MediaError as error:
            result = Transcript(input=label, text="", language=None, duration_s=0.0, segments=(), error=str(error))
        return result

    def _collected(self, label: str, reader: AudioReader, windows: Generator[Window]) -> Transcript:
        segments: list[Segment] = []
        language: str | None = None
        wanted = self.progress and reader.duration_s >= PROGRESS_FROM_S
        with tqdm(total=round(reader.duration_s), unit="s", desc=label[-40:], disable=None if wanted else True) as bar:
            for window in windows:
                segments += window.segments
                language = window.language or language
                bar.update(max(0, round(window.reached_s) - bar.n))
                if self.run.on_window is not None:
                    self.run.on_window(label, window)
        if not reader.duration_s:
            raise MediaError(f"{label}: it holds no sample")
        text = "".join(segment.text for segment in segments).strip()
        return Transcript(
            input=label,
            text=text,
            language=language,
            duration_s=reader.duration_s,
            segments=tuple(segments),
            warnings=reader.warnings,
        )

    def _windows(self, reader: AudioReader, source: AudioSource, journal: Path | None) -> Generator[Window]:
        if journal is None:
            yield from self._fresh(reader, None)
            return
        about = {"transcribe": self._plan(source)}
        with alone(journal):
            begun = read_about(journal)
            if begun is not None and begun != about:
                raise UsageError(
                    f"{journal}: what was begun there is of another sound, model or other options: remove it, or give another --out"
                )
            kept = Journal(journal, about)
            done = [_window_from(header) for header, _, _ in kept.records()]
            worth_keeping = True
            try:
                yield from done
                for window in self._fresh(reader, done[-1].state if done else None):
                    kept.append(asdict(window), b"")
                    done.append(window)
                    yield window
            except ZooError:
                worth_keeping = bool(done)
                raise
            finally:
                kept.sync()
                kept.close()
                if not worth_keeping:  # it would only stand in the way of the same sound with other options
                    journal.unlink(missing_ok=True)

    def _fresh(self, reader: AudioReader, state: Mapping[str, Any] | None) -> Generator[Window]:
        module: Any = self.built.module
        speech = None
        if self.detector is not None:
            speech = speech_spans(reader, self.detector)
            reader.rewind()
        with plugin_errors(self.built):
            for window in module.windows(reader, _asked(self.given, speech), state=state):
                if not isinstance(window, Window):
                    raise TypeError(f"windows must give zoo.api.Window, got {type(window).__name__}")
                yield inside(window, reader.duration_s) if reader.duration_s else window

    def _plan(self, source: AudioSource) -> str:
        """What the result depends on: the model and how it computes, the detector, the options and the sound's own bytes."""
        built, detector = self.built, self.detector
        about = [
            built.state_identity,
            built.kernel,
            device_and_format(built),
            detector and detector.state_identity,
            self.given,
        ]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        if isinstance(source, Sound):
            digest.update(source.samples.tobytes() + str(source.sample_rate_hz).encode())
        elif isinstance(source, bytes):
            digest.update(source)
        else:
            with expanded(source).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def _sources(audio: Any) -> list[Any]:
    """What a caller points at, folders and patterns as their files. Raises UsageError for nothing, and for what is no sound."""
    single = isinstance(audio, (str, Path, bytes, Sound))
    given = [audio] if single or not isinstance(audio, Iterable) or hasattr(audio, "__array__") else list(audio)
    sounds: list[Any] = []
    for one in given:
        if isinstance(one, (bytes, Sound)):
            sounds.append(one)
        elif isinstance(one, (str, Path)):
            sounds += [item.source for item in audio_files([one])]
        else:
            raise UsageError(
                f"a sound is a path, the bytes of a file, or zoo.Sound(samples, sample_rate_hz), got "
                f"{type(one).__name__}: an array says nothing of its rate"
            )
    if not sounds:
        raise UsageError("no sound given: name audio files, folders or patterns")
    return sounds


def _check_options(built: Built, asked: Sequence[str]) -> None:
    """Raise UsageError for an option that the model does not name, before any sound is read."""
    module: Any = built.module
    names = {"language", "task", *module.options}
    if "speech" in asked and "speech" not in names:
        raise UsageError(f"{built.name} cannot be told where somebody speaks: leave out vad and batch_size")
    unknown = [name for name in asked if name not in names]
    if unknown:
        own = names - {"speech"}  # which is not the caller's to give
        hint = did_you_mean(nearest(unknown[0], own, most=1), f"it has {', '.join(sorted(own))}")
        raise UsageError(f"{built.name} has no option {unknown[0]}; {hint}")


def _refuse_early(built: Built, given: Mapping[str, Any]) -> None:
    """What a model refuses as soon as it is asked is refused before voices are looked for, which takes minutes in a long sound."""
    module: Any = built.module
    rate_hz = module.sample_rate_hz
    with suppress(MediaError), plugin_errors(built), open_reader(Sound(np.zeros(rate_hz, np.float32), rate_hz)) as reader:
        module.windows(reader, _asked(given, ()), state=None)


def _asked(given: Mapping[str, Any], speech: Sequence[Span] | None) -> TranscriptionOptions:
    """Settings of a call as the model is asked: those that any transcriber knows, and its own."""
    shared = {name: value for name, value in given.items() if name in ("language", "task", "word_timestamps", "batch_size")}
    own = {name: value for name, value in given.items() if name not in shared and name not in ("vad", "engine")}
    return TranscriptionOptions(**shared, speech=speech, own=own)


def _window_from(record: Mapping[str, Any]) -> Window:
    segments = []
    for fields in record["segments"]:
        words = fields["words"]
        spoken = None if words is None else tuple(Word(**word) for word in words)
        segments.append(Segment(**{**fields, "words": spoken, "tokens": tuple(fields["tokens"])}))
    return Window(**{**record, "segments": tuple(segments)})
