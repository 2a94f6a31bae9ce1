"""The training loop: AdamW, warm-up, clipping, early stop. It knows neither models nor data: a loss is a function of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError

Loss = Callable[[Sequence[Any]], torch.Tensor]  # a batch of examples -> the mean loss of them


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


@dataclass(slots=True)
class _Best:
    loss: float = math.inf
    tensors: list[torch.Tensor] = field(default_factory=list)
    since: int = 0


def fit(
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    examples: Sequence[Any],
    *,
    steps: int,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: float = 0.1,
    clip: float = 1.0,
    seed: int = 0,
    held_out: Sequence[Any] = (),
    evaluate_every: int = 0,
    patience: int = 0,
    report: Callable[[int, float], None] | None = None,
    train: Callable[[bool], None] | None = None,
) -> Fitted:
    """Train parameters in place on batches drawn without replacement, pass after pass (what fills no batch is left to the next pass, which is
    drawn anew); the same seed gives the same numbers.

    The rate rises over the first `warmup` of the steps and then falls to 0 as a cosine does. clip: greatest norm of all gradients together.
    held_out: examples whose loss is taken before the first step, every `evaluate_every` steps (0: ten times) and at the end; the parameters of
        the lowest are kept, and after `patience` measurements without a lower one training ends (0: never).
    report: is told each step and its loss. train: puts the model into training (True) and evaluation (False).
    Raises UsageError for no examples or parameters and numbers out of range, and where a loss or a gradient is NaN or infinite; the
    parameters are then as they were before, as after whatever else is raised.
    """
    _check(parameters, examples, steps, batch_size, learning_rate, warmup, clip)
    started = time.perf_counter()
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps, max(1, round(warmup * steps))))
    order = torch.Generator().manual_seed(seed)
    before = [one.detach().clone() for one in parameters]
    every = evaluate_every or max(1, steps // 10)
    best, losses, measured, stopped, step = _Best(), [], [], "steps", 0
    queue: list[int] = []

    def measure() -> bool:
        """Take the held-out loss and keep the best; whether patience is at its end."""
        if not held_out:
            return False
        value = _mean_loss(loss, held_out, batch_size, train)
        measured.append((step, value))
        if value < best.loss:
            best.loss, best.tensors, best.since = value, [one.detach().clone() for one in parameters], 0
            return False
        best.since += 1
        return bool(patience) and best.since >= patience

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        try:
            measure()
            while step < steps:
                if len(queue) < min(batch_size, len(examples)):  # fewer would be another loss where examples are compared
                    queue = torch.randperm(len(examples), generator=order).tolist()
                batch = [examples[number] for number in queue[:batch_size]]
                del queue[:batch_size]
                losses.append(_step(optimiser, loss, batch, parameters, clip, train))
                schedule.step()
                step += 1
                if report is not None:
                    report(step, losses[-1])
                if step % every == 0 and step < steps and measure():
                    stopped = "patience"
                    break
            else:
                measure()
        except KeyboardInterrupt:
            stopped = "interrupted"
        except BaseException:
            _put_back(parameters, before)
            raise
        finally:
            if train is not None:
                train(False)
    if best.tensors:
        _put_back(parameters, best.tensors)
    return Fitted(
        steps=step,
        losses=tuple(losses),
        held_out=tuple(measured),
        best=best.loss if held_out else (losses[-1] if losses else math.inf),
        stopped=stopped,
        seconds=time.perf_counter() - started,
        parameters=sum(one.numel() for one in parameters),
    )


def _step(
    optimiser: torch.optim.Optimizer,
    loss: Loss,
    batch: Sequence[Any],
    parameters: Sequence[nn.Parameter],
    clip: float,
    train: Callable[[bool], None] | None,
) -> float:
    if train is not None:
        train(True)
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


@torch.no_grad()
def _mean_loss(loss: Loss, examples: Sequence[Any], batch_size: int, train: Callable[[bool], None] | None) -> float:
    """Over examples, each counted once."""
    if train is not None:
        train(False)
    total = 0.0
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        total += float(loss(batch)) * len(batch)
    return total / len(examples)


@torch.no_grad()
def _put_back(parameters: Sequence[nn.Parameter], tensors: Sequence[torch.Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.copy_(tensor)


def _rate(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _check(
    parameters: Sequence[nn.Parameter],
    examples: Sequence[Any],
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    clip: float,
) -> None:
    if not parameters:
        raise UsageError(
            "nothing is trained: no parameter was given (adapters.parameters() has those of the active adapters, and none where the model runs by a kernel)"
        )
    if not len(examples):
        raise UsageError("there is no example to train on")
    if steps < 1 or batch_size < 1 or learning_rate <= 0 or not 0 <= warmup <= 1 or clip <= 0:
        raise UsageError(
            f"steps and batch_size are at least 1, learning_rate and clip above 0 and warmup from 0 to 1; got steps={steps}, "
            f"batch_size={batch_size}, learning_rate={learning_rate}, clip={clip} and warmup={warmup}"
        )
