"""Implements a hook that does not exist."""

from zoo import hookimpl


@hookimpl
def zoo_card():
    return []
