"""One task of one peer of the decoder (SmolLM2-135M-Instruct from its Q4_1 GGUF), run once in a fresh process; one JSON line.

    python benchmarks/decoder_peers.py --peer transformers-fp32 --gguf SmolLM2-135M-Instruct.Q4_1.gguf --threads 2 --task decode1

Run it by the interpreter that has the peer: one with llama-cpp-python; or ctranslate2; or openvino-genai and openvino-tokenizers; or
onnxruntime-genai and onnx_ir. What a peer loads is made from the GGUF under --work at its first task and not timed (decoder_weights.py);
that of ctranslate2 and ortgenai takes torch, transformers and gguf, too, and openvino-q8_0 reads what llama.cpp-q8_0 made.

Tasks: decode1 and decode8 time 64 greedy steps after a 16-token prompt in 1 or 8 rows, end tokens ignored; prefill512 times a prompt
of 512 tokens up to its last logits; both after a warm-up of the same. first-token is the wall time from the spawn of the process to
the first token of "The capital of France is" (it fails unless that is " Paris", q4_0 apart), with the file cache as the caller left it. cpu_s is
what all threads of the process took in the same time. kl is the divergence of the distributions from those of float32 over a text
that is read at once, kl-steps the same read token by token, by what decodes (decoder_divergence.py); transformers-fp32 first.

Peers: zoo-KERNEL is ours, with the weights from the cache of the zoo (zoo fetch smollm/135m-instruct), which are the same file.
The others are decoder_engines.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decoder_divergence import divergence
from decoder_engines import PEERS, Clock
from decoder_weights import prepared

PROMPT, ANSWER = "The capital of France is", " Paris"
ROUNDED_TWICE = ("llama.cpp-q4_0", "openvino-q4_0")  # four bits of four bits: these know of capitals, but not of Paris
STEPS = 64
ROWS = {"decode1": 1, "decode8": 8, "prefill512": 1, "first-token": 1, "kl": 1, "kl-steps": 1}


def memory(field: str) -> float:
    """VmHWM or VmRSS of this process in MiB; getrusage would count what the parent had before exec."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024, 1)


def measure(peer: str, task: str, path: Path, threads: int, started: float) -> dict[str, Any]:
    """A timed task once, in this process, which was spawned at `started` of the system's monotonic clock."""
    rows, length, steps = ROWS[task], 512 if task == "prefill512" else 16, STEPS if task.startswith("decode") else 0
    model = PEERS[peer](path, threads, rows)
    if task == "first-token":
        tokens = model.run([model.encode(PROMPT)], 0)[0]
        spent, count = Clock(time.monotonic() - started, time.process_time()), 1
        if tokens != model.encode(ANSWER) and peer not in ROUNDED_TWICE:
            raise RuntimeError(f"{peer} continues {PROMPT!r} with token {tokens}, not {ANSWER!r}")
    else:
        prompts = [[1000 + (7919 * (row * length + index)) % 40000 for index in range(length)] for row in range(rows)]
        model.run(prompts, steps)
        _, prompt, decoding = model.run(prompts, steps)
        spent, count = (decoding, steps * rows) if steps else (prompt, length)
    result: dict[str, Any] = {"seconds": round(spent.wall, 4), "cpu_s": round(spent.cpu, 4)}
    result |= {"tokens": count, "tokens_per_s": round(count / spent.wall, 2)}
    return result | {"peak_rss_mib": memory("VmHWM"), "steady_rss_mib": memory("VmRSS")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--task", choices=ROWS, default="decode1")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "zoo-peers", help="folder of the converted weights"
    )
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)  # when the process that measures was spawned
    told = parser.parse_args(arguments)
    if told.started is not None:
        found: dict[str, Any] = {"peer": told.peer, "task": told.task, "threads": told.threads}
        if told.task.startswith("kl"):
            model = PEERS[told.peer](told.gguf, told.threads, 1)
            found |= divergence(model, told.peer, told.work / "reference.npz", at_once=told.task == "kl")
        else:
            found |= measure(told.peer, told.task, told.gguf, told.threads, told.started)
        print(json.dumps(found), flush=True)
        return
    path, threads = str(prepared(told.peer, told.gguf, told.work)), str(told.threads)
    command = [sys.executable, __file__, "--peer", told.peer, "--gguf", path, "--threads", threads, "--task", told.task]
    quiet = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command += ["--work", str(told.work), "--started", str(time.monotonic())]
    sys.exit(subprocess.run(command, env=quiet, check=False).returncode)


if __name__ == "__main__":
    main()
