"""An adapter as one safetensors file: its tensors, its method and options, and which weights it was made for."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from zoo.adapters.adapter import Adapter
from zoo.adapters.target_modules import places_of
from zoo.errors import UsageError, WeightsError
from zoo.models.build import Built
from zoo.nn.kernels.seam import runs_by_kernel
from zoo.registry.atomic_write import write_bytes
from zoo.registry.documents import parse_json
from zoo.registry.suggest import did_you_mean, nearest
from zoo.weights.formats.safetensors import check_header
from zoo.weights.strict_load import load_strict, refuse_nonfinite

KEY = "zoo_adapter"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What a file says. base: what `fingerprint` gave for the model that it was trained with. drawn: it was never trained."""

    method: str
    options: dict[str, Any]
    base: dict[str, str]
    state: dict[str, torch.Tensor]
    scale: float = 1.0
    drawn: bool = False


def write(path: Path, adapter: Adapter, base: Mapping[str, str], *, drawn: bool) -> None:
    """Write an adapter, whole or not at all. drawn: it was never trained. Raises UsageError for a folder."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, and an adapter is one file: name it, as {path / 'adapter.safetensors'}")
    content = {
        "version": VERSION,
        "method": adapter.method,
        "options": adapter.options,
        "scale": adapter.scale,
        "base": dict(base),
        "drawn": drawn,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    # The library's own save_file would keep the file to its owner.
    whole = save(state, metadata={KEY: json.dumps(content, sort_keys=True)})
    write_bytes(path, whole)


def read(path: Path) -> Record:
    """Read what `write` wrote. Raises UsageError for no such file, WeightsError for anything else, and for NaN and infinity."""
    if not path.is_file():
        raise UsageError(f"there is no adapter {path}: zoo adapt train writes one, and a folder of HF PEFT's is one, too")
    try:
        check_header(path)
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, WeightsError) as error:
        raise WeightsError(f"{path} is no adapter: it is no whole safetensors file ({error})") from error
    try:
        content = parse_json(metadata[KEY])
        record = Record(
            str(content["method"]), dict(content["options"]), dict(content["base"]), state, float(content.get("scale", 1.0)),
            content.get("drawn") is True,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        raise WeightsError(
            f"{path} is a safetensors file, but no adapter that `save` wrote; one of HF PEFT is read as a folder, with its adapter_config.json"
        ) from None
    if content.get("version") != VERSION:
        raise WeightsError(
            f"{path} has version {content.get('version')} of the format, this zoo reads {VERSION}: update it"
        )
    refuse_nonfinite(state, str(path))
    return record


def filled(adapter: Adapter, state: Mapping[str, torch.Tensor], origin: str) -> Adapter:
    """The adapter with these tensors. Raises StateMismatchError with what differs."""
    with torch.no_grad():
        load_strict(adapter, state, origin)
    return adapter


def fingerprint(model: nn.Module, built: Built | None = None) -> dict[str, str]:
    """What identifies the weights of a model, whatever float format they are held in.

    weights: sha256 of all of them, rounded to bfloat16; weights_float16: the same, rounded to float16 before, as a cast model has them. Both
    are left out where a kernel rounded them. vectors: of those that no kernel touches. file, model: sha256 of the file that a built model came
    from, and its name.
    """
    state = model.state_dict()
    layers = {id(place.layer) for place in places_of(model).values()}
    owners = {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if id(module) not in layers
        for key, tensor in module.named_parameters(recurse=False)
        if tensor.ndim == 1
    }
    found = {"vectors": _sha256({name: state[name] for name in sorted(owners & state.keys())}, half=False)}
    if not runs_by_kernel(model):
        found["weights"] = _sha256(state, half=False)
        found["weights_float16"] = _sha256(state, half=True)
    if built is not None:
        found["model"] = built.name
        found |= {"file": built.files["model"]} if "model" in built.files else {}
    return found


def require_base(record: Record, found: Mapping[str, str], path: Path) -> None:
    """Raise UsageError for a model of other weights than the file was made for."""
    exact = ("weights", "weights_float16")
    names = exact if "weights" in record.base and "weights" in found else ("file",)
    if names == ("file",) and not ("file" in record.base and "file" in found):
        names = ("vectors",)
    given, wanted = [record.base.get(name) for name in names], [found.get(name) for name in names]
    if not {one for one in given if one} & {one for one in wanted if one}:
        raise UsageError(
            f"{path} was made for a model with other weights ({str(given[0])[:12]}, this one is {str(wanted[0])[:12]}): load it into that one, or "
            f"say other_base=True (--other-base) to take it all the same"
        )


def _sha256(state: Mapping[str, torch.Tensor], *, half: bool) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        rounded = tensor.detach().cpu()
        if rounded.is_floating_point():
            rounded = (rounded.half() if half else rounded).bfloat16()
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(rounded.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_unknown_options(
    builder: Callable[..., Any], options: Mapping[str, Any], method: str, *, known_from: int = 1
) -> None:
    """Raise UsageError for an option that a builder does not have; its first `known_from` arguments are none."""
    parameters = inspect.signature(builder).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    known = list(parameters)[known_from:]
    for option in options:
        if option not in known:
            hint = f"{did_you_mean(nearest(option, known, most=2), '')} it has {', '.join(known)}"
            raise UsageError(f"{method} has no option {option!r}; {hint.lstrip()}")
