"""`zoo speech`: where somebody speaks in audio files, by the installed detector of voices."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def speech(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the arguments of `zoo speech`; returns what runs it."""
    parser.add_argument("files", nargs="+", type=Path, metavar="AUDIO", help="audio files")
    parser.add_argument("--model", metavar="NAME", help="a detector of voices; the installed default if left out")
    parser.add_argument("--max-duration", type=float, default=4 * 3600.0, metavar="S", help="refuse longer sounds (14400)")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability at which speech begins (.5)")
    return run


def run(arguments: argparse.Namespace) -> int:
    """Print the spans of each file; 1 where one cannot be read."""
    from zoo import open_detector, speech_spans  # they import torch, which the help of a command should not
    from zoo.api import MediaError, UsageError, open_reader

    wrong = next((path for path in arguments.files if not path.is_file()), None)
    if wrong is not None:
        what = "is a folder, name the files in it" if wrong.is_dir() else "there is no such file"
        raise UsageError(f"{wrong}: {what}")
    detector = open_detector(arguments.model)
    module: Any = detector.module
    results: list[dict[str, Any]] = []
    for path in arguments.files:
        try:
            with open_reader(path, sample_rate_hz=module.sample_rate_hz, max_duration_s=arguments.max_duration) as reader:
                spans = speech_spans(reader, detector, threshold=arguments.threshold)
        except MediaError as error:
            results.append({"input": str(path), "error": str(error)})
            continue
        rounded = [{"start_s": round(start, 3), "end_s": round(end, 3)} for start, end in spans]
        results.append({"input": str(path), "spans": rounded})
    if detector.random:
        print(f"zoo: {detector.name} has random weights: what it answers means nothing", file=sys.stderr)
    provider = detector.found.card.provider
    plugin = {"dist": provider.distribution, "version": provider.version}
    if arguments.json:
        about = {"model": detector.name, "plugin": plugin, "random_weights": detector.random}
        print(json.dumps({**about, "results": results}, ensure_ascii=False, indent=2))
        return int(any("error" in result for result in results))
    for result in results:
        if "error" in result:
            print(f"zoo: {result['error']}", file=sys.stderr)
        for span in result.get("spans", ()):
            print(f"{result['input']}  {span['start_s']:.2f} - {span['end_s']:.2f} s")
    print(f"{detector.name} ({provider.distribution} {provider.version})", file=sys.stderr)
    return int(any("error" in result for result in results))
