"""What a check is, and what it is given."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any

import torch

from zoo.errors import WeightsError
from zoo.models.build import Built, open_model
from zoo.registry.lookup import Found, Registry
from zoo.registry.plugin import Plugin

LEVELS = (
    "listing",
    "manifest",
    "weights",
    "numbers",
    "process",
    "pairs",
    "language",
    "speech",
    "fusion",
    "adapter",
    "kernel",
    "own",
)
SEED = 1
FEATURES = "features"


class CheckFailed(Exception):  # noqa: N818 - it reads as the sentence it is: the check failed
    """What was found and what was expected."""


class CheckSkipped(Exception):  # noqa: N818 - as above
    """Why the check says nothing about this model here."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise. `kinds` are the kinds of card it is for; a check of a whole plugin has none."""

    name: str
    level: str
    promise: str
    kinds: tuple[str, ...]
    run: Callable[[Any], None] = field(repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Result:
    """status: passed, failed or skipped; message says why, for the last two."""

    check: str
    level: str
    status: str
    message: str = ""
    seconds: float = 0.0


CHECKS: dict[str, Check] = {}


def check(
    level: str, promise: str, *, kinds: tuple[str, ...] = (), needs_model: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the check of its name (`batch_equals_singles` -> `batch-equals-singles`).

    needs_model: False for the checks of a card that still say something when the model cannot be built; the others are
        skipped then, so that one mistake is one failure.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        run = _only_when_built(function) if kinds and needs_model else function
        CHECKS[name] = Check(name, level, promise, kinds, run)
        return function

    return register


def _only_when_built(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    @wraps(function)
    def run(subject: Subject) -> None:
        if not subject.can_be_built:
            raise CheckSkipped("it cannot be built: see contract-is-kept")
        function(subject)

    return run


@dataclass(frozen=True, eq=False)
class Subject:
    """One model under test. Everything is built without touching the network."""

    found: Found
    plugin: Plugin
    registry: Registry

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def listed(self) -> bool:
        """Whether the card stands in the manifest; the members of a family are too many to know everything about."""
        return self.found.card in self.plugin.cards

    @cached_property
    def built(self) -> Built:
        """The model with its weights if they are here and fit, else drawn from a fixed seed; parameters can be trained."""
        try:
            return self.open(weights="card")
        except WeightsError:  # missing ones are nobody's mistake, and weights-load says what is wrong with the others
            return self.open(weights=None)

    @cached_property
    def can_be_built(self) -> bool:
        """Whether `built` gives a model; contract-is-kept says why it does not."""
        try:
            _ = self.built
        except (Exception, SystemExit):  # noqa: BLE001 - a stranger's builder may raise anything
            return False
        return True

    @property
    def module(self) -> Any:
        return self.built.module

    @property
    def reads(self) -> tuple[str, ...]:
        """What there are samples of: the card's modalities; for a bridge, which reads what encoders give, features."""
        card = self.found.card
        return (FEATURES,) if card.kind == "bridge" else card.modalities

    @property
    def trained(self) -> bool:
        return bool(self.built.files) or any(part.files for part in self.built.parts.values())

    def open(self, *, weights: Any, seed: int = SEED, **arguments: Any) -> Built:
        """Build it anew, offline, from a seed."""
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        try:
            with offline_only():
                return open_model(self.name_to_open, weights=weights, registry=self.registry, **arguments)
        finally:
            torch.set_rng_state(state)

    @property
    def name_to_open(self) -> str:
        return f"{self.found.card.provider.distribution}:{self.found.name}"


@contextmanager
def offline_only() -> Iterator[None]:
    """No network for what runs inside."""
    before = os.environ.get("ZOO_OFFLINE")
    os.environ["ZOO_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ZOO_OFFLINE"]
        else:
            os.environ["ZOO_OFFLINE"] = before


def run_check(one: Check, subject: Any) -> Result:
    """Run a check on a Subject, or a check of a whole plugin on a Plugin. Whatever it raises is a result."""
    start = time.perf_counter()
    try:
        one.run(subject)
    except CheckSkipped as reason:
        status, message = "skipped", str(reason)
    except CheckFailed as failure:
        status, message = "failed", str(failure)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's model may raise anything
        status, message = "failed", f"it raised {type(error).__name__}: {' '.join(str(error).split())[:400]}"
    else:
        status, message = "passed", ""
    return Result(one.name, one.level, status, message, time.perf_counter() - start)
