"""Imports torch to say what it has."""

import torch

from zoo.api import hookimpl


@hookimpl
def zoo_cards():
    return [{"name": "identity", "kind": "encoder", "modalities": ["image"], "parameters": 0, "licence": "MIT"}]


@hookimpl
def zoo_build(card, arguments):
    return torch.nn.Identity()
