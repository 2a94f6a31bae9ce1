"""What holds for every encoder and every bridge in a fused model: media reach the answer, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

from zoo.decoding.generation import generate
from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.prompt import Prompt
from zoo.models.build import open_model
from zoo.models.encoded import Encoded
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import Item, Placed, key_of
from zoo.models.fusion.sense import Sense
from zoo.nn.attention import Attention
from zoo.nn.block import Block
from zoo.nn.decoder import Decoder
from zoo.nn.feed_forward import Dense, Gated
from zoo.nn.gated_cross_attention import GatedCrossAttention
from zoo.nn.norm import RMSNorm
from zoo.nn.positions import Rotary
from zoo.nn.stack import Stack
from zoo.registry.modality import AUDIO, IMAGE
from zoo.testing.check import FEATURES, SEED, CheckFailed, CheckSkipped, Subject, check
from zoo.testing.samples import ordinary, uneven

FUSABLE = ("encoder", "bridge")
FRAMES = 2
TOLERANCE = 1e-4  # of the largest logit
WIDTH, CONTEXT, VOCABULARY = 32, 4096, 64
OTHER_WIDTH, OTHER_OUTPUT = 24, 40
MODALITY = "media"


@check(
    "fusion",
    "Its latents are as wide as it says, for features of any width, with a mask; padding stays behind it.",
    kinds=("bridge",),
)
def latents_are_as_promised(subject: Subject) -> None:
    other = open_model(
        subject.name_to_open, weights=None, registry=subject.registry, input_width=OTHER_WIDTH, output_width=OTHER_OUTPUT
    ).module
    for module, width, output in ((subject.module, bridge_width(subject), None), (other, OTHER_WIDTH, OTHER_OUTPUT)):
        encoded = features_of(module, ordinary(FEATURES), width)
        with torch.inference_mode():
            latents, mask = module(encoded)
        if output is not None and module.output_width != output:
            raise CheckFailed(f"built with output_width = {output} it says output_width = {module.output_width}")
        wanted = [3, latents.shape[1] if latents.ndim == 3 else -1, module.output_width]
        if list(latents.shape) != wanted or mask.dtype != torch.bool or list(mask.shape) != wanted[:2]:
            raise CheckFailed(
                f"latents are {latents.dtype}{list(latents.shape)} and the mask {mask.dtype}{list(mask.shape)}, "
                f"expected float[3, L, {module.output_width}] and bool[3, L]"
            )
    _padding_stays_behind(subject.module, bridge_width(subject))


def _padding_stays_behind(module: Any, width: int) -> None:
    for frames in (1, FRAMES):
        together = features_of(module, uneven(FEATURES), width)
        with torch.inference_mode():
            latents, mask = module(together, frames=frames) if frames == 1 else module(_framed(together), frames=frames)
        for row, item in enumerate(uneven(FEATURES)):
            alone = features_of(module, [item], width)
            with torch.inference_mode():
                single, single_mask = module(alone, frames=frames) if frames == 1 else module(_framed(alone), frames=frames)
            found, expected = latents[row][mask[row]].float(), single[0][single_mask[0]].float()
            if found.shape != expected.shape:
                raise CheckFailed(f"item {row} has {len(found)} real latents beside longer ones, alone {len(expected)}")
            _near(found, expected, f"the latents of item {row} beside longer ones ({frames} frames) and alone")
    nothing = features_of(module, ordinary(FEATURES), width)
    nothing = Encoded(nothing.tokens_BTD, torch.zeros_like(nothing.mask_BT), nothing.pooled_BD)
    with torch.inference_mode():
        if not bool(module(nothing)[0].isfinite().all()):
            raise CheckFailed("an item of nothing but padding gives NaN or infinity")


def _framed(encoded: Encoded) -> Encoded:
    """The same features as FRAMES frames, each padded alike."""
    tokens, mask = encoded.tokens_BTD, encoded.mask_BT
    return Encoded(torch.cat([tokens] * FRAMES, 1), torch.cat([mask] * FRAMES, 1), encoded.pooled_BD)


@check("fusion", "Behind gates at zero the decoder answers as without it, to the bit.", kinds=FUSABLE)
def gates_at_zero_change_nothing(subject: Subject) -> None:
    model, prompts = _fused(subject, gate=0.0), _prompts(subject)
    for row in prompts:
        with torch.inference_mode():
            fused, alone = model(torch.tensor([row.ids]), media=[row.media]), model.decoder(torch.tensor([row.ids]))
        if not torch.equal(fused, alone):
            raise CheckFailed("the logits differ from the decoder's alone (does it give NaN or infinity?)")


@check("fusion", "In a fused model only what stands after an item changes with it.", kinds=FUSABLE)
def media_change_what_comes_after_them(subject: Subject) -> None:
    for gate in (1.0, None):
        model = _fused(subject, gate=gate)
        with torch.inference_mode():
            first, other = (_logits(model, row) for row in _swapped(model, subject))
        place = first[1]
        _near(other[0][:place], first[0][:place], f"{_how(gate)}: tokens before an item, with it and with another")
        if torch.equal(first[0][place:], other[0][place:]):
            raise CheckFailed(f"{_how(gate)}: another item changes no logit after it")


@check(
    "fusion",
    "Cached equals uncached, a second asking equals the first, and a batch of ragged media equals singles.",
    kinds=FUSABLE,
)
def cache_and_batch_change_no_answer(subject: Subject) -> None:
    for gate in (1.0, None):
        model = _fused(subject, gate=gate)
        rows = _laid_out(model, _prompts(subject))
        with torch.inference_mode():
            whole = [_logits(model, (row, 0))[0] for row in rows]
            for row, expected in zip(rows, whole, strict=True):
                cache, found = model.new_cache(1, len(row)), []
                for start, end in ((0, len(row) - 2), (len(row) - 2, len(row))):
                    media = [placed for placed in row.after(start).media if start == 0]
                    found.append(model(torch.tensor([row.ids[start:end]]), cache=cache, media=[media]))
                _near(torch.cat(found, 1)[0], expected, f"{_how(gate)}: read in two pieces and at once")
        kept = PrefixCache()
        together = generate(model, rows, max_tokens=3, prefixes=kept)
        again = generate(model, rows, max_tokens=3, prefixes=kept)
        singles = [answer for row in rows for answer in generate(model, [row], max_tokens=3)]
        if not together == again == singles:
            raise CheckFailed(f"{_how(gate)}: answers differ between a batch, a second asking and singles")


@check(
    "fusion",
    "In a fused model a gradient reaches every parameter of the bridge, through gates and among the tokens.",
    kinds=("bridge",),
)
def gradient_reaches_it_through_the_decoder(subject: Subject) -> None:
    for gate in (1.0, None):
        model = _fused(subject, gate=gate)
        model.decoder.requires_grad_(False)
        rows = _laid_out(model, _prompts(subject))
        sense: Any = model.senses[MODALITY]
        sense.bridge.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(SEED)
        with torch.enable_grad():
            loss = torch.zeros(())
            for row in rows:
                logits = model(torch.tensor([row.ids]), media=[row.media])
                loss = loss + (logits * torch.randn(logits.shape, generator=generator)).sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        dead = [
            name
            for name, one in sense.bridge.named_parameters()
            if one.requires_grad and (one.grad is None or not bool(one.grad.any()))
        ]
        sense.bridge.zero_grad(set_to_none=True)
        if dead:
            raise CheckFailed(f"{_how(gate)}: no gradient reaches {', '.join(dead[:5])}")


def bridge_width(subject: Subject) -> int:
    """How wide the features are that a bridge was built for. Raises CheckFailed where its card does not say."""
    width = subject.found.card.variant.get("input_width")
    if not isinstance(width, int):
        raise CheckFailed("its card says no input_width in variant")
    return width


def features_of(module: Any, items: Sequence[Any], width: int) -> Encoded:
    """Token features of items, padded to the longest, as wide and in the format that a bridge takes."""
    first = next((one for one in module.parameters()), torch.zeros(()))
    longest = max(map(len, items))
    wide = [
        torch.from_numpy(np.resize(one, (len(one), width)) if width > one.shape[1] else one[:, :width].copy())
        for one in items
    ]
    tokens = torch.stack([pad(one, (0, 0, 0, longest - len(one))) for one in wide]).to(first.device, first.dtype)
    mask = torch.stack([torch.arange(longest) < len(one) for one in items]).to(first.device)
    return Encoded(tokens, mask, tokens.sum(1) / mask.sum(1, keepdim=True))


class _Lines(nn.Module):
    """The plainest bridge: each token by itself."""

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__()
        self.output_width = output_width
        self.project = nn.Linear(input_width, output_width)

    def forward(self, encoded: Encoded, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of B items -> float[B, T, W], bool[B, T]."""
        del frames
        return self.project(encoded.tokens_BTD), encoded.mask_BT


