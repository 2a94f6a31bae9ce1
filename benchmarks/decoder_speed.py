"""SmolLM2-135M-Instruct side by side: ours and its peers on the weights of one GGUF file, in time and in what rounding costs.

    python benchmarks/decoder_speed.py --gguf FILE [--peers-python PYTHON] [--openvino-python PYTHON] [--ort-python PYTHON] [--runs 3]

Every figure is a process of its own (benchmarks/decoder_peers.py), peers take turns, and the median of the runs counts. The Pythons have
llama-cpp-python and ctranslate2; openvino-genai and openvino-tokenizers; onnxruntime-genai and onnx_ir; rows of those that are not
given are left out. The first that makes a peer's weights needs torch, transformers and gguf, too (a .pth file that names the
site-packages of this Python will do). llama-cpp-python must be built for this processor: its default build uses AMX and crashes on some
that have it. Weights are made before anything is timed, under --work, and the divergence of each peer from float32 is measured with
them; it stands in every row, since a peer that rounds more reads less. The file is Q4_1 with its table and head in Q8_0: "q4_0" and
"ortgenai-int4" round what had been rounded before, and "openvino-q4_1" rounds the minimum of each block, which the others keep.

Floors, from two measurements of this machine: a step must read every weight once, so its time is at least the bytes of the weights
over what a plain sum reads; a prompt needs two operations for each weight and token, so its time is at least those over the rate of
the fastest product. Expected before measuring: decode >= 2.5x transformers' best, prefill >= 1.5x the best of all, eight rows >= 1.5x
the best of all.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from decoder_engines import OPENVINO, ORT, PEERS, PYTHON_PEERS, TRANSFORMERS, ZOO
from machine import machine, progress, show

TASKS = {
    "decode1": "64 steps, 1 row, tokens/s",
    "decode8": "64 steps, 8 rows, tokens/s",
    "prefill512": "512 tokens read, tokens/s",
    "first-token": "from a cold process to the first token, s",
}
PARAMETERS, HEAD = 134_515_008, 49152 * 576
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "4-bit blocks (5 bits with scales), head in 8": 5}


def python_of(peer: str, options: argparse.Namespace) -> str | None:
    """The interpreter that has the peer; None where it is not given."""
    given = ((PYTHON_PEERS, options.peers_python), (OPENVINO, options.openvino_python), (ORT, options.ort_python))
    found: str | None = next((python for names, python in given if peer in names), sys.executable)
    return found


def once(peer: str, task: str, threads: int, options: argparse.Namespace) -> dict[str, float] | None:
    """One process; None for a peer that does not run here."""
    command = [str(python_of(peer, options)), str(Path(__file__).with_name("decoder_peers.py")), "--peer", peer]
    command += ["--task", task, "--threads", str(threads), "--gguf", str(options.gguf), "--work", str(options.work)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        progress(f"{peer} {task}: {run.stderr.strip().splitlines()[-1:]}")
        return None
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def divergences(peers: list[str], options: argparse.Namespace) -> dict[str, float]:
    """What each peer's rounding costs, in nats, read at once and token by token; the weights of all are made by it.

    The reference comes first, whether its rows are asked for or not.
    """
    show("\ndivergence of the next token's distribution from float32, mean of 256 positions, in nats")
    found: dict[str, float] = {}
    for peer in dict.fromkeys([TRANSFORMERS[0], *peers]):
        at_once, steps = (once(peer, task, max(options.threads), options) for task in ("kl", "kl-steps"))
        if at_once is not None:
            found[peer] = at_once["kl"]
        if at_once is not None and peer in peers:
            by_step = "" if steps is None else f"   token by token {steps['kl']:>8.2g}, {steps['same_top1']:>4.0%}"
            show(f"  {peer:<18} {at_once['kl']:>8.2g}, the same first choice {at_once['same_top1']:>4.0%}{by_step}")
    return found


def table(peers: list[str], threads: int, divergence: dict[str, float], options: argparse.Namespace) -> None:
    """Medians of every peer and task, all as ratios to the best of the others'."""
    for task in options.tasks:
        figures: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
        for number in range(options.runs):
            for peer in peers:
                found = once(peer, task, threads, options)
                if found is not None:
                    figures[peer].append(found)
            progress(f"{threads} threads, {task}: run {number + 1} of {options.runs}")
        show(f"\n{TASKS[task]}, {threads} thread{'s' if threads > 1 else ''}, median of {options.runs}")
        field, better = ("seconds", min) if task == "first-token" else ("tokens_per_s", max)
        medians = {peer: statistics.median(row[field] for row in rows) for peer, rows in figures.items() if rows}
        best = better((value for peer, value in medians.items() if peer not in ZOO), default=math.nan)
        of_torch = better((value for peer, value in medians.items() if peer in TRANSFORMERS), default=math.nan)
        for peer, value in medians.items():
            ratios = [other / value if better is min else value / other for other in (best, of_torch)]
            rest = ("cpu_s", "steady_rss_mib", "peak_rss_mib")
            cpu, steady, peak = (statistics.median(row[name] for row in figures[peer]) for name in rest)
            show(
                f"  {peer:<18} {value:>9.2f}   {ratios[0]:>5.2f}x the best peer   {ratios[1]:>5.2f}x transformers' best   "
                f"CPU {cpu:>6.2f} s   memory {steady:>6.0f} MiB, peak {peak:>6.0f}   KL {divergence.get(peer, math.nan):.2g}"
            )


