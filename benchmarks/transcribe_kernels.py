"""Whether Whisper writes the same words by other kernels, on every evaluation file, and how long each takes.

    python benchmarks/transcribe_kernels.py [DATA] [--kernels openvino openvino-bf16 openvino-bf16+fused fused]

A+B is kernel A with the decoder by B (`--kernel A --per-layer "decoder.*=B"`).

DATA is the cache of speech_data.py (5 clips of LibriVox, 196 telephone prompts). One process, one thread; each file by float32 and then by each kernel, as
`zoo transcribe --kernel NAME` runs them. A file whose text differs is printed with both. Seconds are of processor time, all files together; what a kernel compiles at
its first call is measured apart.

Expected before measuring: the same text in all files by `openvino`, in all but a few by `openvino-bf16`; encoders twice and four times as fast, so that whole files take
0.75 and 0.5 of the time, for the decoder stays as it is; with a decoder by `fused` 0.35.
"""

import argparse
import time
from pathlib import Path

import torch
from machine import machine, progress, show
from speech_data import CACHE, SETS

import zoo

MODEL = "whisper/base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=CACHE)
    parser.add_argument("--kernels", nargs="+", default=["openvino", "openvino-bf16", "openvino-bf16+fused", "fused"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["float32", *options.kernels]
    opened = {}
    for name in names:
        whole, _, decoder = name.partition("+")
        layers = {"decoder.*": decoder} if decoder else {}
        opened[name] = zoo.open_transcriber(zoo.ModelSpec(MODEL, kernel=whole, per_layer=layers))
    show(machine())
    first = next(iter(next(iter(SETS.values()))(options.data)))
    for name in names:
        start = time.process_time()
        zoo.transcribe(first.path, model=opened[name])
        progress(f"{name}: first file {time.process_time() - start:.1f} s of processor time")
    for group, find in SETS.items():
        utterances = list(find(options.data))
        seconds, alike = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        for number, utterance in enumerate(utterances):
            progress(f"{group} {number + 1} of {len(utterances)}")
            texts = {}
            for name in names:
                start = time.process_time()
                texts[name] = zoo.transcribe(utterance.path, model=opened[name]).results[0].text
                seconds[name] += time.process_time() - start
                alike[name] += texts[name] == texts["float32"]
                if texts[name] != texts["float32"]:
                    show(f"  {utterance.path.name}: {name} {texts[name]!r}, float32 {texts['float32']!r}")
        for name in names:
            ratio = seconds[name] / seconds["float32"]
            show(
                f"{group}: {name:<14} the text of float32 in {alike[name]} of {len(utterances)}   {seconds[name]:6.1f} s ({ratio:.2f})"
            )


if __name__ == "__main__":
    main()