def _fused(subject: Subject, *, gate: float | None) -> Fused:
    """The encoder with the plainest bridge, or the bridge itself, over a small decoder; gate None splices."""
    state = torch.get_rng_state()
    torch.manual_seed(SEED)
    try:
        decoder = _decoder()
        if subject.found.card.kind == "encoder":
            with torch.inference_mode():
                width = subject.module(subject.module.preprocess(ordinary(subject.reads[0])[:1])).tokens_BTD.shape[-1]
            encoder: Any = subject.module
            bridge: Any = _Lines(width, WIDTH)
        else:
            encoder = None
            bridge = open_model(
                subject.name_to_open,
                weights=None,
                registry=subject.registry,
                input_width=bridge_width(subject),
                output_width=WIDTH,
            ).module
        layers = {} if gate is None else {layer: _gated(bridge.output_width, gate) for layer in range(decoder.layers)}
        return Fused(decoder, {MODALITY: Sense(encoder=encoder, bridge=bridge, layers=layers)}).eval()
    finally:
        torch.set_rng_state(state)


def _gated(source_width: int, gate: float) -> GatedCrossAttention:
    return GatedCrossAttention(
        attention_norm=nn.LayerNorm(WIDTH),
        attention=Attention(WIDTH, heads=2, source_width=source_width),
        feed_forward_norm=nn.LayerNorm(WIDTH),
        feed_forward=Dense(WIDTH, WIDTH, bias=False),
        gate=gate,
    )


