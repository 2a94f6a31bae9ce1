"""open_clip's own registry as cards."""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from zoo.api import MODEL_NAME
from zoo_clip.library import open_clip, process_as_found

SAFE_NAME = "open_clip_model.safetensors"
PICKLED_NAME = "open_clip_pytorch_model.bin"
PAPER = "https://arxiv.org/abs/2103.00020"

# Licences that the publishers state for all of their weights under these tags or repositories; None is stated for the others.
_LICENCES = (
    (r"laion/.*", r".*", "MIT"),
    (r".*", r"openai", "MIT"),
    (r".*", r"webli", "Apache-2.0"),
    (r".*", r"metaclip_.*", "CC-BY-NC-4.0"),
)

# The weights whose cosines LAION's thresholds are about.
_SCORE_SCALES = {("ViT-B-32", "openai"): "laion-english"}


def family(pattern: str) -> Iterator[dict[str, Any]]:
    """Cards of the architectures whose name, or name with -image or -text, matches a shell-style pattern.

    An architecture whose name no card may have is left out (open_clip 3.3 has none): an alias would be a name that
    open_clip's documentation does not know.
    """
    tags: dict[str, list[str]] = {}
    for arch, tag in open_clip.list_pretrained():
        tags.setdefault(arch, []).append(tag)
    names = [arch for arch in open_clip.list_models() if MODEL_NAME.fullmatch(arch)]
    for arch in names:
        for suffix, card in (("", _dual_card), ("-image", _image_card), ("-text", _text_card)):
            name = arch + suffix
            if fnmatchcase(name, pattern) and (not suffix or name not in names):
                with process_as_found():
                    config = open_clip.get_model_config(arch)
                rows = [row for tag in tags.get(arch, []) if (row := _weights(arch, tag, config)) is not None]
                yield card(name, arch, config, _own_activation_first(rows, config))


def _dual_card(name: str, arch: str, config: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **_card(name, arch, config, rows, builder="zoo_clip.dual:dual_encoder", keys="zoo_clip.keys:dual_encoder"),
        "kind": "dual_encoder",
        "modalities": ["image", "text"],
        "keep_float32": ["temperature"],
        "preprocess": _shared(rows, config),
        "summary": f"open_clip {arch}",
    }


def _image_card(name: str, arch: str, config: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = _image_tokens(config["vision_cfg"])
    return {
        **_card(name, arch, config, rows, builder="zoo_clip.towers:image_tower", keys="zoo_clip.keys:image_tower"),
        "kind": "encoder",
        "modalities": ["image"],
        "preprocess": _shared(rows, config),
        **({"tokens": tokens} if tokens else {}),
        "summary": f"image tower of open_clip {arch}: patch tokens and the embedding",
    }


def _text_card(name: str, arch: str, config: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    text = config["text_cfg"]
    count = text.get("context_length", 77) if text.get("no_causal_mask") else 0
    return {
        **_card(name, arch, config, rows, builder="zoo_clip.towers:text_tower", keys="zoo_clip.keys:text_tower"),
        "kind": "encoder",
        "modalities": ["text"],
        "weights": [
            {**{key: row[key] for key in row if key != "preprocess"}, "keys": "zoo_clip.keys:text_tower"} for row in rows
        ],
        **({"tokens": {"count": count, "width": text["width"]}} if "width" in text else {}),
        "summary": f"text tower of open_clip {arch}: one token for each word piece and the embedding",
    }


def _card(
    name: str, arch: str, config: Mapping[str, Any], rows: list[dict[str, Any]], *, builder: str, keys: str
) -> dict[str, Any]:
    return {
        "name": name,
        "build": builder,
        "variant": {"arch": arch},
        "weights": [{**row, "keys": keys} for row in rows],
        "keys": keys,
        "settings": keys.replace("zoo_clip.keys:", "zoo_clip.settings:"),
        "embedding_width": config["embed_dim"],
        "paper": PAPER,
    }


def _weights(arch: str, tag: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """One row; None for a tag without a source that delivers tensors alone.

    open_clip pins the first eight digits of some hashes, of files that it takes from the hub by preference: the rows carry
    no sha256, so the one seen at the first download is kept and required from then on.
    """
    entry = open_clip.get_pretrained_cfg(arch, tag)
    sources = _sources(entry)
    if not sources or not MODEL_NAME.fullmatch(tag):
        return None
    repository = entry.get("hf_hub", "")
    licence = next(
        (name for place, label, name in _LICENCES if re.fullmatch(place, repository) and re.fullmatch(label, tag)), ""
    )
    # Where a tag says nothing, the weights were trained as the architecture's own file says.
    trained = bool(entry.get("quick_gelu", config.get("quick_gelu", False)))
    return {
        "tag": tag,
        "licence": licence,
        "variant": {"trained_quick_gelu": trained},
        "preprocess": _preprocess(entry, config),
        "file": [{"role": "model", "sources": sources}],
        **({"score_scale": scale} if (scale := _SCORE_SCALES.get((arch.removesuffix("-quickgelu"), tag))) else {}),
    }


def _sources(entry: Mapping[str, Any]) -> list[str]:
    """The hub's files, safetensors first; then a released file. OpenAI's own files are programs, which the zoo does not run."""
    owner, _, rest = entry.get("hf_hub", "").partition("/")
    repository, _, filename = rest.partition("/")
    names: list[str] = []
    if repository:
        stem, dot, ending = filename.rpartition(".")
        safe = f"{stem}.safetensors" if dot and ending in ("bin", "pth") else ""
        names = [name for name in (safe, filename) if name] if filename else [SAFE_NAME, PICKLED_NAME]
    sources = [f"hf:{owner}/{repository}@main/{name}" for name in names]
    url = entry.get("url", "")
    return sources + ([url] if url.startswith("https:") and "openaipublic" not in url else [])


def _own_activation_first(rows: list[dict[str, Any]], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first row is what a name without a tag means: `ViT-B-32` is a GELU model in open_clip, so a GELU tag comes first."""
    own = bool(config.get("quick_gelu", False))
    return sorted(rows, key=lambda row: row["variant"]["trained_quick_gelu"] != own)


def _preprocess(entry: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of `zoo.api.to_pixels`; open_clip's defaults where the tag says nothing."""
    size = config["vision_cfg"].get("image_size", 224)
    return {
        "size": size if isinstance(size, int) else size[0],
        "crop": 1.0,
        "resize": entry.get("resize_mode", "shortest"),
        "fill": 0,
        "interpolation": entry.get("interpolation", "bicubic"),
        "mean": list(entry.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        "std": list(entry.get("std", open_clip.OPENAI_DATASET_STD)),
    }


def _shared(rows: list[dict[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """How images are prepared for weights of one's own: as for all published ones where those agree (SigLIP), else as open_clip does."""
    own = _preprocess({}, config)
    return next((row["preprocess"] for row in rows if all(row["preprocess"] == other["preprocess"] for other in rows)), own)


def _image_tokens(vision: Mapping[str, Any]) -> dict[str, int] | None:
    """Count and width where open_clip's own numbers say them; timm's would have to be built to know."""
    if "timm_model_name" in vision:
        return None
    size, width = vision["image_size"], vision["width"]
    if isinstance(vision["layers"], list):
        return {"count": (size // 32) ** 2, "width": width * 32}
    return {"count": (size // vision["patch_size"]) ** 2, "width": width}
