"""Numbers that no bridge can be built from."""

from zoo.api import UsageError


def require_positive(**numbers: int | None) -> None:
    """Raises UsageError for the first that is below 1, by its name; None is not looked at."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}")
