"""A plugin in one file, without a manifest."""

from zoo.api import hookimpl


@hookimpl
def zoo_cards():
    return [{"name": "grey", "kind": "encoder", "modalities": ["image"], "parameters": 0, "licence": "Apache-2.0"}]


@hookimpl
def zoo_build(card, arguments):
    from torch import nn

    return nn.Identity()
