"""Recipes: a composition of models as data, `recipe.toml`.

    recipe = 1
    decoder = "..."

    [senses.image]
    encoder = "..."
    bridge = "..."

Every other field of a sense has a default (`SenseRecipe`). `zoo.models.composition.save` adds what it must find again: `[frozen]`, the sha256
of the files of every model that was not trained; `[trained]`, the file with what was; `[drawn]`, the parts in it that never were; `requires`,
the distributions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zoo.errors import UsageError
from zoo.registry.atomic_write import write_text
from zoo.registry.documents import parse_toml
from zoo.registry.modality import MODALITIES, TEXT

FORMAT = 1
FILE = "recipe.toml"
REQUIRED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
FUSIONS = ("gated", "spliced")
ADJACENT = ("last", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class SenseRecipe:
    """How one modality enters the decoder.

    encoder, bridge: names of models. bridge_arguments: arguments of the bridge that differ from its card's.
    fusion: "gated" (cross-attention before decoder layers, Flamingo) or "spliced" (latents among the tokens, LLaVA, MiniGPT-4).
    every: a gated layer stands before each n-th layer of the decoder, the n-th first. gate: what its gates begin with; at 0 the
        decoder answers as ever. heads, head_width, hidden_factor: of the gated layers. feeds_all: see `GatedCrossAttention`.
    adjacent: what is seen of several items in a row, "last" or "all".
    marker: the text that stands for an item in a prompt; "" is the modality in angle brackets, as <image>.
    """

    encoder: str
    bridge: str
    bridge_arguments: Mapping[str, Any] = field(default_factory=dict)
    fusion: str = "gated"
    every: int = 4
    gate: float = 0.0
    heads: int = 8
    head_width: int = 64
    hidden_factor: int = 4
    feeds_all: bool = False
    adjacent: str = "last"
    marker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A composition. frozen: name -> role -> sha256. trained: file and sha256 of the numbers that no file of a frozen model holds.

    drawn: part ("image.bridge") -> sha256 of its numbers there, for those that were drawn and never trained.
    """

    decoder: str
    senses: Mapping[str, SenseRecipe]
    frozen: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    trained: Mapping[str, str] = field(default_factory=dict)
    drawn: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file, or in the folder that holds it. Raises UsageError, with what is wrong where."""
    file = path / FILE if path.is_dir() else path
    try:
        document = parse_toml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} holds no recipe: {file.name} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(f"{file} is no TOML: {error}") from error
    return recipe_of(document, str(file))


def recipe_of(document: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe in a parsed document. Raises UsageError."""
    known = {"recipe", "decoder", "senses", "frozen", "trained", "drawn", "requires"}
    unknown = sorted(set(document) - known)
    if document.get("recipe") != FORMAT:
        raise UsageError(f"{origin} must say recipe = {FORMAT}, got {document.get('recipe')!r:.80}")
    if unknown:
        raise UsageError(f"{origin} has the unknown field {unknown[0]}: a recipe has {', '.join(sorted(known))}")
    decoder, senses = document.get("decoder"), document.get("senses")
    if not isinstance(decoder, str) or not isinstance(senses, Mapping) or not senses:
        raise UsageError(f"{origin} must name a decoder and at least one sense: [senses.image] with its encoder and bridge")
    requires = document.get("requires", [])
    if not isinstance(requires, list) or not all(isinstance(one, str) and REQUIRED.fullmatch(one) for one in requires):
        raise UsageError(f"{origin}: requires is a list of distributions as NAME==VERSION, got {requires!r:.80}")
    return Recipe(
        decoder=decoder,
        senses={modality: sense_of(modality, fields, origin) for modality, fields in senses.items()},
        frozen=_hashes(document, "frozen", origin),
        trained=_texts(document, "trained", origin),
        drawn=_texts(document, "drawn", origin),
        requires=tuple(requires),
    )


def sense_of(modality: str, given: Any, origin: str) -> SenseRecipe:
    """One sense, with every field checked. Raises UsageError."""
    where = f"{origin}: senses.{modality}"
    if modality not in MODALITIES or modality == TEXT:
        raise UsageError(f"{where}: a sense is for one of {', '.join(one for one in MODALITIES if one != TEXT)}")
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} must be a table with encoder and bridge, got {given!r:.80}")
    known = {one.name: one for one in fields(SenseRecipe)}
    for name in given:
        if name not in known:
            raise UsageError(f"{where} has the unknown field {name}: a sense has {', '.join(known)}")
    for name, one in known.items():
        needed = one.default is MISSING and one.default_factory is MISSING
        if needed and name not in given:
            raise UsageError(f"{where} must have {name}, the name of a model")
        if name in given and not _is_of(given[name], str(one.type)):
            raise UsageError(f"{where}: {name} must be a {_TYPES.get(str(one.type), 'table')}, got {given[name]!r:.80}")
    sense = SenseRecipe(**given)
    if sense.fusion not in FUSIONS or sense.adjacent not in ADJACENT:
        raise UsageError(f"{where}: fusion is one of {', '.join(FUSIONS)} and adjacent one of {', '.join(ADJACENT)}, "
                         f"got {sense.fusion!r} and {sense.adjacent!r}")  # fmt: skip
    small = next((name for name in ("every", "heads", "head_width", "hidden_factor") if getattr(sense, name) < 1), None)
    if small is not None:
        raise UsageError(f"{where}: {small} must be at least 1, got {getattr(sense, small)}")
    return sense


_TYPES = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}


def _is_of(value: Any, type_name: str) -> bool:
    if isinstance(value, bool):
        return type_name == "bool"
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "str": str}
    return isinstance(value, kinds.get(type_name, Mapping)) and type_name != "bool"


def write_recipe(recipe: Recipe, file: Path) -> None:
    """The recipe as TOML, every field written out, so that a later default changes nothing."""
    import tomlkit

    document = tomlkit.document()
    document["recipe"] = FORMAT
    document["decoder"] = recipe.decoder
    if recipe.requires:
        document["requires"] = list(recipe.requires)
    document["senses"] = {modality: asdict(sense) for modality, sense in recipe.senses.items()}
    for name in ("trained", "drawn", "frozen"):
        if getattr(recipe, name):
            document[name] = {key: dict(value) if isinstance(value, Mapping) else value
                              for key, value in getattr(recipe, name).items()}  # fmt: skip
    write_text(file, tomlkit.dumps(document))


def _texts(document: Mapping[str, Any], name: str, origin: str) -> dict[str, str]:
    table = document.get(name, {})
    if not isinstance(table, Mapping) or not all(isinstance(value, str) for value in table.values()):
        raise UsageError(f"{origin}: [{name}] holds texts, got {table!r:.80}")
    return dict(table)


def _hashes(document: Mapping[str, Any], name: str, origin: str) -> dict[str, dict[str, str]]:
    table = document.get(name, {})
    if not isinstance(table, Mapping) or not all(isinstance(value, Mapping) for value in table.values()):
        raise UsageError(f"{origin}: [{name}] holds a table of sha256 for each model, got {table!r:.80}")
    return {model: _texts(table, model, f"{origin}: {name}") for model in table}
