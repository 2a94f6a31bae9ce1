"""What shapes a model's numbers, as one sha256: the key under which results derived from it may be kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from zoo.registry.lookup import Found, Registry
from zoo.weights.plugin_formats import decoded_by
from zoo.weights.verified import Located

if TYPE_CHECKING:
    from zoo.models.build import Built


def decoder_of(located: Mapping[str, Located], registry: Registry) -> dict[str, str]:
    """What reads the weights, where that is no format of the core's own."""
    decoded = decoded_by(located["model"].path, registry) if "model" in located else ""
    return {"decoded by": decoded} if decoded else {}


def random_state() -> str:
    """What a random initialisation is drawn from: two seeds are two models."""
    return hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()


def identity_of(
    named: str,
    found: Found,
    code_sha256: str | None,
    files: Mapping[str, str],
    overrides: Mapping[str, Any],
    parts: Mapping[str, Built],
    dtype: torch.dtype | None,
    drawn: str | None,
) -> str:
    provider = found.card.provider
    content = {
        "model": named,
        "distribution": [provider.distribution, provider.version, code_sha256],
        "files": dict(files),
        "overrides": repr(sorted(overrides.items())),
        "parts": {role: part.identity for role, part in parts.items()},
        "dtype": str(dtype),
        "torch": torch.__version__,
        "random": drawn,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
