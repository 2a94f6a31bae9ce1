"""Text-to-image recall of `zoo search` on labelled photos, beside chance.

Each label is a query as it stands: the 228 of `stamps.json` with --stamps, else the 22 of `photos.json`. R@k is the share of queries
with a photo of that label among the first k. Chance is what a random order gives for the same labels. How to get the stamps: see
`zero_shot.py`.

Run: make bench, or .venv/bin/python benchmarks/search_recall.py [--stamps stamps/usr/share/tuxpaint/stamps] [--model NAME]
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

from machine import machine, progress, show
from zero_shot import STAMPS_LEFT_OUT, interval, lay_out_stamps, unpack_photos

import zoo
from zoo.registry.lookup import default_registry

DEPTHS = (1, 5, 10)


def chance(relevant: int, count: int, depth: int) -> float:
    """Probability that a random order of `count` photos has one of the `relevant` among its first `depth`."""
    return 1 - math.comb(count - relevant, depth) / math.comb(count, depth)


def report(title: str, places: dict[str, int], relevant: dict[str, int], count: int) -> None:
    """One line for each depth. places: query -> where the first right photo stands, from 0; a large number if nowhere."""
    show(f"{title}: {len(places)} queries, {count} photos")
    for depth in DEPTHS:
        right = sum(place < depth for place in places.values())
        luck = statistics.mean(chance(relevant[label], count, depth) for label in places)
        show(
            f"  R@{depth:<2}  {interval(right, len(places))}   chance {luck:.3f}   {right / len(places) / luck:.0f} times chance"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, help="the unpacked stamps folder")
    parser.add_argument("--model", help="another dual encoder than the default")
    arguments = parser.parse_args()
    if not arguments.stamps:
        show(STAMPS_LEFT_OUT)
    name = arguments.model or default_registry().default("search")
    built = zoo.open_model(name)
    with tempfile.TemporaryDirectory() as folder:
        stamps = (
            lay_out_stamps(arguments.stamps, Path(folder))
            if arguments.stamps
            else [(file, label, True) for file, label in unpack_photos(Path(folder))]
        )
        labels = {str(file): label for file, label, _ in stamps}
        known = {label for _, label, is_known in stamps if is_known}
        relevant = {label: list(labels.values()).count(label) for label in labels.values()}
        start = time.perf_counter()
        zoo.search(folder, "warm up", model=built)
        first_s = time.perf_counter() - start
        places = {}
        seconds = []
        for label in relevant:
            start = time.perf_counter()
            outcome = zoo.search(folder, label, model=built, top=max(DEPTHS))
            seconds.append(time.perf_counter() - start)
            found = [place for place, hit in enumerate(outcome.results) if labels[hit.path] == label]
            places[label] = found[0] if found else len(stamps)
            progress(f"{len(places)} of {len(relevant)}: {label!r} at place {places[label] + 1}")
    report("all labels", places, relevant, len(stamps))
    near = {label: place for label, place in places.items() if label in known}
    report("labels that are ImageNet classes or hold one", near, relevant, len(stamps))
    far = {label: place for label, place in places.items() if label not in known}
    if far:
        report("the other labels", far, relevant, len(stamps))
    show(f"first search {first_s:.1f} s, then {1000 * statistics.median(seconds):.0f} ms a search (median)")
    made_by = outcome.provenance
    show(f"{made_by.model} ({made_by.distribution} {made_by.version})")
    show(machine())


if __name__ == "__main__":
    main()
