"""open_clip models as dual encoders of the zoo, and their towers as encoders. A few cards are in `zoo.toml`; the names that
are too many to list come from the hook.
"""

from collections.abc import Iterator
from typing import Any

from zoo.api import hookimpl


@hookimpl
def zoo_family(pattern: str) -> Iterator[dict[str, Any]]:
    """Every open_clip architecture that matches, whole and as two towers, with one weights row for each pretrained tag."""
    from zoo_clip.family import family  # open_clip is imported only when a name of its own is asked for

    return family(pattern)
