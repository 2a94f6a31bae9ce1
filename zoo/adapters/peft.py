"""HF PEFT's folders: `adapter_config.json` beside `adapter_model.safetensors`, under the module names of the library that PEFT adapted.

What the tensors of a method mean is the method's affair: its card names an object for it (`exchange`), with

    read(config, state, base, name_of) -> (method, options, tensors) or None   config as in the folder; tensors as `<place>::<name>`,
                                                                               without the copies of the base's weights that PEFT may add
    write(adapter, name_of, base) -> (config, tensors)                         name_of: a place -> the name of its module there
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from zoo.adapters import files
from zoo.adapters.adapter import Adapter, finished
from zoo.adapters.target_modules import Base, base_of
from zoo.errors import StateMismatchError, UsageError, WeightsError
from zoo.registry.activation import resolve
from zoo.registry.atomic_write import atomic_folder
from zoo.registry.documents import parse_json
from zoo.weights.formats.read import read_state_dict
from zoo.weights.strict_load import refuse_nonfinite

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
ATTENTION = {"in_proj": "", "out_proj": ".base_layer.out_proj"}  # PEFT's names inside an nn.MultiheadAttention


def read_folder(folder: Path, adapters: Any, *, other_base: bool = False) -> Adapter:
    """An adapter that PEFT wrote, for the model of `adapters` (`zoo.adapters.adapt.Adapters`).

    PEFT's files do not say which weights they are for, but may hold copies of embeddings and heads; `other_base` takes any.
    Raises WeightsError for a folder without the two files,
    UsageError for a kind or an option that no installed method has, StateMismatchError, with what differs, for other shapes.
    """
    config, state = read_config(folder), read_tensors(folder)
    refuse_nonfinite(state, str(folder / TENSORS))
    base = base_of(adapters.model)
    names = _names(base, adapters)
    ours = {theirs: place for place, theirs in names.items()}
    renamed = {_ours(key, ours): tensor for key, tensor in state.items()}
    renamed = _without_base(renamed, base, config.get("modules_to_save") or [], names, other_base=other_base)
    for found, exchange in _exchanges(adapters):
        read = exchange.read(config, renamed, base, names.__getitem__)
        if read is not None:
            method, options, tensors = read
            adapter = adapters._build(adapters.registry.find(f"{found.provider.plugin}/{method}"), options)  # noqa: SLF001 - a file of its own
            return files.filled(adapter, tensors, str(folder))
    raise UsageError(f"{folder} is a {config.get('peft_type')!r} of PEFT, which no installed method reads")


def write_folder(folder: Path, adapters: Any, name: str) -> None:
    """Write an adapter as PEFT does, both files or neither; what else lies in the folder stays."""
    adapter = finished(adapters.adapted.find(name))
    card = adapters.registry.find(adapter.method).card
    if card.exchange is None:
        raise UsageError(f"HF PEFT has no method like {adapter.method}: save() writes a file of ours")
    owner = adapters.registry.owner(card)
    exchange = resolve(owner, card.exchange, adapters.registry.manager)
    base = base_of(adapters.model)
    names = _names(base, adapters)

    def name_of(place: str) -> str:
        if place not in names:
            raise UsageError(
                f"{place} is no module of its own in the library that PEFT adapts, so this adapter cannot be exported"
            )
        return names[place]

    config, tensors = exchange.write(adapter, name_of, base)
    built = adapters.built
    config = {"base_model_name_or_path": built.name if built is not None else None, "inference_mode": True, **config}
    state = {
        key if key == "prompt_embeddings" else PREFIX + key: tensor.detach().cpu().contiguous().clone()
        for key, tensor in tensors.items()
    }
    whole = save(state, metadata={"format": "pt"})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as staging:
        (staging / TENSORS).write_bytes(whole)
        (staging / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _exchanges(adapters: Any) -> list[tuple[Any, Any]]:
    """(card, object) of each method that reads PEFT's files, the same object once."""
    found: dict[tuple[str, str], tuple[Any, Any]] = {}
    for card in adapters.registry.cards(kind="adapter"):
        key = (card.provider.plugin, card.exchange)
        if card.exchange is not None and key not in found:
            owner = adapters.registry.owner(card)
            found[key] = (card, resolve(owner, card.exchange, adapters.registry.manager))
    return list(found.values())


