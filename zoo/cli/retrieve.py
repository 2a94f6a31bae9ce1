"""`zoo embed`: images and texts as vectors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.cli.classify import add_model_arguments, prepare_torch
from zoo.cli.output import print_json
from zoo.errors import UsageError


def add_commands(commands: Any) -> None:
    embed = commands.add_parser(
        "embed",
        help="write the vectors of images and texts into one file",
        description="ITEM: an image file, a folder, a pattern; anything else is a text. Interrupted work goes on where it was.",
    )
    embed.add_argument("items", nargs="*", metavar="ITEM", help="image files, folders, patterns, or texts")
    embed.add_argument("--out", type=Path, required=True, metavar="FILE", help="ending in .npz, .parquet or .jsonl")
    embed.add_argument("--texts", type=Path, metavar="FILE", help="one text a line")
    embed.add_argument("--list", type=Path, metavar="FILE", help="one image path a line")
    embed.add_argument("--batch-size", type=int, help="images computed together (4 on a CPU)")
    embed.add_argument("--allow-urls", action="store_true", help="also follow http(s) addresses")
    embed.add_argument("--overwrite", action="store_true", help="begin anew, whatever FILE holds")
    add_model_arguments(embed)
    embed.set_defaults(run=run_embed)


def run_embed(arguments: argparse.Namespace) -> int:
    items: list[str | Path] = list(arguments.items)
    items += [Path(line) for line in read_lines("--list", arguments.list)]
    texts = read_lines("--texts", arguments.texts)
    from zoo.tasks.embedding import embed

    outcome = embed(
        items,
        texts=texts,
        out=arguments.out,
        batch_size=arguments.batch_size,
        allow_urls=arguments.allow_urls,
        overwrite=arguments.overwrite,
        progress=True,
        **model_options(arguments),
    )
    failed = [result for result in outcome.results if result.error]
    for result in failed:
        print(f"zoo: {result.error}", file=sys.stderr)
    if arguments.json:
        print_json(
            {
                **about_model(outcome),
                "file": str(outcome.file),
                "shape": list(outcome.shape),
                "normalised": outcome.normalised,
                "computed": outcome.computed,
                "up_to_date": outcome.up_to_date,
                "results": [
                    {"input": result.input, "modality": result.modality}
                    | ({"error": result.error} if result.error else {"sha256": result.sha256})
                    for result in outcome.results
                ],
            }
        )
    elif not outcome.shape[0]:
        print(f"zoo: none of {len(outcome.results)} items can be read: nothing was written", file=sys.stderr)
    else:
        state = "is up to date" if outcome.up_to_date else f"{outcome.computed} computed now"
        vectors = f"{outcome.shape[0]} {'unit ' if outcome.normalised else ''}vectors of width {outcome.shape[1]}"
        print(f"{outcome.file}  {vectors}  {state}")
        print(f"{outcome.model} ({outcome.distribution} {outcome.version})", file=sys.stderr)
    return 1 if failed else 0


def read_lines(option: str, path: Path | None) -> list[str]:
    """The lines of a file that hold something. Raises UsageError."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: cannot be read ({error})") from error
    return [line.strip() for line in lines if line.strip()]


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_model_arguments` added, as every task takes it."""
    import torch

    prepare_torch(arguments)
    return {
        "model": arguments.model,
        "weights": None if arguments.weights == "none" else arguments.weights,
        "device": arguments.device,
        "dtype": None if arguments.dtype == "float32" else getattr(torch, arguments.dtype),
    }


def about_model(outcome: Any) -> dict[str, Any]:
    """The fields by which every document names its model."""
    return {"model": outcome.model, "plugin": {"dist": outcome.distribution, "version": outcome.version}}
