"""`zoo bench`: measurements on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from zoo.cli.output import add_output_options, human_bytes, print_json, print_table, say


def add_commands(commands: Any) -> None:
    command = commands.add_parser("bench", help="measure on this machine: which kernel pays for a model")
    what = command.add_subparsers(dest="what", metavar="WHAT", required=True)
    kernels = what.add_parser(
        "kernels",
        help="speed, memory and error of a model by each kernel",
        description="Kernels take turns on the same inputs. The fastest within the bounds is what --kernel auto means from then on, on this machine.",
    )
    kernels.add_argument("model", metavar="NAME", help="a decoder or an encoder (zoo list)")
    kernels.add_argument("--kernel", action="append", metavar="NAME", help="only these (every installed one that applies)")
    kernels.add_argument("--batch", type=int, action="append", metavar="N", help="rows at once, may be repeated (1 and 8)")
    kernels.add_argument("--rounds", type=int, default=5, help="of which the median counts (5)")
    kernels.add_argument(
        "--weights", metavar="PATH", default="card", help="a local file for the same architecture, or none"
    )
    kernels.add_argument("--threads", type=int, help="threads for computing")
    add_output_options(kernels)
    kernels.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from zoo.errors import UsageError
    from zoo.models.build import ModelSpec
    from zoo.models.kernel_verdicts import COSINE_BOUND, KL_BOUND
    from zoo.tasks.kernel_table import measure_kernels

    if arguments.threads is not None:
        if not 1 <= arguments.threads <= 1024:
            raise UsageError(f"--threads is from 1 to 1,024, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    table = measure_kernels(
        ModelSpec(arguments.model, weights=None if arguments.weights == "none" else arguments.weights),
        arguments.kernel,
        batches=tuple(arguments.batch or (1, 8)),
        rounds=arguments.rounds,
        report=None if arguments.json else lambda words: say(f"zoo: {words}", file=sys.stderr),
    )
    if arguments.json:
        results = [{**asdict(row), "right": row.right} for row in table.rows]
        print_json(
            {
                "model": table.model,
                "machine": table.machine,
                "threads": table.threads,
                "best": table.best,
                "results": results,
            }
        )
        return 0
    batches = sorted({batch for row in table.rows for batch in row.per_second})
    header = ["KERNEL", *(f"{batch} AT ONCE, /S" for batch in batches), "READS/S", "WEIGHTS", "ERROR", ""]
    rows: list[list[str]] = []
    for row in table.rows:
        if not row.works:
            rows.append([row.kernel, *("-" for _ in batches), "-", "-", "-", row.reason[:60]])
            continue
        speeds = [f"{row.per_second[batch]:.1f} ({row.faster[batch]:.2f}x)" for batch in batches]
        error = f"KL {row.kl_nats:.4f}, same {row.agreement:.0%}" if row.kl_nats is not None else f"cosine {row.cosine:.5f}"
        slower = "slower at " + ", ".join(str(batch) for batch in batches if row.faster[batch] < 0.97)
        words = ("" if row.right else "error above the bound; ") + (slower if slower != "slower at " else "")
        reads = "-" if row.prefill_per_second is None else f"{row.prefill_per_second:.0f}"
        rows.append([row.kernel, *speeds, reads, human_bytes(row.weight_bytes), error, words.rstrip("; ")])
    print_table(header, rows)
    best = ", ".join(f"{kernel} at {batch}" for batch, kernel in table.best.items())
    say(f"{table.machine}, {table.threads} threads. Fastest within KL {KL_BOUND} or cosine {COSINE_BOUND}: {best}")
    return 0
