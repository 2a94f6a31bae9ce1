"""A card -> what its plugin builds of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.errors import PluginError, ZooError
from zoo.registry.activation import call_hook
from zoo.registry.lookup import Found, Registry
from zoo.registry.plugin import Plugin, describe
from zoo.weights.verified import Located


def arguments_of(found: Found) -> dict[str, Any]:
    """What the builder is called with, as card and row say it."""
    card, row = found.card, found.weights
    preprocess = {**card.preprocess, **(row.preprocess if row else {})}
    return {
        **card.variant,
        **(row.variant if row else {}),
        **({"preprocess": preprocess} if preprocess else {}),
    }


def construct(found: Found, owner: Plugin, registry: Registry, extra: Mapping[str, Any]) -> torch.nn.Module:
    card = found.card
    arguments = {**arguments_of(found), **extra}
    try:
        builder = registry.builder(card)
        if builder is not None:
            with contextlib.redirect_stdout(sys.stderr):  # stdout carries the answer and nothing else
                module = builder(**arguments)
        else:
            module = call_hook(owner, "zoo_build", registry.manager, card=card, arguments=arguments)
    except ZooError:
        raise
    except Exception as error:
        raise PluginError(
            f"{describe(owner)} raised {type(error).__name__} while building {found.name}: {error}"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise PluginError(f"{describe(owner)} must build {found.name} as a torch.nn.Module, got {type(module).__name__}")
    return module


def side_files(found: Found, located: Mapping[str, Located]) -> dict[str, Path | None]:
    """`<role>_path` for each file that belongs to the weights and holds no tensors; None when built without weights."""
    roles = [file.role for file in found.weights.files if file.role != "model"] if found.weights else []
    return {f"{role}_path": located[role].path if role in located else None for role in roles}
