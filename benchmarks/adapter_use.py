"""Whether adapters are of use: mails by SmolLM2, categories of pictures by EfficientNet-Lite0, before and after.

    python benchmarks/adapter_use.py --mails package/spam-assassin/data [--stamps stamps] [--draws 3] [--steps 80]

Mails: benchmarks/spam_data.py says where they come from. Of each draw 100 of each label to train on and 200 others to test on, bodies cut to
300 characters; the answer is the likelier of " ham" and " spam" after `Mail: ...` and the question. Each method trains with its usual rate
for as many steps of 8 mails, a tenth of the mails held out to choose the step. Beside them the model as it is, asked without examples and
with the log-probability of each label after an empty mail taken off ("calibrated"), and tf-idf with logistic regression on the same mails.

Pictures: usr/share/tuxpaint/stamps of the Debian package tuxpaint-stamps-default 2022.06.04-1 (GPL-2, photographs and drawings); the class is
the folder, of those with at least 37 pictures. Of each draw 12 of each class to train on and up to 25 others of each to test on. The rule is
zoo's few-shot probe on the pooled features, before and after LoRA on the 1x1 convolutions, trained by the centroid loss on the same 12.

The interval is 95 %, over the mails or pictures of all draws, of the share that is right and of its gain over the base on the same ones (paired).
Expected before measuring: each method well above chance on mails, LoRA above tf-idf, the fewest parameters the least; on pictures a few points.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine, progress, show
from PIL import Image
from spam_data import draw, spam_mails

import zoo
from zoo.adaptation.adapters import adapters_of
from zoo.decoding.scoring import score_choices
from zoo.tasks.adapter_training import train_adapter
from zoo.tasks.fewshot import fit_probe
from zoo.tuning.fit import fit
from zoo.tuning.losses import centroid_loss

CHARACTERS = 300
QUESTION = "Mail: {}\nIs this mail spam or ham?"
LABELS = ("ham", "spam")
METHODS: dict[str, dict[str, Any]] = {"lora": {"r": 8}, "ia3": {}, "prompt": {"count": 16, "text": "Say whether this mail is spam or ham."}, "prefix": {"count": 8, "hidden": 128}}  # fmt: skip
SHOTS, TEST, LEAST = 12, 25, 37


def interval(values: Sequence[float]) -> str:
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} +- {half:.3f}"


def answers(decoder: Any, mails: Sequence[tuple[str, str]], *, calibrate: bool) -> list[float]:
    """1 for each mail whose label is the likelier one, else 0."""
    encode = decoder.tokenizer.encode
    choices = [encode(f" {label}") for label in LABELS]
    empty = (
        [one.logprob for one in score_choices(decoder, encode(QUESTION.format("N/A")), choices)]
        if calibrate
        else [0.0, 0.0]
    )
    right = []
    for body, label in mails:
        scored = score_choices(decoder, encode(QUESTION.format(body)), choices)
        values = [one.logprob - nothing for one, nothing in zip(scored, empty, strict=True)]
        right.append(float(LABELS[values.index(max(values))] == label))
    return right


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
    for seed in range(options.draws):
        drawn = draw(every, 100, 200, seed)
        built = zoo.open_model("smollm/135m-instruct")
        for name, values in (
            ("the model as it is", answers(built.module, drawn.test, calibrate=False)),
            ("the model, calibrated", answers(built.module, drawn.test, calibrate=True)),
            ("tf-idf", tf_idf(drawn.support, drawn.test)),
        ):
            right.setdefault(name, []).extend(values)
            progress(f"draw {seed + 1}: {name} {statistics.mean(values):.3f}")
        pairs = [(QUESTION.format(body), f" {label}") for body, label in drawn.support]
        for method, own in METHODS.items():
            started = time.perf_counter()
            trained = train_adapter(
                pairs, model=built, method=method, name=method, steps=options.steps, patience=0, seed=seed, **own
            )
            seconds = time.perf_counter() - started
            values = answers(built.module, drawn.test, calibrate=False)
            right.setdefault(method, []).extend(values)
            about[method] = f"{trained.parameters:,} parameters ({trained.share:.3%}), {seconds:.0f} s"
            progress(
                f"draw {seed + 1}: {method} {statistics.mean(values):.3f}, loss {trained.fitted.held_out[0][1]:.3f} -> {trained.fitted.best:.3f}"
            )
            trained.adapters.use()
    show(f"\nmails: {options.draws} draws of 200, {options.steps} steps, chance .500")
    base = right["the model, calibrated"]
    for name, values in right.items():
        gain = interval([own - before for own, before in zip(values, base, strict=True)])
        show(f"  {name:<22} {interval(values)}   gain over calibrated {gain}   {about.get(name, '')}")


def pictures(options: argparse.Namespace) -> None:
    folders: dict[str, list[Path]] = {}
    for path in sorted(options.stamps.rglob("*.png")):
        folders.setdefault(path.parent.relative_to(options.stamps).parts[0], []).append(path)
    classes = {name: paths for name, paths in folders.items() if len(paths) >= LEAST}
    before: list[float] = []
    after: list[float] = []
    seconds = 0.0
    trained = 0
    for seed in range(options.draws):
        built = zoo.open_model("timm/efficientnet_lite0")
        encoder: Any = built.module
        generator = torch.Generator().manual_seed(seed)
        support: list[tuple[Any, int]] = []
        test: list[tuple[Any, int]] = []
        for label, paths in enumerate(classes.values()):
            order = torch.randperm(len(paths), generator=generator).tolist()
            for place, number in enumerate(order[: SHOTS + TEST]):
                picture = Image.open(paths[number]).convert("RGBA")
                white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
                (support if place < SHOTS else test).append((encoder.preprocess([white]), label))
        before += probe(encoder, support, test, len(classes))
        adapters = adapters_of(built)
        torch.manual_seed(seed)
        adapters.add("lora", name="own", r=4, targets=["conv_pw", "conv_pwl", "conv_head"])
        started = time.perf_counter()
        fit(
            adapters.parameters(),
            centroid_loss(encoder, classes=len(classes)),
            support,
            steps=options.image_steps,
            batch_size=min(len(support), 4 * len(classes)),
            learning_rate=adapters["own"].learning_rate,
            seed=seed,
        )
        seconds = time.perf_counter() - started
        trained = sum(adapters.trainable().values())
        after += probe(encoder, support, test, len(classes))
        progress(f"draw {seed + 1}: {statistics.mean(before):.3f} -> {statistics.mean(after):.3f} in {seconds:.0f} s")
    show(
        f"\npictures: {len(classes)} classes ({', '.join(classes)}), {options.draws} draws, {options.image_steps} steps, chance {1 / len(classes):.3f}"
    )
    show(f"  the probe on the model as it is  {interval(before)}")
    gain = interval([own - other for own, other in zip(after, before, strict=True)])
    show(f"  the probe under LoRA of rank 4   {interval(after)}   gain {gain}   {trained:,} parameters, {seconds:.0f} s")


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
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--image-steps", type=int, default=40)
    options = parser.parse_args()
    show(machine())
    if options.mails:
        mails(options)
    if options.stamps:
        pictures(options)


if __name__ == "__main__":
    main()
