"""The whole plugin API.

A plugin is an installed distribution with an entry point in the group `zoo` whose module

- holds a `zoo.toml` manifest (see `zoo.registry.manifest`) and, if data is not enough, any of the hooks below; or
- is a single file with `zoo_cards` and `zoo_build`.

Hooks are marked with `zoo.hookimpl`, take their arguments by the names given here, and have no default values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch

    from zoo.registry.card import Card

hookspec = pluggy.HookspecMarker("zoo")
hookimpl = pluggy.HookimplMarker("zoo")


# The bodies are empty on purpose: pluggy only reads the signatures.
# mypy: disable-error-code="empty-body"


@hookspec
def zoo_cards() -> Iterable[Mapping[str, Any]]:
    """The cards of a plugin that has no manifest, as mappings with the fields of a `[[card]]` table.

    Called when models are listed, in a child process of its own with ten seconds of time, once: the answer is kept until
    the plugin's files change. What raises, hangs or ends the interpreter there makes the plugin `broken`, with its cure, and
    harms no other. `zoo plugins` says when the import brings torch along. The rows are data: what JSON has, nothing else.
    """


@hookspec
def zoo_family(pattern: str) -> Iterable[Mapping[str, Any]]:
    """The members of the plugin's families whose model name matches the shell-style `pattern`, as card mappings.

    Called in the user's process, when a name or pattern falls into a `[[family]]` of the manifest, so that thousands of names
    need no rows: `zoo list` alone does not call it. A pattern without wildcards asks for one model. Weights belong in the
    mapping as they do in a manifest (`file` for `[[card.weights.file]]`). Whatever is raised becomes an error that names the
    plugin and the hook.
    """


@hookspec
def zoo_build(card: Card, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """Build a card that names no `build` function. Called on the card's own plugin alone.

    `arguments` are the card's variant, preprocess, parts and side-file paths, overridden by the caller's keyword arguments.
    Called in the user's process, when the model is built. The module has random weights: the core loads the trained ones.
    Whatever is raised becomes an error that names the plugin and the model.
    """


@hookspec(firstresult=True)
def zoo_open_weights(source: str, destination: Path, size_bytes: int | None) -> Path | None:
    """Deliver the bytes that `source` names; return their path, or None if the scheme is not yours.

    Write them to `destination` and return it, or return the path of a local file that already holds them and is read in
    place. `destination` may hold the beginning of an earlier, interrupted delivery of the same source. A manifest lists the
    schemes its plugin serves (`schemes = ["s3"]`), and no other plugin is imported or asked for them; those of the core (see
    `zoo.weights.stores`) are never asked of a plugin. Whatever is raised costs this source only: the next one is tried.
    The caller verifies the sha256: a store need not. Raise `zoo.api.WeightsMissingError`, saying why, when the bytes
    cannot be had.
    """
