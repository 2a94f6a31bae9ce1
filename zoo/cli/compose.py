"""`zoo compose`: encoders and bridges around a decoder, as a folder that `zoo generate --model` reads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.cli.options import finite_number, seed_torch
from zoo.cli.output import print_json, say, warn_of_random_weights
from zoo.errors import UsageError

FIELDS = ("fusion", "every", "adjacent", "gate")  # of every sense


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "compose",
        help="join encoders to a decoder by bridges, or describe a composition",
        description="RECIPE: a folder or a recipe.toml to describe. Without one: --decoder, --encoder and --bridge say what to join; "
        "--out writes it as a folder, untrained, for training in Python (docs/fusion.md) and for zoo generate --model FOLDER.",
    )
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help="a composition to describe")
    command.add_argument("--decoder", metavar="NAME", help="the language model (zoo list --kind decoder)")
    command.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="MODALITY=NAME",
        help="what reads a modality, as image=NAME; may be repeated",
    )
    command.add_argument("--bridge", metavar="NAME", help="what joins them (zoo list --kind bridge)")
    command.add_argument(
        "--fusion", choices=("gated", "spliced"), help="cross-attention, or latents among the tokens (gated)"
    )
    command.add_argument("--every", type=int, metavar="N", help="gated layers before each N-th layer of the decoder (4)")
    command.add_argument("--adjacent", choices=("last", "all"), help="what is seen of several items in a row (last)")
    command.add_argument(
        "--gate",
        type=finite_number,
        metavar="G",
        help="what gates begin with: 0 answers as the decoder (0), .5 learns sooner",
    )
    command.add_argument("--weights", choices=("card", "none"), help="of decoder and encoders: none for random ones (card)")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="write the composition there")
    command.add_argument("--seed", type=int, default=0, help="of what is not trained yet (0)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    fields = {name: getattr(arguments, name) for name in FIELDS if getattr(arguments, name) is not None}
    given = [*fields, *(name for name in ("decoder", "encoder", "bridge", "weights", "out") if getattr(arguments, name))]
    if arguments.recipe is not None and given:
        raise UsageError(f"a recipe says all: leave out --{given[0]}, or the recipe")
    encoders = read_encoders(arguments.encoder)
    if (
        arguments.out is not None
        and arguments.out.exists()
        and (not arguments.out.is_dir() or any(arguments.out.iterdir()))
    ):
        raise UsageError(f"{arguments.out} is there already: name a new folder")

    from zoo.models.composition import compose, describe_composition, open_composition, save
    from zoo.models.provenance import provenance_of

    seed_torch(arguments.seed)
    if arguments.recipe is not None:
        composition = open_composition(Path(arguments.recipe))
    else:
        composition = compose(
            decoder=arguments.decoder,
            encoders=encoders,
            bridge=arguments.bridge,
            weights=None if arguments.weights == "none" else "card",
            **fields,
        )
    if arguments.out is not None:
        save(composition, arguments.out)
        say(
            f"zoo: {arguments.out} holds the recipe and what is to be trained; until then its answers mean nothing",
            file=sys.stderr,
        )
    if arguments.json:
        print_json(document(composition))
        return 0
    say(describe_composition(composition))
    if arguments.out is None:
        warn_of_random_weights(provenance_of(composition.built))
    return 0


def read_encoders(given: list[str]) -> dict[str, str]:
    """MODALITY=NAME -> names by modality. Raises UsageError."""
    encoders: dict[str, str] = {}
    for text in given:
        modality, sign, name = text.partition("=")
        if not (modality and sign and name):
            raise UsageError(f"--encoder takes MODALITY=NAME, as image=NAME (zoo list --kind encoder), got {text!r}")
        if modality in encoders:
            raise UsageError(f"--encoder names two for {modality}: {encoders[modality]} and {name}")
        encoders[modality] = name
    return encoders


def document(composition: Any) -> dict[str, Any]:
    """The JSON document of a composition."""
    from dataclasses import asdict

    from zoo.models.provenance import provenance_of

    parameters, made_of = list(composition.module.parameters()), provenance_of(composition.built)
    return {
        "model": composition.built.name,
        **asdict(composition.recipe),
        "parameters": sum(one.numel() for one in parameters),
        "trained_parameters": sum(one.numel() for one in parameters if one.requires_grad),
        "random_weights": made_of.random_weights,
        "random_parts": list(made_of.random_parts),
        "weights": made_of.weights,
    }
