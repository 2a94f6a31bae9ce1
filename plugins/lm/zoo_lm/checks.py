"""Numbers that no model can be built from."""

from zoo.api import UsageError


def require_positive(**numbers: int) -> None:
    """Raises UsageError for the first that is below 1, by its name."""
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}")
