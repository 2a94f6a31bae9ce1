"""Formats of weight files that plugins bring, as rows of their manifests: known by how a file begins, imported to read one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from zoo.registry.activation import resolve
from zoo.registry.lookup import USABLE, Registry, default_registry
from zoo.registry.offers import Format
from zoo.registry.plugin import Plugin, code_sha256, describe
from zoo.weights.formats.read import FORMATS, HEAD_BYTES, WeightFormat, read_state_dict


def read_weights(path: Path, registry: Registry | None = None) -> dict[str, torch.Tensor]:
    """As `read_state_dict`, with the formats of the installed plugins beside the core's own.

    Raises WeightsError as that does, and PluginError for a plugin that fails.
    """
    registry = registry or default_registry()
    extra = [
        _weight_format(row, plugin, registry)
        for plugin in registry.plugins
        if plugin.state in USABLE
        for row in plugin.offers.formats
    ]
    return read_state_dict(path, extra)


def decoded_by(path: Path, registry: Registry | None = None) -> str:
    """The plugin, and the hash of its code, that reads a file of a format which is not the core's own; empty where none does."""
    registry = registry or default_registry()
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if any(own.recognises(head) for own in FORMATS):
        return ""
    rows = ((plugin, row) for plugin in registry.plugins if plugin.state in USABLE for row in plugin.offers.formats)
    found = (plugin for plugin, row in rows if head.startswith(bytes.fromhex(row.magic)))
    return " ".join(f"{describe(plugin)} {code_sha256(plugin)}" for plugin in found)


def _weight_format(row: Format, plugin: Plugin, registry: Registry) -> WeightFormat:
    def read(path: Path) -> Mapping[str, torch.Tensor]:
        tensors: Mapping[str, torch.Tensor] = resolve(plugin, row.read, registry.manager)(path)
        return tensors

    return WeightFormat(f"{row.name} file of {describe(plugin)}", partial(_begins, bytes.fromhex(row.magic)), read)


def _begins(magic: bytes, head: bytes) -> bool:
    return head.startswith(magic)
