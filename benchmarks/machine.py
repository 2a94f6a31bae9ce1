"""What the benchmarks share: a line that says where a number was measured, and rows that are seen when they are known."""

import os
import platform
import sys
from pathlib import Path

import torch

import zoo


def machine() -> str:
    """Processor, instruction sets that matter, cores, and the versions of what ran."""
    capabilities = torch.cpu.get_capabilities()
    sets = [name for name in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if capabilities.get(name)]
    name = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return (
        f"{name}, {os.cpu_count()} cores, {' '.join(sets) or 'neither AVX512-BF16 nor AMX'}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, zoo {zoo.__version__}"
    )


def show(row: str) -> None:
    """One row of the result, at once where stdout is a pipe, too."""
    print(row, flush=True)


def progress(words: str) -> None:
    """What has just been measured, for somebody who waits; no part of the result."""
    print(words, file=sys.stderr, flush=True)
