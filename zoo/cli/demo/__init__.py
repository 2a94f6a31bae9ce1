"""`zoo demo`: the guided tour."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.cli.output import print_json, say


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "demo", help="a short tour on bundled photos and a recording: real inputs, real weights, real answers"
    )
    command.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="where the contact sheet goes")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from zoo.cli.demo.tour import tour

    report = tour(arguments.out, say=_keep_quiet if arguments.json else say)
    if arguments.json:
        print_json(report)
    for part, error in report["missing"].items():
        say(f"zoo: {part} is missing: {error}", file=sys.stderr)
    return 1 if report["missing"] else 0


def _keep_quiet(_: str) -> None:
    """The document says it all."""
