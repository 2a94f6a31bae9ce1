"""`zoo brightest FILE...`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from zoo.api import UsageError, open_image


def brightest(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("files", nargs="+", type=Path)
    return run


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.files) < 2:
        raise UsageError("name at least two images")
    found = max(arguments.files, key=lambda path: sum(open_image(path).convert("L").tobytes()))
    print(json.dumps({"results": [{"input": str(found)}]}) if arguments.json else found)
    return 0
