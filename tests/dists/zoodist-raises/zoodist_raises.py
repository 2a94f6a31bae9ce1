"""Raises in its hooks."""

from zoo.api import hookimpl


@hookimpl
def zoo_cards():
    raise RuntimeError("the hook fell over")
