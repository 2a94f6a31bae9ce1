"""Returns something that is not cards."""

from zoo import hookimpl


@hookimpl
def zoo_cards():
    return ["efficientnet", 3]