def floors(threads: int) -> None:
    """What this machine can read and multiply, and what that means for a step and for a prompt."""
    torch.set_num_threads(threads)
    for bits_name, bits in BITS.items():
        size = (PARAMETERS - HEAD) * bits / 8 + HEAD * min(max(bits, 8), 32) / 8
        rate = _read_rate(int(size))
        show(
            f"  a step reads {size / 1e6:.0f} MB ({bits_name}) at {rate / 1e9:.1f} GB/s: at most {rate / size:.0f} tokens/s"
        )
    for dtype in (torch.float32, torch.bfloat16):
        operations = _product_rate(dtype)
        bound = operations / (2 * (PARAMETERS - HEAD))
        show(f"  products in {str(dtype)[6:]}: {operations / 1e9:.0f} GFLOP/s: at most {bound:.0f} tokens/s of a prompt")


def _read_rate(size: int) -> float:
    """Bytes per second of a sum over so many bytes."""
    data = torch.ones(size // 4)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return size / min(times)


def _product_rate(dtype: torch.dtype) -> float:
    """Operations per second of a product of the model's widest layer with 512 tokens."""
    inputs, weight = torch.randn(512, 576).to(dtype), torch.randn(3072, 576).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 512)  # noqa: SLF001 - its public name is this
    times = []
    for _ in range(15):
        start = time.perf_counter()
        torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], "")  # noqa: SLF001 - as above
        times.append(time.perf_counter() - start)
    return 2 * 512 * 576 * 3072 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--peers-python", help="a Python that has llama-cpp-python and ctranslate2")
    parser.add_argument("--openvino-python", help="a Python that has openvino-genai and openvino-tokenizers")
    parser.add_argument("--ort-python", help="a Python that has onnxruntime-genai and onnx_ir")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "zoo-peers", help="folder of the converted weights"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="rows; all where left out")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    options = parser.parse_args()
    peers = [peer for peer in PEERS if peer in options.peers and python_of(peer, options)]
    show(machine())
    for threads in options.threads:
        show(f"\nfloors, {threads} thread{'s' if threads > 1 else ''}")
        floors(threads)
    divergence = divergences(peers, options)
    for threads in options.threads:
        table(peers, threads, divergence, options)


if __name__ == "__main__":
    main()
