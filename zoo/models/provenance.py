"""What produced a result: the one value that stands in every result class."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.errors import RandomWeightsWarning
from zoo.models.build import Built, weight_hashes
from zoo.nn.extension import extension_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Which model answered, from which distribution, with which numbers.

    model: name with the weights tag. weights: name with tag -> role -> sha256, for the model, each of its parts, the adapters that it ran
        under and what helped it; the role is that of a file, "drawn" for parameters that were drawn and never trained, and
        "parameters" for those that were trained since their model was opened.
    kernel: what it computed by, or the number format of a language model or transcriber without one; None for others.
    random_weights: parameters were drawn and never trained, so that the answers mean nothing. random_parts: names of the parts and
        adapters whose are, as they stand in `weights`.
    """

    model: str
    distribution: str
    version: str
    weights: dict[str, dict[str, str]]
    kernel: str | None = None
    random_weights: bool = False
    random_parts: tuple[str, ...] = ()

    @property
    def random_words(self) -> str:
        """What is to be said of an answer that rests on drawn parameters; empty for others."""
        if not self.random_weights:
            return ""
        where = "" if self.random_parts == (self.model,) else f" in {', '.join(self.random_parts)}"
        return f"{self.model} has random weights{where}: what it answers means nothing"


def provenance_of(built: Built, *, kernel: str | None = None, helped: Sequence[Built] = ()) -> Provenance:
    """The provenance of what a built model answers, as it is now with its adapters. Warns (RandomWeightsWarning) where parameters were drawn.

    helped: models that had a part in the answer, as one that finds voices.
    """
    provider = built.found.card.provider
    weights = weight_hashes(built)
    for one in helped:
        weights |= weight_hashes(one)
    extension = extension_of(built.module)
    untrained = () if extension is None else (f"{built.name} under {name}" for name in extension.untrained())
    random = (*(name for name, roles in weights.items() if "drawn" in roles), *untrained)
    provenance = Provenance(
        model=built.name,
        distribution=provider.distribution,
        version=provider.version,
        weights=weights,
        kernel=kernel or built.kernel,
        random_weights=bool(random),
        random_parts=random,
    )
    if random:
        warnings.warn(provenance.random_words, RandomWeightsWarning, stacklevel=_outside())
    return provenance


def _outside() -> int:
    """How many callers up the line stands that asked the zoo: a warning names it, and is shown once for it."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "zoo":
        frame, level = frame.f_back, level + 1
    return level
