"""What is built: open_clip's configuration of a name, with the caller's changes, and the activation that the weights need."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zoo.api import UsageError
from zoo_clip.hub import need_hub_file
from zoo_clip.library import open_clip, process_as_found

# A tower that is not wanted, as small as open_clip builds one: its classes make both or none.
_NO_VISION = {"layers": 1, "width": 8, "head_width": 8, "patch_size": 1, "image_size": 1}
_NO_TEXT = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 1, "context_length": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The numbers of one dual encoder. vision and text are open_clip's `vision_cfg` and `text_cfg`."""

    name: str | None
    embedding_width: int
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    quick_gelu: bool
    bias: float | None


def architecture(
    *,
    arch: str | None,
    embedding_width: int | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
    trained_quick_gelu: bool | None = None,
    bias: float | None = None,
) -> Architecture:
    """open_clip's configuration called `arch` (none of them when None), with what else is given laid over it.

    Raises UsageError for a name that open_clip does not have, for no name and no numbers, and for an activation that
    contradicts the weights'.
    """
    config = _configuration(arch) if arch is not None else {"embed_dim": None, "vision_cfg": {}, "text_cfg": {}}
    width = embedding_width or config["embed_dim"]
    vision = {**config["vision_cfg"], **(vision or {})}
    text = {**config["text_cfg"], **(text or {})}
    if not width or not vision or not text:
        raise UsageError("without arch, the builder needs embedding_width, vision and text: open_clip's numbers for each")
    return Architecture(
        name=arch,
        embedding_width=width,
        vision=vision,
        text=text,
        quick_gelu=_activation(arch, quick_gelu, trained_quick_gelu, bool(config.get("quick_gelu", False))),
        bias=config.get("init_logit_bias") if bias is None else bias,
    )


def build_towers(design: Architecture, *, image: bool = True, text: bool = True) -> Any:
    """open_clip's own model, with random weights: `visual`, `text`, `logit_scale` and `logit_bias`.

    image, text: whether that tower is wanted; one that is not is a stump. CoCa's captioner is never built.
    Raises WeightsMissingError when the text tower is a Hugging Face model whose configuration cannot be had.
    """
    vision_cfg: dict[str, Any] = {**design.vision, "output_tokens": False} if image else _NO_VISION
    text_cfg: dict[str, Any] = {**design.text, "output_tokens": False} if text else _NO_TEXT
    if "timm_model_name" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False  # the card's weights hold all of the tower
    if "hf_model_name" in text_cfg:
        text_cfg |= {"hf_model_pretrained": False, "output_tokens": True}
        need_hub_file(text_cfg["hf_model_name"], "config.json", wanted_by=f"the text tower of {design.name}")
    # open_clip has three classes of model; this one has the towers of all three.
    model: nn.Module = open_clip.CustomTextCLIP(
        embed_dim=design.embedding_width,
        vision_cfg=vision_cfg,
        text_cfg=text_cfg,
        quick_gelu=design.quick_gelu,
        init_logit_bias=design.bias,
    )
    return model


def check_image_size(design: Architecture, preprocess: Mapping[str, Any]) -> None:
    """Raise UsageError when preprocessing makes images of another size than the tower takes."""
    size = design.vision.get("image_size", 224)
    if preprocess["size"] != size:
        raise UsageError(
            f"preprocess makes images of {preprocess['size']} pixels and the image tower takes {size}: "
            f"give both preprocess and vision={{'image_size': ...}} the same size"
        )


def _configuration(arch: str) -> dict[str, Any]:
    with process_as_found():
        config: dict[str, Any] | None = open_clip.get_model_config(arch)
    if config is None:
        near = difflib.get_close_matches(arch, open_clip.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "zoo list 'clip/*' shows what there is"
        raise UsageError(f"open_clip {open_clip.__version__} has no architecture {arch!r}; {hint}")
    return config


def _activation(arch: str | None, wanted: bool | None, trained: bool | None, configured: bool) -> bool:
    """QuickGELU or GELU: what the weights were trained with, else what the caller says, else the architecture's own."""
    if wanted is not None and trained is not None and wanted != trained:
        names = {True: "QuickGELU", False: "GELU"}
        raise UsageError(
            f"quick_gelu={wanted} asks for {names[wanted]}, but these weights of {arch} were trained with {names[trained]} "
            f"(trained_quick_gelu={trained}): leave quick_gelu out, or, for weights of your own that were trained "
            f"otherwise, give trained_quick_gelu={wanted}"
        )
    if trained is not None:
        return trained
    return configured if wanted is None else wanted
