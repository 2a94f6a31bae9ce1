"""A plugin that brings a place to get weights from."""

from zoo.api import hookimpl


@hookimpl
def zoo_open_weights(source, destination, size_bytes):
    if not source.startswith("zoodist:"):
        return None
    destination.write_bytes(b"weights from a stranger's store")
    return destination
