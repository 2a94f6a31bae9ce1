"""What a composition is made of: names -> a recipe, a recipe -> its bridges and its senses. `zoo.models.composition` puts them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zoo.errors import PluginError, ResolutionError, UsageError
from zoo.models.build import Built, open_model
from zoo.models.drawn import saved_numbers, snapshot, snapshot_sha256
from zoo.models.fusion.sense import Sense
from zoo.models.recipe import Recipe, SenseRecipe, recipe_of
from zoo.nn.attention import Attention
from zoo.nn.feed_forward import Dense
from zoo.nn.gated_cross_attention import GatedCrossAttention
from zoo.registry.lookup import default_registry
from zoo.registry.plugin import describe


def recipe_of_names(
    decoder: str | None,
    encoders: Mapping[str, str] | None,
    bridge: str | Mapping[str, str] | None,
    fields: Mapping[str, Any],
) -> Recipe:
    """Names of a decoder, of an encoder for each modality and of bridges, and the other fields of every sense -> the recipe.

    Raises UsageError for what is missing, and as `zoo.models.recipe.recipe_of`.
    """
    if encoders is not None and not isinstance(encoders, Mapping):
        raise UsageError(f'encoders are given for each modality, {{"image": NAME}}, got {encoders!r:.60}')
    if decoder is None or not encoders or bridge is None:
        raise UsageError(
            'a composition needs a decoder, encoders and a bridge: zoo.compose(decoder=NAME, encoders={"image": NAME}, bridge=NAME); '
            "zoo list --kind decoder, --kind encoder and --kind bridge show what there is"
        )
    bridges = bridge if isinstance(bridge, Mapping) else dict.fromkeys(encoders, bridge)
    lacking = [modality for modality in encoders if modality not in bridges]
    if lacking:
        raise UsageError(f"bridge names none for {lacking[0]}: it has {', '.join(bridges)}")
    senses = {
        modality: {"encoder": encoder, "bridge": bridges[modality], **fields} for modality, encoder in encoders.items()
    }
    return recipe_of({"recipe": 1, "decoder": decoder, "senses": senses}, "the composition")


def look_up(recipe: Recipe) -> None:
    """Every part is found and of its kind before any is built. Raises UsageError and ResolutionError."""
    registry = default_registry()
    parts = [("decoder", recipe.decoder, "decoder")]
    for modality, sense in recipe.senses.items():
        parts += [
            (f"senses.{modality}.encoder", sense.encoder, "encoder"),
            (f"senses.{modality}.bridge", sense.bridge, "bridge"),
        ]
    for where, name, kind in parts:
        try:
            card = registry.find(name).card
        except (ResolutionError, PluginError) as error:
            wanted = f"; the recipe was saved with {', '.join(recipe.requires)}: zoo install {' '.join(recipe.requires)}"
            raise type(error)(f"{where}: {error}{wanted if recipe.requires else ''}") from error
        if card.kind != kind:
            raise UsageError(f"{where} must be of kind {kind}, {card.name} is of kind {card.kind}: zoo list --kind {kind}")
        modality = where.split(".")[1] if kind == "encoder" else ""
        reads = {modality, "image"} if modality == "video" else {modality}
        if modality and not reads & set(card.modalities):
            raise UsageError(
                f"{where} must read {modality}, {card.name} reads {'+'.join(card.modalities)}: zoo list --modality {modality}"
            )


def open_bridge(
    sense: SenseRecipe, encoder: Built, modality: str, language: Any, device: str, dtype: torch.dtype | None
) -> Built:
    """A bridge with new numbers, between an encoder's features and the decoder.

    language: the decoder. Raises UsageError for widths that do not fit and PluginError for a card or a bridge that does not say its own.
    """
    card = encoder.found.card
    width = card.tokens.get("width")
    if width is None:
        raise PluginError(
            f"{describe(card.provider)}: the card of {card.name} does not say how wide its tokens are (tokens.width)"
        )
    taken = sorted(sense.bridge_arguments.keys() & {"name", "weights", "device", "dtype", "registry"})
    if taken:
        raise UsageError(f"bridge_arguments are arguments of the bridge's builder, {taken[0]} is none")
    arguments: dict[str, Any] = {"input_width": width, **sense.bridge_arguments}
    if sense.fusion == "spliced":
        arguments.setdefault("output_width", language.width)
    built = open_model(sense.bridge, weights=None, device=device, dtype=dtype, **arguments)
    output_width = getattr(built.module, "output_width", None)
    if not isinstance(output_width, int):
        raise PluginError(
            f"{describe(built.found.card.provider)}: {sense.bridge} does not say its output_width (zoo.api.Bridge)"
        )
    if arguments["input_width"] != width:
        raise UsageError(
            f"{sense.bridge} is built for features {arguments['input_width']} wide, {card.name} gives {width}: leave out input_width"
        )
    if sense.fusion == "spliced" and output_width != language.width:
        raise UsageError(
            f"{sense.bridge} gives latents {output_width} wide, and among the tokens of the decoder they must be {language.width} wide: "
            f'set output_width = {language.width}, or fusion = "gated"'
        )
    return replace(built, name=f"{built.name} ({modality} bridge)")


def gated_part(sense: Sense, bridge: Built, modality: str) -> Built:
    """The gated layers of a sense, which are drawn: a part as its bridge is."""
    drawn = snapshot(saved_numbers(sense.gated))
    return replace(
        bridge, module=sense.gated, name=f"{modality} gated layers", identity=snapshot_sha256(drawn), opened=drawn, parts={}
    )


def kept_part(part: Built, sha256: str, *, drawn: bool) -> Built:
    """A part whose numbers lie in the file of that sha256 beside a recipe, with which it was just filled. drawn: they were never trained."""
    parameters = snapshot(saved_numbers(part.module), hashed=drawn)
    files = part.files if drawn else {**part.files, "model": sha256}
    return replace(part, identity=f"{sha256} {part.name}", files=files, opened=parameters, parts={})


def make_sense(
    sense: SenseRecipe, built: Mapping[str, Built], modality: str, language: Any, device: str, dtype: torch.dtype | None
) -> Sense:
    """The sense of a modality of its built encoder and bridge, with gated layers before layers of the decoder where it has some.

    Raises UsageError for a decoder with fewer layers than `every`.
    """
    bridge: Any = built[f"{modality}.bridge"].module
    layers = {}
    if sense.fusion == "gated":
        for layer in range(sense.every - 1, language.layers, sense.every):
            layers[layer] = gated_layer(
                language.width,
                bridge.output_width,
                heads=sense.heads,
                head_width=sense.head_width,
                hidden_factor=sense.hidden_factor,
                gate=sense.gate,
                feeds_all=sense.feeds_all,
            ).to(device=device, dtype=dtype)
        if not layers:
            raise UsageError(
                f"senses.{modality}: every = {sense.every} (--every), and the decoder has {language.layers} layers: take at most so many"
            )
    return Sense(
        encoder=frozen(built[f"{modality}.encoder"].module),
        bridge=bridge.requires_grad_(True),
        layers=layers,
        adjacent=sense.adjacent,
        marker=sense.marker or f"<{modality}>",
    )


def gated_layer(
    width: int, source_width: int, *, heads: int, head_width: int, hidden_factor: int, gate: float, feeds_all: bool
) -> GatedCrossAttention:
    """Flamingo's block as OpenFlamingo builds it: layer norms, projections without biases, GELU."""
    return GatedCrossAttention(
        attention_norm=nn.LayerNorm(width),
        attention=Attention(width, heads=heads, head_width=head_width, source_width=source_width),
        feed_forward_norm=nn.LayerNorm(width),
        feed_forward=Dense(width, hidden_factor * width, bias=False),
        gate=gate,
        feeds_all=feeds_all,
    )


def frozen(module: nn.Module) -> nn.Module:
    """The same module, to be evaluated and not trained."""
    return module.requires_grad_(False).eval()


def every_argument(sense: SenseRecipe, bridge: Built) -> dict[str, Any]:
    """The bridge's arguments, those of its card included, so that a later card changes nothing."""
    module: Any = bridge.module
    width = {"output_width": module.output_width} if sense.fusion == "spliced" else {}
    arguments = {**bridge.found.card.variant, **sense.bridge_arguments, **width}
    return {name: value for name, value in arguments.items() if name != "input_width"}
