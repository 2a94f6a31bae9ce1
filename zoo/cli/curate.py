"""`zoo filter`: image-text pairs in, the pairs that fit out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.cli.options import add_model_arguments, check_weights, finite_number, model_for
from zoo.cli.output import about_model, print_json, print_table, say, spell_model, warn_of_random_weights
from zoo.media.file import expanded


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "filter",
        help="keep the image-text pairs whose text fits the image",
        description="SOURCE: a folder (a.jpg with a.txt), a .jsonl (image, text), or .tar shards, one or a pattern. "
        "OUT has the same form. A rerun leaves finished shards alone.",
    )
    command.add_argument("source", metavar="SOURCE", help="folder, .jsonl, .tar, or a pattern such as 'x-{000..099}.tar'")
    command.add_argument("--out", type=Path, metavar="OUT", help="where the pairs that stay go")
    command.add_argument("--threshold", type=finite_number, metavar="X", help="the least cosine that stays, in [-1, 1]")
    command.add_argument(
        "--preset", metavar="NAME", help="laion5b-english (0.28), laion5b-multilingual (0.26) or laion400m (0.3)"
    )
    command.add_argument("--dry-run", action="store_true", help="write nothing; show how the scores are spread")
    command.add_argument("--report", type=Path, metavar="FILE", help="the JSON that names every dropped pair and why")
    command.add_argument("--overwrite", action="store_true", help="replace the result of another threshold or model")
    command.add_argument("--batch-size", type=int, help="pairs computed together (4 on a CPU)")
    add_model_arguments(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    # Paths first: importing torch takes a second, and a typing error should not.
    from zoo.data.pairs import UNREADABLE_FOLDER
    from zoo.data.shards import find_shards

    check_weights(arguments)
    find_shards(arguments.source, None if arguments.out is None or arguments.dry_run else expanded(arguments.out))
    from zoo.tasks.filtering import filter_pairs

    outcome = filter_pairs(
        arguments.source,
        arguments.out,
        threshold=arguments.threshold,
        preset=arguments.preset,
        dry_run=arguments.dry_run,
        report=arguments.report,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
        progress=True,
        model=model_for(arguments),
    )
    warn_of_random_weights(outcome.provenance)
    for note in outcome.notes:
        say(f"zoo: {note}", file=sys.stderr)
    failed = [shard for shard in outcome.shards if shard.error]
    for shard in failed:
        say(f"zoo: {shard.error}", file=sys.stderr)
    if arguments.json:
        print_json(document(outcome))
    elif outcome.quantiles is not None:
        print_quantiles(outcome)
    else:
        print_shards(outcome)
    return 1 if failed or UNREADABLE_FOLDER in outcome.counts["dropped"] else 0


def document(outcome: Any) -> dict[str, Any]:
    """The JSON document of a filtering; the dropped pairs are in the report."""
    return {
        **about_model(outcome.provenance),
        "identity": outcome.identity,
        "threshold": outcome.threshold,
        "preset": outcome.preset,
        "threshold_from": outcome.origin,
        "counts": outcome.counts,
        "quantiles": None
        if outcome.quantiles is None
        else [{"share_below": share, "score": score} for share, score in outcome.quantiles.items()],
        "report": None if outcome.report is None else str(outcome.report),
        "shards": [
            {
                "source": shard.source,
                "out": shard.out,
                "state": shard.state,
                "samples": shard.samples,
                "kept": shard.kept,
                "dropped": shard.dropped,
                "error": shard.error,
            }
            for shard in outcome.shards
        ],
    }


def print_quantiles(outcome: Any) -> None:
    """How the scores are spread, so that a threshold can be chosen."""
    print_table(["BELOW IT", "SCORE"], [[f"{share:.0%}", f"{score:.4f}"] for share, score in outcome.quantiles.items()])
    _print_counts(outcome)


def print_shards(outcome: Any) -> None:
    """One line a shard, and where the report is."""
    rows = [[shard.out or shard.source, shard.state, shard.kept, shard.samples] for shard in outcome.shards]
    print_table(["OUT", "STATE", "KEPT", "OF"], rows)
    _print_counts(outcome)
    say(f"zoo: every dropped pair: {outcome.report}", file=sys.stderr)


def _print_counts(outcome: Any) -> None:
    counts = outcome.counts
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
    rule = "" if outcome.threshold is None else f", threshold {outcome.threshold:g}"
    words = [f"{counts['samples']} pairs"]
    if outcome.quantiles is None:
        words += [f"dropped {reasons}"] if reasons else []
    elif outcome.threshold is None:
        words += [f"without a score {reasons}"] if reasons else []
        words += ["--threshold X says how many would stay"]
    else:
        words += [f"{counts['kept']} would stay"] + ([f"would be dropped {reasons}"] if reasons else [])
    say(f"{spell_model(outcome.provenance)}{rule}: {', '.join(words)}", file=sys.stderr)
