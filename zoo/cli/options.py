"""The options of every task: which model, how it is opened, and the adapter that it runs under."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.output import say
from zoo.errors import UsageError

if TYPE_CHECKING:
    from zoo.models.build import Built, ModelSpec

DTYPES = ("float32", "bfloat16", "float16")
MOST_THREADS = 1_024


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments that every task takes."""
    command.add_argument("--model", metavar="NAME", help="model name (zoo list); the installed default if left out")
    command.add_argument(
        "--weights",
        metavar="PATH",
        default="card",
        help="a local file for the same architecture, or the folder of one, or none",
    )
    command.add_argument(
        "--adapter",
        type=Path,
        action="append",
        metavar="FILE",
        help="run under an adapter (zoo adapt train), or a folder of HF PEFT's; with --model",
    )
    command.add_argument("--other-base", action="store_true", help="take an adapter that was made for other weights")
    command.add_argument("--device", default="cpu")
    command.add_argument("--dtype", choices=DTYPES, default="float32")
    command.add_argument("--kernel", metavar="NAME", help="what the model computes by (zoo list --kind kernel)")
    add_layer_arguments(command)
    command.add_argument("--threads", type=int, help="threads for computing")
    command.add_argument(
        "--seed", type=int, default=0, help="seed of what is drawn: answers with --temperature, weights none (0)"
    )


def add_layer_arguments(command: argparse.ArgumentParser) -> None:
    """--skip and --per-layer, beside a --kernel."""
    command.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="layers that keep float32")
    command.add_argument(
        "--per-layer", action="append", default=[], metavar="PATTERN=KERNEL", help="layers that take another kernel"
    )


def kernels_per_layer(arguments: argparse.Namespace) -> dict[str, str]:
    """Pattern -> kernel, as --per-layer has them. Raises UsageError for anything else, and where there is no --kernel."""
    found = {}
    for given in arguments.per_layer:
        pattern, equals, kernel = given.partition("=")
        if not (pattern and equals and kernel):
            raise UsageError(f"--per-layer is PATTERN=KERNEL, as decoder.head=int8, got {given!r}")
        found[pattern] = kernel
    if arguments.kernel is None and (found or arguments.skip):
        raise UsageError("--skip and --per-layer are about a kernel: add --kernel NAME")
    return found


def finite_number(text: str) -> float:
    """A finite number, as the type of an option: with NaN no comparison holds, and a limit would be none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text[:40]!r}")
    return value


def add_column_argument(command: argparse.ArgumentParser) -> None:
    """--column, for commands that read texts from files."""
    command.add_argument("--column", metavar="NAME", help="which column of a .csv, .tsv or .jsonl holds the texts")


def check_column(column: str | None, names: Sequence[object]) -> None:
    """Raise UsageError for a column where none of the names is that of a table."""
    from zoo.data.lines import TABLES

    if column is not None and not any(str(name).lower().endswith(TABLES) for name in names):
        raise UsageError(f"--column is about tables ({', '.join(TABLES)}), and none is given")


def text_option(given: str | None, option: str) -> str | None:
    """The text of an option, by the rule of arguments: as given, or what the text file of that name holds. Raises UsageError."""
    if given is None:
        return None
    from zoo.data.arguments import argument_texts

    texts = argument_texts(given)
    if len(texts) != 1:
        raise UsageError(f"{option} {given}: a table, where one text is expected")
    return texts[0]


def prepare_torch(arguments: argparse.Namespace) -> None:
    """Apply --threads and --seed to this process."""
    import torch

    if arguments.threads is not None:
        if not 1 <= arguments.threads <= MOST_THREADS:
            raise UsageError(f"--threads is from 1 to {MOST_THREADS:,}, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    seed_torch(arguments.seed)
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {arguments.device}: {str(error).splitlines()[0]}") from error


def seed_torch(seed: int) -> None:
    """Apply --seed to this process. Raises UsageError for one that is no number of torch's."""
    import torch

    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"--seed must fit 64 bits, got {seed}")
    torch.manual_seed(seed)


def model_spec(arguments: argparse.Namespace) -> ModelSpec:
    """What `add_model_arguments` added, as every task takes it; torch is prepared."""
    import torch

    from zoo.models.build import ModelSpec

    prepare_torch(arguments)
    if arguments.adapter is not None and len(arguments.adapter) > 1:
        raise UsageError(
            f"--adapter names one adapter, got {len(arguments.adapter)}: in Python several can be used together"
        )
    if arguments.adapter is not None and arguments.model is None:
        raise UsageError("an adapter is for one model: name it, --model NAME (zoo adapt list FILE may say which)")
    if arguments.other_base and arguments.adapter is None:
        raise UsageError("--other-base is about an adapter: add --adapter FILE")
    return ModelSpec(
        name=arguments.model,
        weights=None if arguments.weights == "none" else arguments.weights,
        device=arguments.device,
        dtype=None if arguments.dtype == "float32" else getattr(torch, arguments.dtype),
        kernel=arguments.kernel,
        skip=tuple(arguments.skip),
        per_layer=kernels_per_layer(arguments),
    )


def model_for(arguments: argparse.Namespace) -> ModelSpec | Built:
    """As `model_spec`, opened here where an adapter belongs on it, for a command that does not open its model by itself."""
    spec = model_spec(arguments)
    if arguments.adapter is None:
        return spec
    from zoo.models.build import open_model

    built = open_model(spec)
    load_adapter(built, arguments)
    return built


def load_adapter(model: Any, arguments: argparse.Namespace) -> None:
    """Put --adapter on an opened model."""
    if arguments.adapter is not None:
        from zoo.adapters.adapt import adapters_of

        (path,) = arguments.adapter
        adapters = adapters_of(model)
        adapter = adapters.load(path, name=path.stem, other_base=arguments.other_base)
        provider = adapters.registry.find(adapter.method).card.provider
        say(
            f"zoo: under {path} ({adapter.method}, {provider.distribution} {provider.version}, {adapter.key[:12]})",
            file=sys.stderr,
        )


def check_weights(arguments: argparse.Namespace) -> None:
    """Raise UsageError for --weights with a file that is not there."""
    if arguments.weights not in ("card", "none"):
        from zoo.weights.local_file import local_file

        local_file(Path(arguments.weights))
