"""Implements a hook that does not exist."""

from zoo.api import hookimpl


@hookimpl
def zoo_card():
    return []
