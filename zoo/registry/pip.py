"""Calling the pip of this environment, which some environments do not have."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from zoo.errors import ZooError


def pip_command(*words: str) -> list[str]:
    """The words that call pip in our own interpreter. Raises ZooError, with the cure, where there is no pip."""
    if find_spec("pip") is None:
        raise ZooError(
            f"this environment has no pip ({sys.executable}): {sys.executable} -m ensurepip, then the same again"
        )
    return [sys.executable, "-m", "pip", *words]