def _names(base: Base, adapters: Any) -> dict[str, str]:
    """Place -> PEFT's name of the module there; slices have none."""
    names: dict[str, str] = {}
    for name in (*base.norms, *base.tied):
        names[name] = their_name(name, adapters.module_names)
    for name, place in base.places.items():
        module, _, last = name.rpartition(".")
        if place.weight_name != "weight":
            if last in ATTENTION:
                names[name] = their_name(module, adapters.module_names) + ATTENTION[last]
        else:
            names[name] = their_name(name, adapters.module_names)
    return names


def their_name(name: str, table: Mapping[str, str]) -> str:
    """Our name of a module -> theirs, by a table of patterns in which `*` is any text; what it does not know keeps its name."""
    for ours, theirs in table.items():
        match = re.fullmatch("(.+)".join(map(re.escape, ours.split("*"))), name)
        if match is not None:
            parts = iter(match.groups())
            return "".join(next(parts, "") if piece == "*" else piece for piece in re.split(r"(\*)", theirs))
    return name


def _ours(key: str, ours: Mapping[str, str]) -> str:
    """A tensor's name with PEFT's name of its module -> with the place; one of no module of ours is left as it is."""
    bare = key.removeprefix(PREFIX)
    for module in sorted(ours, key=len, reverse=True):
        if bare.startswith(f"{module}."):
            return f"{ours[module]}::{bare[len(module) + 1 :]}"
    return bare


def _without_base(
    state: Mapping[str, torch.Tensor], base: Base, trained: Any, names: Mapping[str, str], *, other_base: bool
) -> dict[str, torch.Tensor]:
    """Without weights of the base that PEFT saved beside the adapter, if they are ours; a tied head's is the embedding's.

    trained: "modules_to_save", whose weights are the adapter's. Raises StateMismatchError for others than the base's.
    """
    kept = {}
    for key, tensor in state.items():
        place, _, name = key.rpartition("::")
        owner = base.places.get(base.tied.get(place, place))
        copied = owner is not None and name in ("weight", "base_layer.weight")
        if copied and not any(f".{names[place]}.".find(f".{one}.") >= 0 for one in trained):
            weight = getattr(getattr(owner, "layer", None), "weight", None)
            # One that a kernel rounded cannot be compared.
            if isinstance(weight, torch.nn.Parameter) and not other_base and not _same(weight, tensor):
                raise StateMismatchError(
                    f"the folder holds other weights for {place} than this model: it was made for another base; other_base=True "
                    f"(--other-base) takes it all the same"
                )
            continue
        kept[key] = tensor
    return kept


def _same(weight: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether two tensors are one, as far as the coarser of their formats tells."""
    if weight.shape != copy.shape:
        return False
    copy = copy.to(weight.device)
    return torch.equal(weight.to(copy.dtype), copy) or torch.equal(weight, copy.to(weight.dtype))


def read_config(folder: Path) -> dict[str, Any]:
    """What `adapter_config.json` says. Raises WeightsError for none, and for one that is no JSON object."""
    path = folder / CONFIG
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{folder} is no adapter of PEFT: it has no {CONFIG}; one of ours is a file") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{path} must hold an object, got {config!r:.60}")
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder by PEFT's names. Raises WeightsError for none."""
    for name in (TENSORS, PICKLE):
        if (folder / name).is_file():
            return read_state_dict(folder / name)
    raise WeightsError(f"{folder} has neither {TENSORS} nor {PICKLE}")
