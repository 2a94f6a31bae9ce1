"""ImageNet classification of 256 JPEG files: `zoo.classify` beside a plain timm loop, on the same weights.

All read, decode, resize, normalise and classify the same files with the same threads, in one process, in alternating runs; all
include building the model and loading its weights. Ratios are medians over the runs. "As it is": without a batch size, which
on a CPU means four images a thread.

Run: make bench, or .venv/bin/python benchmarks/throughput.py [--runs 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from machine import machine, progress, show
from PIL import Image
from timm.data import create_transform, resolve_data_config
from zero_shot import unpack_photos

import zoo
from zoo.registry.lookup import default_registry
from zoo.weights.delivery import locate_files
from zoo.weights.formats.read import read_state_dict

MODEL = "timm/efficientnet_lite0.in1k"
IMAGES, BATCH = 256, 32
WIDTH, HEIGHT = 500, 400


def make_images(folder: Path) -> list[str]:
    """256 different JPEG files of 500 x 400 pixels (about the mean of ImageNet): crops and mirrors of the labelled photos."""
    generator = torch.Generator().manual_seed(0)
    photos = [Image.open(path).convert("RGB") for path, _ in unpack_photos(folder)]
    files = []
    for number in range(IMAGES):
        photo = photos[number % len(photos)]
        share = 0.7 + 0.3 * torch.rand(1, generator=generator).item()
        width, height = int(photo.width * share), int(photo.height * share)
        left = int(torch.randint(photo.width - width + 1, (1,), generator=generator))
        top = int(torch.randint(photo.height - height + 1, (1,), generator=generator))
        crop = photo.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        if number % 2:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        files.append(str(folder / f"{number:03}.jpg"))
        crop.save(files[-1], quality=90)
    return files


def timm_loop(files: list[str]) -> list[int]:
    """The loop a timm user writes: the model's own transform, batches of 32, fp32."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    state = read_state_dict(locate_files(default_registry().find(MODEL))["model"].path)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    card = default_registry().find(MODEL).card
    config = {**resolve_data_config(model=model), "mean": card.preprocess["mean"], "std": card.preprocess["std"]}
    transform = create_transform(**config)
    answers: list[int] = []
    MARGINS.clear()
    with torch.inference_mode():
        for start in range(0, len(files), BATCH):
            batch = torch.stack([transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]])
            best = model(batch).softmax(-1).topk(5)
            answers += best.indices[:, 0].tolist()
            MARGINS.extend((best.values[:, 0] - best.values[:, 1]).tolist())
    return answers


def zoo_classify(dtype: torch.dtype | None, batch_size: int | None) -> Callable[[list[str]], list[int]]:
    """`zoo.classify` with a model's own classes."""

    def run(files: list[str]) -> list[int]:
        results = zoo.classify(files, model=zoo.ModelSpec(name=MODEL, dtype=dtype), batch_size=batch_size, top=5).results
        return [LABELS.index(answer.label) for answer in results]

    return run


LABELS: list[str] = []
MARGINS: list[float] = []  # how far ahead the peer's first answer is of its second
CLEAR = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    LABELS.extend(zoo.build(MODEL).labels)
    contestants = {
        "timm loop, fp32": timm_loop,
        "zoo.classify, fp32, batch 32": zoo_classify(None, BATCH),
        "zoo.classify, bf16, batch 32": zoo_classify(torch.bfloat16, BATCH),
        "zoo.classify, fp32, as it is": zoo_classify(None, None),
        "zoo.classify, bf16, as it is": zoo_classify(torch.bfloat16, None),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder))
        answers = {name: contestant(files) for name, contestant in contestants.items()}  # also warms up
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for run in range(arguments.runs):
            for name, contestant in contestants.items():
                start = time.perf_counter()
                contestant(files)
                seconds[name].append(time.perf_counter() - start)
                progress(f"run {run + 1} of {arguments.runs}: {name}, {seconds[name][-1]:.1f} s")
    peer = "timm loop, fp32"
    show(f"{IMAGES} images, {arguments.threads} threads, median of {arguments.runs} alternating runs")
    show(machine())
    for name in contestants:
        median = statistics.median(seconds[name])
        ratio = statistics.median(a / b for a, b in zip(seconds[peer], seconds[name], strict=True))
        agree = sum(a == b for a, b in zip(answers[peer], answers[name], strict=True)) / IMAGES
        clear = [a == b for a, b, margin in zip(answers[peer], answers[name], MARGINS, strict=True) if margin >= CLEAR]
        show(
            f"{name:<29} {IMAGES / median:6.1f} images/s   {ratio:4.2f}x   top-1 as {peer}: {agree:.1%} "
            f"({sum(clear)} of the {len(clear)} where its lead is at least {CLEAR:.0%})"
        )


if __name__ == "__main__":
    main()
