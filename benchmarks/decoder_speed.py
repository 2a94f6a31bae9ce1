"""SmolLM2-135M-Instruct side by side: ours, transformers, llama.cpp and CTranslate2 on the weights of one GGUF file.

    python benchmarks/decoder_speed.py --gguf FILE [--peers-python PYTHON] [--runs 3]

Every figure is a process of its own (benchmarks/decoder_peers.py), peers take turns, and the median of the runs counts. PYTHON has
llama-cpp-python and ctranslate2 (without it those rows are left out); llama-cpp-python must be built for this processor: its default
build uses AMX and crashes on some that have it.

Floors, from two measurements of this machine: a step must read every weight once, so its time is at least the bytes of the weights
over what a plain sum reads; a prompt needs two operations for each weight and token, so its time is at least those over the rate of
the fastest product. Expected before measuring: decode >= 2.5x transformers' best, prefill >= 1.5x the best of all, eight rows >= 1.5x
the best of all.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import machine, progress, show

TASKS = {
    "decode1": "64 steps, 1 row, tokens/s",
    "decode8": "64 steps, 8 rows, tokens/s",
    "prefill512": "512 tokens read, tokens/s",
    "first-token": "from a cold process to the first token, s",
}
OURS = ("zoo-float32", "zoo-bf16", "zoo-int8", "zoo-int4", "zoo-fused")
TRANSFORMERS = ("transformers-fp32", "transformers-bf16")
OTHERS = ("llama.cpp", "ctranslate2")
PARAMETERS, HEAD = 134_515_008, 49152 * 576
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "4-bit blocks (5 bits with scales), head in 8": 5}


def once(peer: str, task: str, threads: int, options: argparse.Namespace) -> dict[str, float] | None:
    """One process; None for a peer that does not run here."""
    python = options.peers_python if peer in OTHERS else sys.executable
    command = [python, str(Path(__file__).with_name("decoder_peers.py")), "--peer", peer, "--task", task]
    run = subprocess.run(
        [*command, "--threads", str(threads), "--gguf", str(options.gguf)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        progress(f"{peer} {task}: {run.stderr.strip().splitlines()[-1:]}")
        return None
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def table(threads: int, options: argparse.Namespace) -> None:
    """Medians of every peer and task, our rows as ratios to the best of the others."""
    peers = (*OURS, *TRANSFORMERS, *(OTHERS if options.peers_python else ()))
    for task, words in TASKS.items():
        figures: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
        for number in range(options.runs):
            for peer in peers:
                found = once(peer, task, threads, options)
                if found is not None:
                    figures[peer].append(found)
            progress(f"{threads} threads, {task}: run {number + 1} of {options.runs}")
        show(f"\n{words}, {threads} thread{'s' if threads > 1 else ''}, median of {options.runs}")
        field = "seconds" if task == "first-token" else "tokens_per_s"
        medians = {peer: statistics.median(row[field] for row in rows) for peer, rows in figures.items() if rows}
        theirs = {peer: value for peer, value in medians.items() if peer not in OURS}
        better = min if task == "first-token" else max
        best = better(theirs.values())
        best_transformers = better(value for peer, value in theirs.items() if peer in TRANSFORMERS)
        for peer, value in medians.items():
            ratio, of_transformers = (
                (best / value, best_transformers / value)
                if task == "first-token"
                else (value / best, value / best_transformers)
            )
            steady = statistics.median(row["steady_rss_mib"] for row in figures[peer])
            peak = statistics.median(row["peak_rss_mib"] for row in figures[peer])
            show(
                f"  {peer:<18} {value:>9.2f}   {ratio:>5.2f}x the best peer   {of_transformers:>5.2f}x transformers' best   "
                f"memory {steady:>6.0f} MiB, peak {peak:>6.0f}"
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
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    options = parser.parse_args()
    show(machine())
    for threads in options.threads:
        show(f"\nfloors, {threads} thread{'s' if threads > 1 else ''}")
        floors(threads)
    for threads in options.threads:
        table(threads, options)


if __name__ == "__main__":
    main()
