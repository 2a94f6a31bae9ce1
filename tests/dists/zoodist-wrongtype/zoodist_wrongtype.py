"""Returns something that is not cards."""

from zoo.api import hookimpl


@hookimpl
def zoo_cards():
    return ["efficientnet", 3]
