"""The training loop: AdamW, warm-up, clipping, early stop. It knows neither models nor data: a loss is a function of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.training.held_out import HeldOut, Loss, copies, put_back
from zoo.training.schedule import warmup_cosine

MOST_STEPS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How to train.

    warmup: share of the steps over which the learning rate rises; then it falls to 0 as a cosine does. clip: greatest norm of all
        gradients together. seed: of the order of the examples and of dropout.
    evaluate_every: steps between measurements of the held-out loss; 0: ten measurements. patience: measurements without a lower one
        after which training ends; 0: never.
    Raises UsageError for numbers out of range.
    """

    steps: int
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        counted = 1 <= self.steps <= MOST_STEPS and self.batch_size >= 1
        if not (counted and 0 < self.learning_rate < math.inf and 0 <= self.warmup <= 1 and self.clip > 0):
            raise UsageError(
                f"steps are from 1 to {MOST_STEPS:,}, batch_size is at least 1, learning_rate and clip are above 0 and warmup from 0 to 1; "
                f"got steps={self.steps}, batch_size={self.batch_size}, learning_rate={self.learning_rate}, clip={self.clip} "
                f"and warmup={self.warmup}"
            )


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training did. losses: of each step. held_out: (steps taken, loss of the held-out examples), before the first step too.

    best: the loss whose parameters were kept, that of the last step where nothing was held out. stopped: "steps" (all were taken),
    "patience" (the held-out loss had stopped falling) or "interrupted" (Ctrl-C; the best parameters so far are kept).
    """

    steps: int
    losses: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]
    best: float
    stopped: str
    seconds: float
    parameters: int = 0


def fit(
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    examples: Sequence[Any],
    options: FitOptions,
    *,
    held_out: Sequence[Any] = (),
    report: Callable[[int, float], None] | None = None,
    train: Callable[[bool], None] | None = None,
) -> Fitted:
    """Train parameters in place on batches drawn without replacement; the same seed gives the same numbers.

    held_out: examples whose loss is taken before the first step, as often as the options say and at the end; the lowest's parameters are kept.
    report: is told each step and its loss. train: puts the model into training (True) and evaluation (False).
    Raises UsageError for no examples or parameters, and where a loss or a gradient is NaN or infinite, and KeyboardInterrupt before the
    first step; the parameters are then as they were before, as after whatever else is raised.
    """
    _require(parameters, examples)
    started = time.perf_counter()
    steps, into = options.steps, train or _as_it_is
    optimiser, schedule = _optimiser(parameters, options)
    every = options.evaluate_every or max(1, steps // 10)
    held = HeldOut(held_out, loss, parameters, batch_size=options.batch_size, patience=options.patience)
    before, losses, stopped = copies(parameters), list[float](), "steps"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)  # dropout
        try:
            into(False)
            held.measure(0)
            for step, batch in enumerate(islice(_batches(examples, options), steps), start=1):
                into(True)
                losses.append(_step(optimiser, loss, batch, parameters, options.clip))
                schedule.step()
                if report is not None:
                    report(step, losses[-1])
                if step % every == 0 or step == steps:
                    into(False)
                    if held.measure(step) and step < steps:
                        stopped = "patience"
                        break
        except KeyboardInterrupt as stop:
            if not losses:
                put_back(parameters, before)
                raise KeyboardInterrupt("nothing is written: no step had been taken") from stop
            stopped = "interrupted"
        except BaseException:
            put_back(parameters, before)
            raise
        finally:
            into(False)
    held.put_best_back()
    return Fitted(
        steps=len(losses),
        losses=tuple(losses),
        held_out=tuple(held.measured),
        best=held.best if held_out else (losses[-1] if losses else math.inf),
        stopped=stopped,
        seconds=time.perf_counter() - started,
        parameters=sum(one.numel() for one in parameters),
    )


def _optimiser(
    parameters: Sequence[nn.Parameter], options: FitOptions
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW and its learning rate from step to step."""
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    warmup = max(1, round(options.warmup * options.steps))
    rate = partial(warmup_cosine, steps=options.steps, warmup=warmup)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _batches(examples: Sequence[Any], options: FitOptions) -> Iterator[list[Any]]:
    """Batches without end, pass after pass. What fills no batch is left to the next pass, which is drawn anew: fewer examples would be
    another loss where they are compared with each other.
    """
    order, queue = torch.Generator().manual_seed(options.seed), list[int]()
    while True:
        if len(queue) < min(options.batch_size, len(examples)):
            queue = torch.randperm(len(examples), generator=order).tolist()
        batch, queue = queue[: options.batch_size], queue[options.batch_size :]
        yield [examples[number] for number in batch]


def _step(
    optimiser: torch.optim.Optimizer, loss: Loss, batch: Sequence[Any], parameters: Sequence[nn.Parameter], clip: float
) -> float:
    """One step on a batch, and its loss before it."""
    optimiser.zero_grad(set_to_none=True)
    value = loss(batch)
    if not value.requires_grad:
        raise UsageError(
            "the loss depends on nothing that is trained: the layers that are adapted have no part in it, choose others"
        )
    number = float(value.detach())
    if not math.isfinite(number):
        raise UsageError(
            f"the loss became {number}, so training ended and the parameters are as they were: take a smaller learning_rate"
        )
    value.backward()  # type: ignore[no-untyped-call]  # torch does not type it
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    if not bool(norm.isfinite()):
        raise UsageError(
            f"the gradient became {float(norm)}, so training ended and the parameters are as they were: take a smaller learning_rate"
        )
    optimiser.step()
    return number


def _require(parameters: Sequence[nn.Parameter], examples: Sequence[Any]) -> None:
    if not parameters:
        raise UsageError(
            "nothing is trained: no parameter was given (adapters.parameters() has those of the active adapters, and none where the model runs by a kernel)"
        )
    if not len(examples):
        raise UsageError("there is no example to train on")


def _as_it_is(training: bool) -> None:
    """For a model that computes the same in training."""
    del training
