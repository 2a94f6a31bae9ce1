"""OpenFlamingo's checkpoints (open_flamingo 2.0.1, `filter_state_dict_to_trainable`): the resampler, the gated layers, the embedding.

A checkpoint holds what was trained, under these names:

    perceiver.latents, perceiver.layers.0.0.to_q.weight, ...                        the resampler
    lang_encoder.transformer.blocks.3.gated_cross_attn_layer.attn.to_q.weight, ...  the gated layer before layer 3 of the decoder
                                                                                    (`model.layers`, `gpt_neox.layers` likewise)
    lang_encoder.transformer.wte.weight (model.embed_tokens, gpt_neox.embed_in)     the embedding, with its media tokens

A whole state dict has the gated layers a second time, as `lang_encoder.gated_cross_attn_layers.3....`; twice, they must be equal.
What training saves has all this under `model_state_dict`, beside the optimiser's state: save that part by itself first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.api import Fused, StateMismatchError, UsageError, load_strict, read_state_dict, refuse_nonfinite
from zoo_perceiver import renaming
from zoo_perceiver.resampler import from_open_flamingo

NAMES = {
    "gated.*.attn.norm": "gated.*.attention_norm",
    "gated.*.attn.to_q": "gated.*.attention.query",
    "gated.*.attn.to_k": "gated.*.attention.key",
    "gated.*.attn.to_v": "gated.*.attention.value",
    "gated.*.attn.to_out": "gated.*.attention.output",
    "gated.*.attn_gate": "gated.*.attention_gate",
    "gated.*.ff.0": "gated.*.feed_forward_norm",
    "gated.*.ff.1": "gated.*.feed_forward.up",
    "gated.*.ff.3": "gated.*.feed_forward.down",
    "gated.*.ff_gate": "gated.*.feed_forward_gate",
}
GATED = re.compile(r"lang_encoder\.(?:gated_cross_attn_layers\.(\d+)|[\w.]+\.(\d+)\.gated_cross_attn_layer)\.(.+)")
EMBEDDINGS = ("transformer.wte.weight", "model.embed_tokens.weight", "gpt_neox.embed_in.weight")
JOINED = "attn.to_kv.weight"


def from_checkpoint(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's names -> `bridge.` and `gated.` of a sense, and `embedding.weight` of the decoder where it is there.

    What is not known is passed on, for a strict load to show. Raises StateMismatchError for a layer that is there twice and differs.
    """
    found: dict[str, torch.Tensor] = {}
    gated: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        matched = GATED.fullmatch(key)
        if key.startswith("perceiver."):
            continue
        if matched is not None:
            _keep(gated, f"gated.{matched[1] or matched[2]}.{matched[3]}", tensor, key)
        elif key.removeprefix("lang_encoder.") in EMBEDDINGS:
            found["embedding.weight"] = tensor
        else:
            found[key] = tensor
    for key in [key for key in gated if key.endswith(JOINED)]:
        stem = key.removesuffix("to_kv.weight")
        gated[f"{stem}to_k.weight"], gated[f"{stem}to_v.weight"] = gated.pop(key).chunk(2)
    resampler = {key: tensor for key, tensor in state.items() if key.startswith("perceiver.")}
    found |= {f"bridge.{name}": tensor for name, tensor in from_open_flamingo(resampler).items()}
    return found | renaming.rename(gated, NAMES)


def load_checkpoint(model: Fused, path: Path, *, modality: str = "image") -> None:
    """Load an OpenFlamingo checkpoint into the sense of a composition: every tensor of its bridge and its gated layers, and no other.

    model: composed as the checkpoint was: its decoder, "perceiver/resampler" over features of the same width, and
        `heads=8, head_width=64, feeds_all=True`. An embedding in the file must be as large as the decoder's.
    Raises StateMismatchError with what is missing, unknown or of another shape, WeightsError for a file that cannot be read.
    """
    sense: Any = dict(model.senses.items()).get(modality)
    if sense is None or sense.spliced:
        raise UsageError(
            f"a checkpoint of OpenFlamingo is for a model with a gated sense for {modality}: compose one first"
        )
    state = from_checkpoint(read_state_dict(path))
    refuse_nonfinite(state, str(path))
    parts: dict[str, nn.Module] = {"bridge": sense.bridge, "gated": sense.gated}
    if "embedding.weight" in state:
        parts["embedding"] = model.decoder.embedding
    load_strict(nn.ModuleDict(parts), state, str(path))


def _keep(gated: dict[str, torch.Tensor], name: str, tensor: torch.Tensor, key: str) -> None:
    if name in gated and not torch.equal(gated[name], tensor):
        raise StateMismatchError(f"{key} stands twice in the checkpoint, and the two differ")
    gated[name] = tensor
