"""Sounds transcribed by one peer in a process of its own; one JSON line for each sound.

    python benchmarks/transcribe_peers.py --peer faster-whisper-int8 --weights FOLDER --threads 1 [--warm WAV] [--batch 8] WAV ...

Run it by the interpreter that has the peer. FOLDER is what transcribe_weights.py made; ours reads the cache of the zoo (`zoo fetch
whisper/base`), which is the same file. All are told that the language is English, and that a window is decoded greedily, then at
temperatures 0.2 to 1.0 where its text repeats itself (zlib ratio above 2.4) or is improbable (mean log probability below -1), with the
text before it as a prompt, timestamps on. What differs from that, by peer:

- openai-whisper: nothing but that it reads files by the program ffmpeg, and here is handed samples, so that its seconds hold no second
  process.
- transformers: `generate()` with the same thresholds; it measures repetition in tokens, where 1.35 is what its documentation gives for 2.4.
- faster-whisper: `-beam5` searches with 5 beams, its own default. With --batch it is its BatchedInferencePipeline: cut by Silero's
  voice detector, no timestamps (its default), each piece by itself, and no temperature but 0.
- whisper.cpp: by pywhispercpp, with OpenAI's suppression of signs that no one speaks, which is off by default; it measures repetition by
  entropy. In float16 and Q8_0; it computes in float32, by what instruction sets it was built for.
- pocketsphinx: no Whisper at all, its own small acoustic model and language model; telephone sound is brought to 16 kHz for it.
- zoo-KERNEL: ours. With --batch windows are cut where nobody speaks and decoded together.

Seconds are from a path to the text, model loaded, and, with --warm, after that other sound was transcribed. peak_mib is the process's
VmHWM, loading included; run_mib what the peak during this sound lay above loaded_mib, the process with its model before it heard anything.
"""

import argparse
import json
import os
import time
import wave
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATE_HZ = 16_000
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MODEL = "whisper/base"

Samples = np.ndarray[Any, np.dtype[np.float32]]


class Piece(NamedTuple):
    """What was heard in a stretch of a sound."""

    start_s: float
    end_s: float
    text: str


Transcriber = Callable[[Path], list[Piece]]


class Job(NamedTuple):
    """What a peer is built for: the folder of weights, threads, and how many windows are decoded together."""

    weights: Path
    threads: int
    batch: int


def samples(path: Path) -> Samples:
    """A wav as float32 at 16 kHz, of 16 bits and one channel; resampled by ffmpeg's library where it has another rate."""
    with wave.open(str(path)) as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise ValueError(f"{path}: expected one channel of 16 bits")
        if file.getframerate() == RATE_HZ:
            return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(str(path)) as container:
        frames = [new for frame in (*container.decode(audio=0), None) for new in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32) / 32768


def openai_whisper(job: Job) -> Transcriber:
    import torch
    import whisper

    torch.set_num_threads(job.threads)
    model = whisper.load_model(str(job.weights / "openai" / "base.pt"), device="cpu")

    def transcribe(path: Path) -> list[Piece]:
        result = model.transcribe(samples(path), language="en", temperature=TEMPERATURES, fp16=False)
        return [Piece(segment["start"], segment["end"], segment["text"]) for segment in result["segments"]]

    return transcribe


def transformers(job: Job, *, dtype: str) -> Transcriber:
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    torch.set_num_threads(job.threads)
    folder, kind = job.weights / "hf", getattr(torch, dtype)
    extractor, tokenizer = WhisperFeatureExtractor.from_pretrained(folder), WhisperTokenizer.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=kind, local_files_only=True).eval()
    thresholds = {"compression_ratio_threshold": 1.35, "logprob_threshold": -1.0, "no_speech_threshold": 0.6}
    options = {"language": "en", "task": "transcribe", "return_timestamps": True, "return_segments": True}

    def transcribe(path: Path) -> list[Piece]:
        heard = samples(path)
        whole = {"truncation": False, "padding": "longest"} if len(heard) > 30 * RATE_HZ else {}
        inputs = extractor(heard, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True, **whole)
        found = model.generate(
            inputs.input_features.to(kind),
            attention_mask=inputs.attention_mask,
            temperature=TEMPERATURES,
            condition_on_prev_tokens=True,
            **options,
            **thresholds,
        )
        return [
            Piece(
                float(segment["start"]),
                float(segment["end"]),
                tokenizer.decode(segment["tokens"], skip_special_tokens=True),
            )
            for segment in found["segments"][0]
        ]

    return transcribe