def _decoder() -> Decoder:
    blocks = [
        Block(
            attention_norm=RMSNorm(WIDTH),
            attention=Attention(WIDTH, heads=2),
            feed_forward_norm=RMSNorm(WIDTH),
            feed_forward=Gated(WIDTH, WIDTH),
        )
        for _ in range(2)
    ]
    return Decoder(
        embedding=nn.Embedding(VOCABULARY, WIDTH),
        stack=Stack(blocks, norm=RMSNorm(WIDTH), rotary=Rotary(WIDTH // 2, positions=CONTEXT), causal=True),
        context=CONTEXT,
    ).eval()


def _items(subject: Subject) -> list[Item]:
    modality = subject.reads[0]
    if subject.found.card.kind == "encoder" and modality not in (AUDIO, IMAGE, FEATURES):
        raise CheckSkipped(f"the kit has no samples of {modality} yet")
    items = []
    for raw in uneven(modality):
        features = features_of(subject.module, [raw], bridge_width(subject)) if modality == FEATURES else None
        items.append(Item(MODALITY, (raw,), key_of(modality, [raw]), features))
    return items


def _prompts(subject: Subject) -> list[Prompt]:
    """No item, one, and three of different size, two of them side by side."""
    one, two, three = _items(subject)
    return [
        Prompt((5, 6, 7, 8)),
        Prompt((5, 1, 6, 7), (Placed(1, 1, one),)),
        Prompt((1, 5, 1, 1, 6, 7), (Placed(0, 1, two), Placed(2, 1, three), Placed(3, 1, one))),
    ]


def _laid_out(model: Fused, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same with room for the latents, where they stand among the tokens."""
    sense: Any = model.senses[MODALITY]
    if not sense.spliced:
        return list(prompts)
    wider = []
    for row in prompts:
        ids: list[int] = []
        media: list[Placed] = []
        places = {placed.position: placed.item for placed in row.media}
        for position, token in enumerate(row.ids):
            count = model.latent_count(places[position]) if position in places else 1
            if position in places:
                media.append(Placed(len(ids), count, places[position]))
            ids += [token] * count
        wider.append(Prompt(tuple(ids), tuple(media)))
    return wider


def _swapped(model: Fused, subject: Subject) -> list[tuple[Prompt, int]]:
    """Two prompts that differ in one item, and where it stands."""
    one, two, _ = _items(subject)
    rows = _laid_out(model, [Prompt((5, 6, 1, 7, 8), (Placed(2, 1, item),)) for item in (one, two)])
    return [(row, 2) for row in rows]


def _logits(model: Fused, row: tuple[Prompt, int]) -> tuple[torch.Tensor, int]:
    return model(torch.tensor([row[0].ids]), media=[row[0].media])[0, : 4 if row[1] else None], row[1]


def _how(gate: float | None) -> str:
    return "among the tokens" if gate is None else "through gates"


def _near(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    scale = max(1e-3, float(expected.abs().max())) if expected.numel() else 1.0
    difference = float((found - expected).abs().max()) if found.numel() else 0.0
    if not difference <= TOLERANCE * scale:
        raise CheckFailed(
            f"{what}: they differ by {difference:.2g}, allowed is {TOLERANCE * scale:.2g} ({TOLERANCE} of the largest)"
        )
