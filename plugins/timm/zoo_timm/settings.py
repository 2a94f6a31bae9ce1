"""The `config.json` that timm saves beside a model, as arguments of the builder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import get_arch_name

from zoo.api import WeightsError, settings_of
from zoo_timm.family import RESIZE, preprocess_of


def from_config(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Number of outputs and preparation of images that the file beside the weights says; empty where there is none, or not timm's.

    Raises WeightsError for another architecture, arguments of it that are not known here, and a preparation that the zoo has not.
    """
    said = settings_of(path, beside="config.json")
    if "architecture" not in said:
        return {}
    origin = path.parent / "config.json"
    architecture = said["architecture"]
    if not isinstance(architecture, str) or get_arch_name(architecture) != arguments["arch"]:
        raise WeightsError(
            f"{origin} is that of another model: architecture is {architecture!r:.80}, the model is {arguments['arch']!r}"
        )
    if said.get("model_args"):
        raise WeightsError(
            f"{origin} has model_args={said['model_args']!r:.120}, which are not known here: the model would be another"
        )
    changed: dict[str, Any] = {}
    outputs = said.get("num_classes")
    if type(outputs) is int and outputs >= 0:  # the tensors say whether it is so
        changed = {"num_classes": outputs} if outputs != arguments.get("num_classes") else {}
    prepared = said.get("pretrained_cfg")
    if isinstance(prepared, Mapping) and prepared.keys() & {
        "input_size",
        "mean",
        "std",
        "interpolation",
        "crop_pct",
        "crop_mode",
    }:
        changed |= _preparation(prepared, arguments, origin)
    return changed


def _preparation(prepared: Mapping[str, Any], arguments: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    try:
        size = prepared.get("input_size", (3, 224, 224))
        if prepared.get("crop_mode", "center") not in RESIZE or size[0] != 3 or size[1] != size[2]:
            raise ValueError
        numbers = preprocess_of(prepared)
        if (
            not all(isinstance(number, float) for name in ("mean", "std") for number in numbers[name])
            or not 0 < numbers["crop"] < 9
        ):
            raise ValueError
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise WeightsError(f"{origin} prepares images in a way that is not known here: {dict(prepared)!r:.200}") from error
    return {} if numbers == dict(arguments.get("preprocess", {})) else {"preprocess": numbers}
