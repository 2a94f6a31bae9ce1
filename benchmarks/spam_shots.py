"""Few-shot text classification by SmolLM2 on Spam Assassin bodies, beside tf-idf with logistic regression on the same examples.

    python benchmarks/spam_shots.py package/spam-assassin/data   # benchmarks/spam_data.py says where the data come from

For each of `--draws` draws: K examples of each label in the prompt (none, 2 and 8: K = 0, 4 and 16 in all), 100 mails to test on, half
of them spam. Bodies are cut to 300 characters, since 16 whole mails are more than the model's context; the baseline reads the same
cut bodies. The interval is 95 %, of the mean over draws. Expected before measuring: near chance without examples, below the baseline
with them.
"""

import argparse
import statistics
from pathlib import Path

from machine import machine, progress, show
from spam_data import Draw, baseline, draw, spam_mails

import zoo

CHARACTERS = 300
TEMPLATE = "Mail: {text}\nIs this mail spam or ham?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--kernel", default="int4")
    options = parser.parse_args()
    show(machine())
    mails = [(" ".join(body.split())[:CHARACTERS], label) for body, label in spam_mails(options.folder)]
    language = zoo.open_language_model(zoo.ModelSpec(name="smollm/135m-instruct", kernel=options.kernel))
    show(f"{options.draws} draws of {options.test} mails, accuracy (chance .500), kernel {options.kernel}")
    for shots in (0, 2, 8):
        rows: dict[str, list[float]] = {"SmolLM2, sum": [], "SmolLM2, calibrated": [], "tf-idf": []}
        for seed in range(options.draws):
            drawn = draw(mails, max(shots, 1), options.test, seed)
            support = [mail for pair in zip(*_by_label(drawn), strict=True) for mail in pair][: 2 * shots]
            for normalise in ("sum", "calibrated"):
                found = zoo.classify_texts(
                    [body for body, _ in drawn.test],
                    ["ham", "spam"],
                    shots=support,
                    template=TEMPLATE,
                    normalise=normalise,
                    model=language,
                )
                right = sum(answer.label == label for answer, (_, label) in zip(found.results, drawn.test, strict=True))
                rows[f"SmolLM2, {normalise}"].append(right / len(drawn.test))
            if shots:
                rows["tf-idf"].append(baseline(drawn))
            progress(f"K = {2 * shots}: draw {seed + 1} of {options.draws}")
        for name, values in rows.items():
            if values:
                half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
                show(f"K = {2 * shots:<3} {name:<20} {statistics.mean(values):.3f} +- {half:.3f}")


def _by_label(drawn: Draw) -> list[list[tuple[str, str]]]:
    """Examples of each label apart, so that the prompt may alternate them."""
    labels = sorted({label for _, label in drawn.support})
    return [[mail for mail in drawn.support if mail[1] == label] for label in labels]


if __name__ == "__main__":
    main()