def faster_whisper(job: Job, *, kind: str, beams: int) -> Transcriber:
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    folder = str(job.weights / "ct2")
    model = WhisperModel(folder, device="cpu", compute_type=kind, cpu_threads=job.threads, local_files_only=True)

    def transcribe(path: Path) -> list[Piece]:
        options: dict[str, Any] = {"language": "en", "beam_size": beams}
        if job.batch > 1:
            segments, _ = BatchedInferencePipeline(model).transcribe(str(path), batch_size=job.batch, **options)
        else:
            segments, _ = model.transcribe(str(path), temperature=TEMPERATURES, **options)
        return [Piece(segment.start, segment.end, segment.text) for segment in segments]

    return transcribe


def whisper_cpp(job: Job, *, name: str) -> Transcriber:
    from pywhispercpp.model import Model

    options = {
        "n_threads": job.threads,
        "language": "en",
        "no_context": False,
        "suppress_nst": True,
        "print_progress": False,
    }
    model = Model(str(job.weights / "ggml" / name), redirect_whispercpp_logs_to=None, **options)

    def transcribe(path: Path) -> list[Piece]:
        return [Piece(part.t0 / 100, part.t1 / 100, f" {part.text}") for part in model.transcribe(samples(path))]

    return transcribe


def pocketsphinx(job: Job) -> Transcriber:  # noqa: ARG001 - it has weights and one thread of its own
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=RATE_HZ, loglevel="FATAL")

    def transcribe(path: Path) -> list[Piece]:
        heard = samples(path)
        decoder.start_utt()
        decoder.process_raw((heard * 32768).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        return [Piece(0.0, len(heard) / RATE_HZ, f" {best.hypstr}" if best else "")]

    return transcribe


def ours(job: Job, *, kernel: str) -> Transcriber:
    import torch

    import zoo
    from zoo.tasks.transcription import open_transcriber

    torch.set_num_threads(job.threads)
    built, _ = open_transcriber(MODEL, kernel=kernel)

    def transcribe(path: Path) -> list[Piece]:
        outcome = zoo.transcribe(path, model=built, language="en", temperature=TEMPERATURES, batch_size=job.batch)
        result = outcome.results[0]
        if result.error:
            raise RuntimeError(result.error)
        return [Piece(segment.start_s, segment.end_s, segment.text) for segment in result.segments]

    return transcribe


PEERS: dict[str, Callable[[Job], Transcriber]] = {"openai-whisper": openai_whisper, "pocketsphinx": pocketsphinx}
PEERS |= {
    f"transformers-{name}": partial(transformers, dtype=dtype)
    for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
}
PEERS |= {
    f"faster-whisper-{kind}{suffix}": partial(faster_whisper, kind=kind, beams=beams)
    for kind in ("float32", "int8")
    for suffix, beams in (("", 1), ("-beam5", 5))
}
PEERS |= {
    "whisper.cpp-f16": partial(whisper_cpp, name="base.bin"),
    "whisper.cpp-q8_0": partial(whisper_cpp, name="base-q8_0.bin"),
}
PEERS |= {f"zoo-{kernel}": partial(ours, kernel=kernel) for kernel in ("float32", "bf16", "int8", "int4")}


def memory_mib(field: str) -> float:
    """VmHWM or VmRSS of this process; getrusage would count what the parent had before exec."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    """Let VmHWM begin anew at what the process has now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def words(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="windows decoded together, by peers that can")
    parser.add_argument("--warm", type=Path, help="a sound to transcribe first")
    parser.add_argument("sounds", type=Path, nargs="+")
    options = parser.parse_args()
    job = Job(options.weights, options.threads, options.batch)
    transcribe = PEERS[options.peer](job)
    loaded, peak = memory_mib("VmRSS"), memory_mib("VmHWM")
    if options.warm:
        transcribe(options.warm)
    for path in options.sounds:
        peak = max(peak, memory_mib("VmHWM"))
        forget_peak()
        started, started_cpu = time.perf_counter(), time.process_time()
        pieces = transcribe(path)
        spent, spent_cpu, run = time.perf_counter() - started, time.process_time() - started_cpu, memory_mib("VmHWM")
        row: dict[str, Any] = {"peer": options.peer, "sound": str(path), "threads": job.threads, "batch": job.batch}
        row |= {"seconds": round(spent, 3), "cpu_seconds": round(spent_cpu, 3), "text": words(pieces), "pieces": pieces}
        row |= {"peak_mib": round(max(peak, run), 1), "loaded_mib": round(loaded, 1), "run_mib": round(run - loaded, 1)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    main()
