"""LoRA over weights of few bits beside LoRA over float32: held-out loss, memory of the weights, and how long a step takes.

    python benchmarks/qlora.py --mails package/spam-assassin/data [--draws 1] [--steps 40]

The task, the mails (benchmarks/spam_data.py), the prompts and the settings of training are those of benchmarks/adapter_use.py: 100 of each label to train
on, a tenth of them held out, whose loss is measured along the way; the least of it counts. The adapter is LoRA of rank 8 on every default target.
The bases are the same file: its numbers in float32; nf4 of those (kernel nf4: layers rounded a second time); and the file's own blocks (kernel published:
Q4_1, nothing rounded again). Memory is that of all tensors of the base.

Expected before measuring: published equals float32 to 1 %, since its weights are the same numbers; nf4 within 2 %, though the grid of Q4_1 is rounded
once more; each well under half the memory; steps 1.2 times as long, for the weights are made anew in every product.
"""

import argparse
import statistics
from pathlib import Path

from adapter_use import CHARACTERS, QUESTION
from machine import machine, progress, show
from spam_data import draw, spam_mails

import zoo
from zoo.nn.kernels.seam import is_kernel_embedding, is_kernel_linear
from zoo.tasks.adapter_training import TrainingOptions, train_adapter

BASES = (None, "nf4", "published")


def weight_bytes(built: object) -> int:
    """Of all tensors of a base."""
    module = built.module  # type: ignore[attr-defined]
    layers = [part for part in module.modules() if is_kernel_linear(part) or is_kernel_embedding(part)]
    tensors = [*module.state_dict().values(), *(one for layer in layers for one in layer.tensors().values())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mails", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    show(f"{machine()}\n")
    every = [(" ".join(body.split())[:CHARACTERS], label) for body, label in spam_mails(options.mails)]
    losses: dict[str, list[float]] = {}
    rows: dict[str, str] = {}
    for seed in range(options.draws):
        pairs = [(QUESTION.format(body), f" {label}") for body, label in draw(every, 100, 200, seed).support]
        for kernel in BASES:
            built = zoo.open_model(zoo.ModelSpec("smollm/135m-instruct", kernel=kernel))
            size = weight_bytes(built)
            training = TrainingOptions(steps=options.steps, patience=0, seed=seed)
            trained = train_adapter(pairs, model=built, method="lora", name="own", training=training, r=8)
            name = kernel or "float32"
            losses.setdefault(name, []).append(trained.fitted.best)
            rows[name] = f"{size / 1e6:7.1f} MB   {trained.fitted.seconds / trained.fitted.steps:5.1f} s a step"
            progress(f"draw {seed + 1}: {name} {trained.fitted.held_out[0][1]:.4f} -> {trained.fitted.best:.4f}")
    base = statistics.mean(losses["float32"])
    show(f"{options.draws} draws, {options.steps} steps: least held-out loss, nats a token")
    for name, values in losses.items():
        mean = statistics.mean(values)
        show(f"  {name:<10} {mean:.4f} ({mean / base - 1:+.1%})   {rows[name]}")


if __name__ == "__main__":
    main()
