"""The `open_clip_config.json` beside the weights of a dual encoder, as arguments of the builders."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.api import WeightsError, arguments_from, settings_of
from zoo_clip.architecture import architecture
from zoo_clip.library import CLIPTextCfg, CLIPVisionCfg

FILE = "open_clip_config.json"
IGNORED = {
    "timm_model_pretrained",
    "hf_model_pretrained",
    "output_tokens",
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
}  # of training alone
PREPARED = ("mean", "std", "interpolation", "resize_mode")


def dual_encoder(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Activation and preparation that the file says. Raises WeightsError for other towers than the model's, naming what differs."""
    return _settings(path, arguments, ("vision", "text"))


def image_tower(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As `dual_encoder`, of the image tower alone."""
    return _settings(path, arguments, ("vision",))


def text_tower(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As `dual_encoder`, of the text tower alone."""
    return _settings(path, arguments, ("text",))


def _settings(path: Path, arguments: Mapping[str, Any], towers: tuple[str, ...]) -> dict[str, Any]:
    said = settings_of(path, beside=FILE)
    if not said:
        return {}
    origin = path.parent / FILE
    model, prepared = (_table(said, name, origin) for name in ("model_cfg", "preprocess_cfg"))
    own = architecture(**{"vision": {"width": 1}, "text": {"width": 1}, **_of_design(arguments)})
    for tower in towers:
        described = _table(model, f"{tower}_cfg", origin)
        if described:
            theirs, ours = (_filled(tower, table, origin) for table in (described, getattr(own, tower)))
            names = {name: name for name in theirs if name not in IGNORED}
            arguments_from(theirs, ours, origin=f"{origin}: {tower}_cfg", same=names)
            lost = [name for name in names if theirs[name] is None and ours[name] is not None]
            if lost:
                raise WeightsError(
                    f"{origin} is the file of another model: {tower}_cfg has no {', '.join(lost)}, the model has"
                )
    arguments_from(model, {"embed_dim": own.embedding_width}, origin=origin, same={"embed_dim": "embed_dim"})
    changed: dict[str, Any] = {}
    if model:
        activation = model.get("quick_gelu", False)
        if not isinstance(activation, bool):
            raise WeightsError(f"{origin} must have true or false as quick_gelu, got {activation!r:.40}")
        if activation != own.quick_gelu:
            changed["trained_quick_gelu"] = activation
    return changed | (_preparation(prepared, arguments, origin) if "preprocess" in arguments else {})


def _of_design(arguments: Mapping[str, Any]) -> dict[str, Any]:
    names = ("arch", "embedding_width", "vision", "text", "quick_gelu", "trained_quick_gelu")
    given = {name: arguments[name] for name in names if arguments.get(name) is not None}
    return {
        **given,
        **({name: given.get(name) for name in ("vision", "text")} if "arch" in given else {}),
        "arch": given.get("arch"),
    }


def _preparation(prepared: Mapping[str, Any], arguments: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    numbers = dict(arguments["preprocess"])
    arguments_from(prepared, {}, origin=origin, only={"mode": "RGB", "fill_color": 0, "resize_mode": ("shortest", "longest", "squash"),
                                                      "interpolation": ("bicubic", "bilinear")})  # fmt: skip
    for name in PREPARED:
        value = prepared.get(name)
        if value is None:
            continue
        if name in ("mean", "std") and not (
            isinstance(value, list)
            and len(value) == 3
            and all(type(one) in (int, float) and abs(one) < 1e3 for one in value)
        ):
            raise WeightsError(f"{origin} must have three numbers as {name}, got {value!r:.60}")
        numbers["resize" if name == "resize_mode" else name] = value
    same = all(numbers[name] == arguments["preprocess"].get(name) for name in numbers)
    return {} if same else {"preprocess": numbers}


def _table(said: Mapping[str, Any], name: str, origin: Path) -> Mapping[str, Any]:
    table = said.get(name) or {}
    if not isinstance(table, Mapping):
        raise WeightsError(f"{origin} must have an object as {name}, got {table!r:.60}")
    return table


def _filled(tower: str, table: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """Every number of a tower, open_clip's own where the table does not say it."""
    try:
        return asdict(CLIPVisionCfg(**table)) if tower == "vision" else asdict(CLIPTextCfg(**table))
    except TypeError as error:
        raise WeightsError(f"{origin}: {tower}_cfg is not one of open_clip {error}") from error
