"""timm models as encoders of the zoo. The cards are in `zoo.toml`; the names that are too many to list come from the hook."""

from collections.abc import Iterator
from typing import Any

from zoo.api import hookimpl


@hookimpl
def zoo_family(pattern: str) -> Iterator[dict[str, Any]]:
    """Every timm architecture that matches, with one weights row for each pretrained tag."""
    from zoo_timm.family import family  # timm is imported only when a name of its own is asked for

    return family(pattern)
