"""One engine of the transcription benchmarks in a process of its own, which both scripts drive: paths come in, answers go out.

    python benchmarks/transcribe_peers.py --peer zoo-int8 --weights WEIGHTS --threads 2 [--batch 8] < paths

A line of JSON is written when the model is loaded, and one for each path of a 16 kHz wav that is read from stdin. All know that the
language is English. A window is decoded with timestamps and the text before it as a prompt: greedily, and again at temperatures 0.2 to
1.0, with one sample, where its text repeats itself (zlib ratio above 2.4) or is improbable (mean log probability below -1). What
differs from that:

- transformers measures repetition in tokens, where 1.35 is what its documentation gives for 2.4.
- faster-whisper with --batch is its BatchedInferencePipeline: cut by Silero's detector of voices, each piece by itself, no temperature
  but 0, and no timestamps, as is its default. "-beam5" searches with 5 beams, which is its default.
- whisper.cpp (pywhispercpp) is told to suppress signs that nobody speaks, which the others do; it measures repetition by entropy.
- pocketsphinx is no Whisper: it has a small acoustic model and a language model of its own.
- zoo-bf16-q8 is `--kernel openvino-bf16 --per-layer "decoder.*=fused"`: the encoder in bfloat16, the decoder in blocks of 8 bits.
- zoo with --batch cuts by the same detector and decodes the windows together, with timestamps and every temperature.

seconds: from the path to the text. cpu_seconds: of all cores. others: cores that the rest of the machine took meanwhile. loaded_mib:
resident with the model, before any sound. peak_mib: the most at any time until then, run_mib: the most during this sound.
"""

import argparse
import json
import os
import sys
import time
import wave
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATE_HZ = 16_000
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MODEL = "whisper/base"

Transcriber = Callable[[Path], str]


class Job(NamedTuple):
    """What an engine is built for: the folder of weights, threads, and how many windows are decoded together."""

    weights: Path
    threads: int
    batch: int


def samples(path: Path) -> Any:
    """A wav of one channel and 16 bits at 16 kHz, as float32."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def openai_whisper(job: Job) -> Transcriber:
    import torch

    torch.set_num_threads(job.threads)
    model = import_module("whisper").load_model(str(job.weights / "openai" / "base.pt"), device="cpu")

    def transcribe(path: Path) -> str:
        found: str = model.transcribe(samples(path), language="en", temperature=TEMPERATURES, fp16=False)["text"]
        return found

    return transcribe


def transformers(job: Job) -> Transcriber:
    import torch

    torch.set_num_threads(job.threads)
    library, folder = import_module("transformers"), job.weights / "hf"
    extractor = library.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = library.WhisperTokenizer.from_pretrained(folder)
    model = library.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def transcribe(path: Path) -> str:
        heard = samples(path)
        whole = {"truncation": False, "padding": "longest"} if len(heard) > 30 * RATE_HZ else {}
        found = model.generate(
            **extractor(heard, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True, **whole),
            language="en",
            task="transcribe",
            return_timestamps=True,
            condition_on_prev_tokens=True,
            temperature=TEMPERATURES,
            compression_ratio_threshold=1.35,
            logprob_threshold=-1.0,
            no_speech_threshold=0.6,
        )
        text: str = tokenizer.decode(found[0], skip_special_tokens=True)
        return text

    return transcribe


def faster_whisper(job: Job, *, kind: str, beams: int) -> Transcriber:
    library = import_module("faster_whisper")
    model = library.WhisperModel(str(job.weights / "ct2"), device="cpu", compute_type=kind, cpu_threads=job.threads)
    options: dict[str, Any] = {"language": "en", "beam_size": beams, "best_of": 1}
    if job.batch > 1:
        run = partial(library.BatchedInferencePipeline(model).transcribe, batch_size=job.batch, **options)
    else:
        run = partial(model.transcribe, temperature=TEMPERATURES, **options)

    def transcribe(path: Path) -> str:
        segments, _ = run(str(path))
        return "".join(segment.text for segment in segments)

    return transcribe


def whisper_cpp(job: Job, *, name: str) -> Transcriber:
    model = import_module("pywhispercpp.model").Model(
        str(job.weights / "ggml" / name),
        redirect_whispercpp_logs_to=None,
        n_threads=job.threads,
        language="en",
        no_context=False,
        suppress_nst=True,
        greedy={"best_of": 1},
        print_progress=False,
    )

    def transcribe(path: Path) -> str:
        return " ".join(part.text for part in model.transcribe(samples(path)))

    return transcribe


def pocketsphinx(_: Job) -> Transcriber:
    decoder = import_module("pocketsphinx").Decoder(samprate=RATE_HZ, loglevel="FATAL")

    def transcribe(path: Path) -> str:
        decoder.start_utt()
        decoder.process_raw((samples(path) * 32768).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        return best.hypstr if best else ""

    return transcribe


def ours(job: Job, *, kernel: str, decoder: str = "") -> Transcriber:
    import torch

    import zoo
    from zoo.tasks.transcription import open_transcriber

    torch.set_num_threads(job.threads)
    model = open_transcriber(zoo.ModelSpec(name=MODEL, kernel=kernel, per_layer={"decoder.*": decoder} if decoder else {}))

    def transcribe(path: Path) -> str:
        result = zoo.transcribe(path, model=model, language="en", batch_size=job.batch).results[0]
        if result.error:
            raise RuntimeError(result.error)
        return result.text

    return transcribe


PEERS: dict[str, Callable[[Job], Transcriber]] = {
    "zoo-float32": partial(ours, kernel="float32"),
    "zoo-int8": partial(ours, kernel="int8"),
    "zoo-bf16-q8": partial(ours, kernel="openvino-bf16", decoder="fused"),
    "openai-whisper": openai_whisper,
    "transformers": transformers,
    "faster-whisper-float32": partial(faster_whisper, kind="float32", beams=1),
    "faster-whisper-int8": partial(faster_whisper, kind="int8", beams=1),
    "faster-whisper-int8-beam5": partial(faster_whisper, kind="int8", beams=5),
    "whisper.cpp-f16": partial(whisper_cpp, name="base.bin"),
    "whisper.cpp-q8_0": partial(whisper_cpp, name="base-q8_0.bin"),
    "pocketsphinx": pocketsphinx,
}


def memory_mib(field: str) -> float:
    """VmHWM or VmRSS of this process; getrusage would count what the parent had before exec."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def busy() -> float:
    """Seconds that all cores have worked since the machine began, those that its host took away among them."""
    ticks = [int(one) for one in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def measured(transcribe: Transcriber, path: Path) -> dict[str, Any]:
    """The text of one sound, and what it cost."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew at what the process has now
    all_before, own_before, started = busy(), time.process_time(), time.perf_counter()
    text = transcribe(path).strip()
    seconds, own = time.perf_counter() - started, time.process_time() - own_before
    return {
        "text": text,
        "seconds": seconds,
        "cpu_seconds": own,
        "others": max(0.0, busy() - all_before - own) / seconds,
        "run_mib": memory_mib("VmHWM"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1, help="windows decoded together")
    options = parser.parse_args()
    transcribe = PEERS[options.peer](Job(options.weights, options.threads, options.batch))
    peak = memory_mib("VmHWM")
    print(json.dumps({"loaded_mib": memory_mib("VmRSS"), "peak_mib": peak}), flush=True)
    for line in sys.stdin:
        row = measured(transcribe, Path(line.strip()))
        peak = max(peak, row["run_mib"])
        print(json.dumps({**row, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    main()
