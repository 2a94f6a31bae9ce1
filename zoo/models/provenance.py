"""What produced a result: the one value that stands in every result class."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.models.build import Built, weight_hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Which model answered, from which distribution, with which numbers.

    model: name with the weights tag. weights: name with tag -> role -> sha256, for the model, each of its parts and the adapters
        that it ran under; empty for a random initialisation.
    kernel: the number format of the linear layers, where the task applies kernels; None elsewhere.
    random_weights: parameters were drawn and never trained, so that the answers mean nothing.
    """

    model: str
    distribution: str
    version: str
    weights: dict[str, dict[str, str]]
    kernel: str | None = None
    random_weights: bool = False


def provenance_of(built: Built, *, kernel: str | None = None) -> Provenance:
    """The provenance of what a built model answers, as it is now with its adapters."""
    provider = built.found.card.provider
    return Provenance(
        model=built.name,
        distribution=provider.distribution,
        version=provider.version,
        weights=weight_hashes(built),
        kernel=kernel,
        random_weights=built.random,
    )
