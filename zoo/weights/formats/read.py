"""A weight file -> its tensors: the table of formats, told apart by how a file begins, never by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.errors import WeightsError, ZooError
from zoo.weights.formats import ctranslate2, gguf, safetensors, torch_checkpoint

HEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One format of weight files.

    name: what messages call such a file, behind "a".
    recognises: the first `HEAD_BYTES` of a file, fewer where it is shorter -> whether the format is this one. It claims no
        more than it must: a file that two formats claim is not read.
    read: the path -> name to dense tensor on the CPU. It runs no code from the file, trusts no number in it, and raises
        WeightsError, with the path, for one that is damaged.
    settings: the path -> what the file says beside its tensors; None where the format has no place for it.
    """

    name: str
    recognises: Callable[[bytes], bool]
    read: Callable[[Path], Mapping[str, torch.Tensor]]
    settings: Callable[[Path], Mapping[str, Any]] | None = None


FORMATS = (
    WeightFormat("safetensors file", safetensors.is_safetensors, safetensors.read_tensors, safetensors.read_settings),
    WeightFormat(
        "torch checkpoint",
        torch_checkpoint.is_torch_checkpoint,
        torch_checkpoint.read_tensors,
        torch_checkpoint.read_settings,
    ),
    WeightFormat("GGUF file", gguf.is_gguf, gguf.read_tensors, gguf.read_settings),
    WeightFormat(
        "model.bin of CTranslate2", ctranslate2.is_ctranslate2, ctranslate2.read_tensors, ctranslate2.read_settings
    ),
)


def read_state_dict(path: Path, extra: Sequence[WeightFormat] = ()) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, a torch checkpoint (unpickled with `weights_only=True`), GGUF or CTranslate2's model.bin,
    told apart by content. Of a checkpoint that holds its tensors as `state_dict` or `model_state_dict`, those are meant.

    A quantised tensor of a GGUF file stands as its blocks, uint8[rows, row_bytes], under `<name>:<TYPE>`
    (`zoo.weights.formats.gguf_blocks.dequantise` takes them); a view of the mapped file, like all of that file's tensors.
    extra: more formats, of plugins. They are asked about a file that none of the core's own formats claims, never before.
    Raises WeightsError for anything else, for a file that two formats claim, for a checkpoint that inflates, and for one that
    holds more than tensors.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    own, _ = _claim(path, head, FORMATS)
    if own is not None:
        return dict(own.read(path))
    other, complaints = _claim(path, head, extra)
    if other is not None:
        return _read_extra(path, other)
    *names, last = (f"a {known.name}" for known in (*FORMATS, *extra))
    reasons = "; ".join((f"it begins with {head[:4]!r}", *complaints))
    raise WeightsError(f"{path} is neither {', '.join(names)} nor {last} ({reasons})")


def read_own_settings(path: Path) -> Mapping[str, Any]:
    """What a file of one of the core's own formats says beside its tensors; empty for any other."""
    with path.open("rb") as file:
        own, _ = _claim(path, file.read(HEAD_BYTES), FORMATS)
    return {} if own is None or own.settings is None else own.settings(path)


def _claim(path: Path, head: bytes, formats: Sequence[WeightFormat]) -> tuple[WeightFormat | None, list[str]]:
    """The one format that recognises the head, if any, and what went wrong with those that could not be asked.

    Raises WeightsError where two recognise it.
    """
    claims: list[WeightFormat] = []
    complaints: list[str] = []
    for candidate in formats:
        try:
            claimed = candidate.recognises(head)
        except Exception as error:  # noqa: BLE001 - one plugin that is broken must not stop the files of the others
            complaints.append(f"whether it is a {candidate.name} could not be asked: {type(error).__name__}: {error}")
            continue
        if claimed:
            claims.append(candidate)
    if len(claims) > 1:
        names = " and as ".join(f"a {claim.name}" for claim in claims)
        raise WeightsError(
            f"{path} is claimed as {names} (it begins with {head[:4]!r}): leave out the plugin that is wrong (zoo disable)"
        )
    return (claims[0] if claims else None), complaints


def _read_extra(path: Path, other: WeightFormat) -> dict[str, torch.Tensor]:
    """What a plugin's format makes of a file, held to what the core's own formats promise."""
    try:
        state = other.read(path)
    except ZooError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise WeightsError(f"{path} cannot be read as a {other.name} ({type(error).__name__}: {error})") from error
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"{path} must be read as a mapping of names to tensors, a {other.name} was {type(state).__name__}"
        )
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{path} must be read as names to tensors, a {other.name} has {key!r} as {type(value).__name__}"
            )
        if value.layout != torch.strided or value.device.type != "cpu":
            raise WeightsError(f"{path} must hold dense tensors on the CPU, got {key} as {value.layout} on {value.device}")
        if not value.is_contiguous():
            raise WeightsError(
                f"{path} must hold tensors whose numbers lie one after another, got {key} with strides {value.stride()}"
            )
    return dict(state)
