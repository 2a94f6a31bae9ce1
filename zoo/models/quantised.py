"""A model by a kernel as one safetensors file: what the kernel keeps of each layer, and everything else as it is.

The file says in its header which model and which kernel it is of, so that it is opened like any other: as the folder of a model, or as the
weights of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.errors import UsageError, WeightsError, ZooError
from zoo.media.file import expanded
from zoo.models.drawn import tensors_sha256
from zoo.nn.kernels.apply import BIAS
from zoo.nn.kernels.contract import Tensors
from zoo.nn.kernels.seam import is_kernel_embedding, is_kernel_linear
from zoo.registry.documents import parse_json
from zoo.weights.formats.safetensors import is_safetensors, read_settings
from zoo.weights.writing import write_tensors

if TYPE_CHECKING:
    from zoo.models.kernels import Chosen

FILE, KEY, FORMAT = "model.safetensors", "zoo_kernel", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedRecord:
    """What the header says. model: name with the weights tag. files: sha256 of the files that the numbers came from, by role.

    kernel: its full name. distribution, version: who provided it. layers: names of the layers that run by it. sha256: of all tensors.
    """

    model: str
    files: Mapping[str, str]
    kernel: str
    distribution: str
    version: str
    skip: list[str] = field(default_factory=list)
    per_layer: Mapping[str, str] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    sha256: str = ""
    format: int = FORMAT


def record_of(path: Path) -> QuantisedRecord | None:
    """The record of a file, or of the folder that holds one as `model.safetensors`; None where it was not written by `zoo quantize`.

    Raises WeightsError for a record that cannot be read.
    """
    path = path / FILE if path.is_dir() else path
    try:
        with path.open("rb") as file:
            if not is_safetensors(file.read(16)):
                return None
    except OSError:
        return None
    text = read_settings(path).get(KEY)
    if text is None:
        return None
    try:
        fields = parse_json(text.encode())
        record = QuantisedRecord(**fields)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} has a header that zoo quantize did not write ({error}): write the file again") from None
    lists, tables = (record.layers, record.skip), (record.files, record.per_layer)
    texts: list[Any] = [record.model, record.kernel, record.distribution, record.version, record.sha256]
    texts += [one for listed in lists if isinstance(listed, list) for one in listed]
    if (
        record.format != FORMAT
        or not all(isinstance(listed, list) for listed in lists)
        or not all(isinstance(text, str) for text in texts)
        or not all(isinstance(table, dict) and all(isinstance(value, str) for value in table.values()) for table in tables)
    ):
        raise WeightsError(f"{path} has a header of another format than {FORMAT}: write the file again (zoo quantize)")
    return record


def quantised_file(name: str, weights: str | Path | None) -> tuple[Path, QuantisedRecord, str | None] | None:
    """The file that `zoo quantize` wrote, its record and the name beside it: a folder in place of a model, or the weights of one."""
    if weights == "card":
        path, beside = Path(name), None
    elif weights is not None:
        path, beside = expanded(Path(weights)), name
    else:
        return None
    record = record_of(path) if path.exists() else None
    return None if record is None else (path / FILE if path.is_dir() else path, record, beside)


def write_quantised(module: nn.Module, record: QuantisedRecord, folder: Path) -> Path:
    """Write what a model by a kernel holds, whole or not at all; returns the file. Raises ZooError where the disk refuses."""
    state: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    layers = []
    for name, tensor in module.state_dict().items():
        _add(state, places, name, tensor)
    for name, part in module.named_modules():
        if is_kernel_linear(part) or is_kernel_embedding(part):
            layers.append(name)
            kept = dict(part.tensors())
            bias_N = getattr(part, BIAS, None)
            for key, tensor in {**kept, **({} if bias_N is None else {BIAS: bias_N})}.items():
                _add(state, places, f"{name}.{key}", tensor)
    whole = {**asdict(record), "layers": layers, "sha256": tensors_sha256(sorted(state.items()))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / FILE, state, metadata={KEY: json.dumps(whole)})
    except OSError as error:
        raise ZooError(
            f"{folder}: the model cannot be written ({error.strerror or error}); what was there before is there still"
        ) from error
    return folder / FILE


def _add(state: dict[str, torch.Tensor], places: set[int], name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in, a copy where its memory is there already, which a file cannot say."""
    tensor = tensor.detach().cpu().contiguous()
    place = tensor.untyped_storage().data_ptr()
    state[name] = tensor.clone() if place in places or tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
    places.add(place)


def parts_of(
    state: Mapping[str, torch.Tensor], record: QuantisedRecord, origin: str
) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The tensors of a file -> those of each layer that runs by the kernel, and the others. Raises WeightsError where they are not those
    that were written.
    """
    if tensors_sha256(sorted(state.items())) != record.sha256:
        raise WeightsError(
            f"{origin} does not hold the tensors that were written: it is damaged, write it again (zoo quantize)"
        )
    kept: dict[str, dict[str, torch.Tensor]] = {name: {} for name in record.layers}
    rest = {}
    for key, tensor in state.items():
        layer, _, name = key.rpartition(".")
        if layer in kept:
            kept[layer][name] = tensor
        else:
            rest[key] = tensor
    return dict(kept), rest


def require_kernel(record: QuantisedRecord, chosen: Chosen, version: str, asked: str | None, origin: str) -> str | None:
    """Words about a kernel of another version than the one that wrote the file; None where it is the same.

    Raises UsageError where another kernel was asked for.
    """
    if asked is not None and asked not in (record.kernel, record.kernel.partition("/")[2]):
        raise UsageError(f"{origin} is quantised by {record.kernel}: leave out kernel {asked}, or quantise the model anew")
    if chosen.card is None or version == record.version:
        return None
    return f"{origin} was written by {record.distribution} {record.version}, {version} is installed: compare answers"
