"""Encoders compiled whole by OpenVINO, beside torch and beside OpenVINO called without the zoo.

EfficientNet-Lite0 with its weights on real photos; CLIP ViT-B/32's image tower and Whisper base's encoder with random weights, on
noise: their speed does not depend on the weights, and their cosines are of random networks. Forward only, one process, alternating
runs, medians. Ratios are of CPU seconds, which a busy machine changes least. "OpenVINO itself": `openvino.convert_model` and its default settings but for float32 and the threads.

Expected, after float32 of Lite0 alone was tried by hand (one thread, a processor with AMX; ratios to torch float32):
    float32: Lite0 3x at batch 1 and 6x at 32, CLIP 1.3x and 1.1x, Whisper 1.2x; 0.97 to 1.03 of OpenVINO itself, cosine 1.0000.
    bf16: Lite0 4x and 9x (cosine .999), CLIP 4x and 5x (.9999), Whisper 4x: AMX multiplies eight times as much as AVX512 in float32.
    int8: Lite0 5x and 12x (.99), CLIP 6x and 7x, Whisper 5x.
    First call: 4 s of conversion for Lite0, 8 s for CLIP; with the kept graph under 2 s, half of it the comparison with torch.

Run: .venv/bin/python benchmarks/compiled_encoders.py [--threads 1] [--runs 7] [--int8] [model ...]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine, progress, show
from throughput import make_images
from torch import nn
from zoo_openvino.kernel import compile_module
from zoo_openvino.library import openvino

import zoo
from zoo.api import CompileRequest, multiplies_in_bfloat16, open_image

Tensors = tuple[torch.Tensor, ...]


class Flat(nn.Module):
    """An encoder as a module that takes one tensor and gives two."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: torch.Tensor) -> Tensors:
        """Prepared inputs -> tokens float[B, T, D], pooled float[B, D]."""
        encoded = self.encoder(inputs)
        return encoded.tokens_BTD, encoded.pooled_BD


class Heard(nn.Module):
    """Whisper's encoder as its decoder reads it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, mel_BCT: torch.Tensor) -> torch.Tensor:
        """Log-mel float[B, bands, 3000] -> float[B, 1500, D]."""
        heard_BTD: torch.Tensor = self.encoder.features(mel_BCT)
        return heard_BTD


def lite0(folder: Path) -> tuple[nn.Module, torch.Tensor]:
    encoder = zoo.build("timm/efficientnet_lite0.in1k")
    images = [open_image(file) for file in make_images(folder)[:64]]
    return Flat(encoder).eval(), encoder.preprocess(images)


def clip(_: Path) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    encoder = zoo.build("clip/ViT-B-32-image", weights=None)
    return Flat(encoder).eval(), torch.randn(64, 3, 224, 224)


def whisper(_: Path) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    encoder = zoo.build("whisper/base-encoder", weights=None)
    return Heard(encoder).eval(), torch.randn(4, 80, 3000)


MODELS: dict[str, tuple[Callable[[Path], tuple[nn.Module, torch.Tensor]], tuple[int, ...]]] = {
    "EfficientNet-Lite0": (lite0, (1, 32)),
    "CLIP ViT-B/32 image tower": (clip, (1, 32)),
    "Whisper base encoder": (whisper, (1,)),
}


def themselves(module: nn.Module, inputs: torch.Tensor, threads: int) -> Callable[[torch.Tensor], object]:
    """OpenVINO as its documentation calls it."""
    library = openvino()
    graph = library.convert_model(module, example_input=inputs[:1], input=[library.PartialShape([-1, *inputs.shape[1:]])])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = library.Core().compile_model(graph, "CPU", settings)
    return lambda batch: compiled(batch.numpy())


def cosine(one: Any, other: Any) -> float:
    """Of the last output, the pooled one; the worst row."""
    a, b = (output[-1] if isinstance(output, tuple) else output for output in (one, other))
    return float(torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).min())


def timed(call: Callable[[torch.Tensor], object], given: torch.Tensor, repeats: int = 1) -> tuple[float, float]:
    """Seconds of one call, on the clock and of the processor, all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call(given)
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def contestants(
    module: nn.Module, inputs: torch.Tensor, precisions: list[str], threads: int, folder: Path
) -> tuple[dict[str, Callable[[torch.Tensor], object]], list[str]]:
    """What runs, and what their first calls took."""
    found: dict[str, Callable[[torch.Tensor], object]] = {
        "torch float32": module,
        "OpenVINO itself, float32": themselves(module, inputs, threads),
    }
    notes = []
    calibration = [(row[None],) for row in inputs[32:]] if len(inputs) > 32 else [(row[None],) for row in inputs[1:]]
    for precision in precisions:
        request = CompileRequest(key="0", cache=folder, threads=threads, calibration=calibration)
        seconds = []
        for _ in range(2):
            compiled: Any = compile_module(module, request, precision=precision)
            seconds.append(timed(compiled, inputs[:3])[0])
        progress(f"{precision}: {compiled.engine}, {compiled.difference}")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
        notes.append(
            f"first call {precision}: {seconds[0]:.1f} s, from the kept graph {seconds[1]:.1f} s (kept so far {size:.0f} MiB)"
        )
        found[f"zoo openvino/{precision}"] = compiled
    return found, notes


def measure(name: str, precisions: list[str], threads: int, runs: int) -> None:
    build, batches = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        module, inputs = build(Path(folder))
        running, notes = contestants(module, inputs, precisions, threads, Path(folder) / "graphs")
        for batch in batches:
            given = inputs[:batch]
            repeats = 1 if batch > 1 or "Whisper" in name else 8
            answers = {key: call(given) for key, call in running.items()}  # also warms up
            seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in running}
            for run in range(runs):
                for key, call in running.items():
                    seconds[key].append(timed(call, given, repeats))
                progress(f"{name}, batch {batch}: run {run + 1} of {runs}")
            show(f"{name}, batch {batch}, {threads} thread{'s' * (threads > 1)}")
            for key in running:
                ratio, peer = (
                    statistics.median(a[1] / b[1] for a, b in zip(seconds[other], seconds[key], strict=True))
                    for other in ("torch float32", "OpenVINO itself, float32")
                )
                wall, cpu = (batch / statistics.median(both[clock] for both in seconds[key]) for clock in (0, 1))
                near = f"  cosine {cosine(answers['torch float32'], answers[key]):.5f}" if "itself" not in key else ""
                show(
                    f"  {key:<25} {wall:7.4g} /s  {cpu:7.4g} /CPU s  {ratio:5.2f}x torch  {peer:5.2f}x OpenVINO float32{near}"
                )
        for note in notes:
            show(f"  {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--int8", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    precisions = ["float32"] + ["bf16"] * multiplies_in_bfloat16() + ["int8"] * arguments.int8
    show(f"{machine()}, OpenVINO {openvino().__version__.partition('-')[0]}; median of {arguments.runs} alternating runs")
    with torch.inference_mode():
        for name in arguments.models:
            measure(name, precisions, arguments.threads, arguments.runs)


if __name__ == "__main__":
    main()
