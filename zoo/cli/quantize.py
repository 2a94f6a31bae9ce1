"""`zoo quantize`: a model by a kernel, as a folder that every command opens."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from zoo.cli.options import add_layer_arguments, kernels_per_layer, seed_torch
from zoo.cli.output import human_bytes, print_json, say


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "quantize",
        help="round a model's weights by a kernel, and keep it as a folder",
        description="What is written is opened like any model: zoo generate --model FOLDER. Patterns are of layers' names, as stack.blocks.0.*",
    )
    command.add_argument("model", metavar="NAME", help="a model (zoo list)")
    command.add_argument("--kernel", metavar="NAME", required=True, help="number format (zoo list --kind kernel)")
    command.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="where it is written")
    command.add_argument(
        "--weights", metavar="PATH", default="card", help="a local file for the same architecture, or none"
    )
    add_layer_arguments(command)
    command.add_argument("--overwrite", action="store_true", help="replace the model that the folder holds")
    command.add_argument("--seed", type=int, default=0, help="of what is drawn: weights none (0)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    per_layer = kernels_per_layer(arguments)
    from zoo.models.build import ModelSpec
    from zoo.models.provenance import provenance_of
    from zoo.tasks.quantization import quantize

    seed_torch(arguments.seed)
    weights = None if arguments.weights == "none" else arguments.weights
    made = quantize(
        ModelSpec(arguments.model, weights=weights),
        arguments.kernel,
        skip=arguments.skip,
        per_layer=per_layer,
        out=arguments.out,
        overwrite=arguments.overwrite,
    )
    formats = Counter(made.layers.values())
    provenance = provenance_of(made.built)
    if arguments.json:
        print_json(
            {
                "model": provenance.model,
                "plugin": {"dist": provenance.distribution, "version": provenance.version},
                "random_weights": provenance.random_weights,
                "weights": provenance.weights,
                "kernel": provenance.kernel,
                "file": str(made.file),
                "weight_bytes": made.weight_bytes,
                "layers": dict(made.layers),
            }
        )
        return 0
    words = ", ".join(f"{count} in {name}" for name, count in formats.most_common())
    say(f"{made.file}: {human_bytes(made.weight_bytes)}; {len(made.layers)} layers run by {arguments.kernel}: {words}")
    say(f"open it with --model {arguments.out}")
    return 0
