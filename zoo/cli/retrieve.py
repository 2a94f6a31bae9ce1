"""`zoo embed` and `zoo search`: images, sounds and texts as vectors, and the images that are nearest to a text or an image."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from zoo.cli.options import add_column_argument, add_model_arguments, check_column, check_weights, model_for
from zoo.cli.output import about_model, counted, print_json, print_table, say, spell_model, warn_of_random_weights
from zoo.data.lines import TABLES
from zoo.errors import UsageError
from zoo.media.file import expanded
from zoo.registry.modality import AUDIO, IMAGE, TEXT


def add_commands(commands: Any) -> None:
    embed = commands.add_parser(
        "embed",
        help="write the vectors of images, sounds and texts into one file",
        description="ITEM: an image, audio or text file, a folder, a pattern; anything else is a text, and text:... whatever it looks like. "
        "Interrupted work goes on where it was.",
    )
    embed.add_argument("items", nargs="*", metavar="ITEM", help="image or audio files, folders, patterns, or texts")
    embed.add_argument("--out", type=Path, required=True, metavar="FILE", help="ending in .npz, .parquet or .jsonl")
    embed.add_argument("--texts", type=Path, metavar="FILE", help="one text a line, or with --column a table")
    add_column_argument(embed)
    embed.add_argument("--list", type=Path, metavar="FILE", help="one path of an image or a sound a line")
    embed.add_argument("--batch-size", type=int, help="images or sounds computed together (4 on a CPU)")
    embed.add_argument("--allow-urls", action="store_true", help="also follow http(s) addresses")
    embed.add_argument("--overwrite", action="store_true", help="begin anew, whatever FILE holds")
    add_model_arguments(embed)
    embed.set_defaults(run=run_embed)
    search = commands.add_parser(
        "search",
        help="find the images of a folder that fit a text or an image",
        description="The index of DIR is kept in DIR/.zoo-index and brought up to date by each search.",
    )
    search.add_argument("folder", metavar="DIR", help="a folder of images")
    search.add_argument("query", nargs="?", metavar="QUERY", help="a text, or the file of one or of an image")
    search.add_argument("--query-image", metavar="FILE", help="an image file, whatever it is called")
    search.add_argument("--top", type=int, default=10, help="images to show (10)")
    search.add_argument("--batch-size", type=int, help="images computed together (4 on a CPU)")
    add_model_arguments(search)
    search.set_defaults(run=run_search)


def run_embed(arguments: argparse.Namespace) -> int:
    from zoo.data.lines import line_texts

    items: list[str | Path] = list(arguments.items)
    if arguments.list is not None:
        lines = line_texts(expanded(arguments.list), None, f"--list {arguments.list}")
        items += [Path(line.strip()) for line in lines if line.strip()]
    check_column(arguments.column, [*arguments.items, arguments.texts])
    texts: list[str] = []
    if arguments.texts is not None:
        path = expanded(arguments.texts)
        column = arguments.column if path.suffix.lower() in TABLES else None
        texts = line_texts(path, column, f"--texts {arguments.texts}")
    if "" in (line.strip() for line in texts):
        number = [line.strip() for line in texts].index("") + 1
        raise UsageError(
            f"--texts {arguments.texts}: line {number} is empty; each line is a text and a row, so that both stay side by side"
        )
    # Paths first: importing torch takes a second, and a typing error should not.
    from zoo.data.inputs import mixed_sources, require_one
    from zoo.data.tables import check_out

    check_weights(arguments)
    check_out(expanded(arguments.out))
    sources = mixed_sources(items, texts, arguments.column)
    if all(source.modality != TEXT for source in sources):
        require_one([source.item for source in sources])
    # Before the work: a mistyped folder has become a text, and this is where it shows.
    taken = Counter(source.modality for source in sources)
    sounds = f", {counted(taken[AUDIO], 'sound')}" if taken[AUDIO] else ""
    say(f"zoo: {counted(taken[TEXT], 'text')}, {counted(taken[IMAGE], 'image')}{sounds}", file=sys.stderr)
    from zoo.tasks.embedding import embed

    outcome = embed(
        sources,
        out=arguments.out,
        batch_size=arguments.batch_size,
        allow_urls=arguments.allow_urls,
        overwrite=arguments.overwrite,
        progress=True,
        model=model_for(arguments),
    )
    warn_of_random_weights(outcome.provenance)
    failed = [result for result in outcome.results if result.error]
    for result in failed:
        say(f"zoo: {result.error}", file=sys.stderr)
    if arguments.json:
        print_json(embedding_document(outcome))
    elif not outcome.shape[0]:
        say(f"zoo: none of {len(outcome.results)} items can be read: nothing was written", file=sys.stderr)
    else:
        state = "is up to date" if outcome.up_to_date else f"{outcome.computed} computed now"
        vectors = counted(outcome.shape[0], f"{'unit ' if outcome.normalised else ''}vector")
        say(f"{outcome.file}  {vectors} of width {outcome.shape[1]}  {state}")
        say(spell_model(outcome.provenance), file=sys.stderr)
    return 1 if failed else 0


def embedding_document(outcome: Any) -> dict[str, Any]:
    """The JSON document of an embedding."""
    return {
        **about_model(outcome.provenance),
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


def run_search(arguments: argparse.Namespace) -> int:
    from zoo.data.inputs import refuse_empty, require_folder, search_query  # paths first, as above

    check_weights(arguments)
    refuse_empty(arguments.folder, "a folder of images")
    search_query(arguments.query, arguments.query_image)
    require_folder(expanded(arguments.folder))
    from zoo.tasks.search import search

    outcome = search(
        arguments.folder,
        arguments.query,
        query_image=arguments.query_image,
        top=arguments.top,
        batch_size=arguments.batch_size,
        progress=True,
        model=model_for(arguments),
    )
    warn_of_random_weights(outcome.provenance)
    for note in outcome.notes:
        say(f"zoo: {note}", file=sys.stderr)
    for path, error in outcome.unreadable:
        say(f"zoo: {path}: {error}", file=sys.stderr)
    code = 1 if outcome.unreadable else 0  # a part of it failed; the others are answered all the same
    if arguments.json:
        print_json(
            {
                **about_model(outcome.provenance),
                "query": outcome.query,
                "query_modality": outcome.query_modality,
                "index": str(outcome.index),
                "images": outcome.images,
                "computed": outcome.computed,
                "unreadable": [{"path": path, "error": error} for path, error in outcome.unreadable],
                "results": [{"path": hit.path, "score": hit.score} for hit in outcome.results],
            }
        )
        return code
    print_table(["SCORE", "IMAGE"], [[f"{hit.score:.3f}", hit.path] for hit in outcome.results])
    say(
        f"{spell_model(outcome.provenance)}, {outcome.images} images, {outcome.computed} computed now",
        file=sys.stderr,
    )
    return code
