"""timm's own registry as cards."""

from collections.abc import Iterator, Mapping
from typing import Any

import timm
from timm.data import infer_imagenet_subset, resolve_data_config
from timm.models import get_pretrained_cfg

# timm's crop modes that the zoo has too; weights trained with another one, or on images that are not square, get no row.
RESIZE = {"center": "shortest", "squash": "squash"}


def family(pattern: str) -> Iterator[dict[str, Any]]:
    """Cards of the architectures whose name matches a shell-style pattern; weights come from the Hugging Face hub.

    The first row is that of timm's default tag, which `timm.create_model` means by a name without a tag; the card's own numbers are its.
    The hub's files are not pinned by timm, so the rows carry no sha256: the hash seen at the first download is kept.
    """
    tags: dict[str, list[str]] = {}
    for name in timm.list_pretrained(f"{pattern}.*") + timm.list_pretrained(pattern):
        arch, _, tag = name.partition(".")
        tags.setdefault(arch, []).append(tag)
    for arch in timm.list_models(pattern):
        first = get_pretrained_cfg(arch)
        default = first.tag if first else None
        ordered = sorted(dict.fromkeys(tags.get(arch, [])), key=lambda tag: tag != (default or ""))
        rows = [row for tag in ordered if (row := _weights(arch, tag)) is not None]
        classes = _classes(first.num_classes) if first else 0
        yield {
            "name": arch,
            "kind": "encoder",
            "modalities": ["image"],
            "build": "zoo_timm.encoders:image_encoder",
            "variant": {"arch": arch},
            **({"classes": classes} if classes else {}),
            "settings": "zoo_timm.settings:from_config",
            **({"preprocess": preprocess_of(first.to_dict())} if first and is_known(first) else {}),
            "weights": rows,
            "summary": f"timm {arch}",
        }


def _weights(arch: str, tag: str) -> dict[str, Any] | None:
    config = get_pretrained_cfg(f"{arch}.{tag}" if tag else arch)
    if config is None or not config.hf_hub_id:
        return None
    if not is_known(config):
        return None
    repository = config.hf_hub_id
    if repository.endswith("/"):
        repository += f"{arch}.{tag}"
    filename = config.hf_hub_filename or "model.safetensors"
    return {
        "tag": tag or "default",
        "licence": config.license or "",
        "keys": "zoo_timm.keys:from_timm",
        "variant": {"num_classes": config.num_classes},
        "classes": _classes(config.num_classes),
        "preprocess": preprocess_of(config.to_dict()),
        "file": [{"role": "model", "sources": [f"hf:{repository}@main/{filename}"]}],
    }


def _classes(outputs: int) -> int:
    """Outputs whose classes have names; 0 for a projection (CLIP's towers, say), whose coordinates are no classes."""
    return outputs if infer_imagenet_subset({"num_classes": outputs}) else 0


def is_known(config: Any) -> bool:
    """Whether images are prepared for it in a way that the zoo has, too."""
    return config.crop_mode in RESIZE and config.input_size[1] == config.input_size[2]


def preprocess_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of timm -> those of `zoo.api.to_pixels`; timm's defaults where it says nothing."""
    resolved = resolve_data_config(pretrained_cfg=dict(config))
    return {
        "resize": RESIZE[resolved["crop_mode"]],
        "size": resolved["input_size"][1],
        "crop": resolved["crop_pct"],
        "interpolation": resolved["interpolation"],
        "mean": list(resolved["mean"]),
        "std": list(resolved["std"]),
    }
