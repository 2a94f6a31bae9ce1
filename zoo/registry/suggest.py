"""What somebody may have meant who mistyped a name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def nearest(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names that are spelt most like `name`, nearest first; cutoff: how alike, from 0 to 1."""
    import difflib  # only a mistake pays for it

    return difflib.get_close_matches(name, list(known), most, cutoff)


def did_you_mean(near: Sequence[str], otherwise: str) -> str:
    """The question after these names; where there is none, `otherwise`."""
    return f"did you mean {' or '.join(near)}?" if near else otherwise
