"""A folder as transformers saves a model in it: what is in there is read as data, and nothing of it is run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from zoo.api import UsageError, WeightsError, WeightsMissingError, hub_file, read_state_dict
from zoo_lm.json_tokenizer import JsonTokenizer
from zoo_lm.token_ids import TokenIds

OPTIONAL = ("generation_config.json", "tokenizer.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def hub_folder(repository: str, *, revision: str | None = None) -> Path:
    """The folder of a model on the Hugging Face hub, from the hub's own cache or downloaded into it; what `open_folder` reads alone.

    Without a network what the cache holds is taken. Raises WeightsMissingError when the hub or the cache lacks a file, and
    WeightsError for an index that names a file outside the folder.
    """
    config = hub_file(repository, "config.json", revision=revision)
    for name in OPTIONAL:
        with suppress(WeightsMissingError):
            hub_file(repository, name, revision=revision)
    try:
        hub_file(repository, WEIGHTS, revision=revision)
    except WeightsMissingError as missing:
        try:
            index = hub_file(repository, INDEX, revision=revision)
        except WeightsMissingError:
            raise missing from None
        for name in sorted(set(_weight_map(index).values())):
            hub_file(repository, name, revision=revision)
    return config.parent


def read_config(folder: Path, model_type: str) -> dict[str, Any]:
    """`config.json`. Raises UsageError when it is missing, no JSON object, or that of another architecture."""
    config = _read_json(Path(folder) / "config.json")
    if config.get("model_type") != model_type:
        raise UsageError(f"{folder} holds a model of type {config.get('model_type')!r}; this reads {model_type!r}")
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of `model.safetensors`, or of the files that `model.safetensors.index.json` names.

    Raises WeightsMissingError when there is neither or a part is missing; WeightsError for an index that names a file outside
    the folder, or whose files hold other tensors than it says.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return read_state_dict(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise WeightsMissingError(f"{folder} has neither {WEIGHTS} nor {INDEX}: save the model with safe serialization")
    keys_of: dict[str, set[str]] = defaultdict(set)
    for key, name in _weight_map(folder / INDEX).items():
        keys_of[name].add(key)
    state: dict[str, torch.Tensor] = {}
    for name, keys in sorted(keys_of.items()):
        if not (folder / name).is_file():
            raise WeightsMissingError(f"{folder} lacks {name}, which {INDEX} names: download it again")
        part = read_state_dict(folder / name)
        if part.keys() != keys:
            wrong = sorted(part.keys() ^ keys)
            raise WeightsError(
                f"{folder / name} does not hold the tensors that {INDEX} says: {', '.join(wrong[:3])} differ"
            )
        state |= part
    return state


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> JsonTokenizer | TokenIds | None:
    """The tokenizer of `tokenizer.json`; without that file the start and the ends alone (`TokenIds`), or None where none are named.

    The start and the ends are those of the configuration. `generation_config.json`, where it names them, overrules it, as it does in
    transformers.
    """
    folder = Path(folder)
    generation = _read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    start, end = (generation.get(field, config.get(field)) for field in ("bos_token_id", "eos_token_id"))
    ends = end if isinstance(end, list) else [] if end is None else [end]
    if not all(type(token) is int for token in [*ends, 0 if start is None else start]):
        raise UsageError(f"bos_token_id and eos_token_id in {folder} must be whole numbers, got {start!r} and {end!r}")
    vocabulary = int(config["vocab_size"])
    if (folder / "tokenizer.json").is_file():
        return JsonTokenizer(folder / "tokenizer.json", start_id=start, end_ids=tuple(ends), vocabulary=vocabulary)
    if start is None and not ends:
        return None
    return TokenIds(folder, start_id=start, end_ids=tuple(ends), vocabulary=vocabulary)


def _weight_map(path: Path) -> dict[str, str]:
    names = _read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{path} must have a weight_map from tensors to files")
    for name in names.values():
        # A plain name lies in the folder; anything with a separator, a drive or only dots may not.
        if not name.endswith(".safetensors") or any(sign in name for sign in "/\\:\0"):
            raise WeightsError(f"{path} may only name .safetensors files beside it, got {name!r}")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): give a folder that transformers saved a model in"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
