"""A page that shows, for each word of an answer, which media item and which of its patches the decoder looked at."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.errors import UsageError
from zoo.models.fusion.attention_map import Look, looks
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import Item
from zoo.nn.kernels.seam import gradients_flow
from zoo.registry.atomic_write import write_text
from zoo.tasks.language_model import LanguageModel
from zoo.tasks.media_prompt import Part

SIDE = 160  # pixels of a picture on the page
MOST_WORDS = 64


def check_explanation(language: LanguageModel, prompt: str | Sequence[Part], file: Path) -> None:
    """Raise UsageError, before anything is generated, for what cannot be explained and a place that cannot be written."""
    if not isinstance(language.decoder, Fused) or isinstance(prompt, str) or all(isinstance(part, str) for part in prompt):
        raise UsageError(
            "an explanation shows what was looked at in media: give a composition, and a prompt that holds some"
        )
    if not gradients_flow(language.decoder):
        raise UsageError(f"an explanation follows gradients, and none flow through kernel {language.kernel}: leave it out")
    if not file.resolve().parent.is_dir():
        raise UsageError(f"{file} cannot be written: there is no folder {file.parent}")


def write_explanation(language: LanguageModel, prompt: str | Sequence[Part], answer: str, file: Path) -> None:
    """Write the page for an answer to a prompt. Raises UsageError as `check_explanation`, and for an empty answer."""
    check_explanation(language, prompt, file)
    model: Any = language.decoder
    asked = language.write(prompt, chat=False)
    ids = language.tokenizer.encode(answer)[:MOST_WORDS]
    if not ids:
        raise UsageError("the answer is empty: there is no word to explain")
    found = looks(model, asked.prompt.ids, asked.prompt.media, ids)
    items = [Watched(placed.item, _views(model, placed.item)) for placed in asked.prompt.media]
    words = [language.tokenizer.decode([token]) for token in ids]
    rows = [_row(word, [look for look in found if look.token == number], items) for number, word in enumerate(words)]
    spliced = all(not sense.gated for sense in model.senses.values())
    write_text(file, _page(language.built.name, asked.text, answer, rows, _gates(model), spliced=spliced))


@dataclass(frozen=True, slots=True)
class Watched:
    """An item, and its frames as its encoder saw them: cut and scaled; none where it is no picture."""

    item: Item
    views: list[Image.Image]


def _views(model: Any, item: Item) -> list[Image.Image]:
    encoder = model.senses[model.sense_of(item.modality)].encoder
    if encoder is None or not all(isinstance(frame, Image.Image) for frame in item.frames):
        return []
    pixels = encoder.preprocess(list(item.frames))
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4 or pixels.shape[1] != 3:
        return []
    low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    bytes_NHWC = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(one.numpy()) for one in bytes_NHWC]


def _row(word: str, seen: Sequence[Look], items: Sequence[Watched]) -> str:
    cells = "".join(
        f"<figure>{_picture(items[look.item], look.features_T)}<figcaption>{html.escape(items[look.item].item.modality)} "
        f"{look.item + 1}: {look.share:.0%}</figcaption></figure>"
        for look in seen
    )
    return f"<tr><th>{html.escape(word)}</th><td>{cells or 'nothing'}</td></tr>"


def _picture(watched: Watched, features_T: torch.Tensor) -> str:
    """The item's frames, lit where its features were looked at; a strip where it is no picture or its features are no grid."""
    frames = watched.views
    per_frame = features_T.view(len(frames), -1) if frames and len(features_T) % len(frames) == 0 else None
    if per_frame is None:
        return _image(_strip(features_T))
    count = per_frame.shape[1]
    side = math.isqrt(count)
    extra = count - side * side  # a class token stands before the patches
    if extra > 1:
        return "".join(
            _image(frame.resize((SIDE, SIDE))) + _image(_strip(one)) for frame, one in zip(frames, per_frame, strict=True)
        )
    return "".join(_image(_lit(frame, one[extra:].view(side, side))) for frame, one in zip(frames, per_frame, strict=True))


def _lit(frame: Image.Image, strength: torch.Tensor) -> Image.Image:
    """The picture, darkened where nothing was looked at."""
    scaled = (strength / strength.max().clamp(min=1e-30)).numpy()
    mask = Image.fromarray((scaled * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture = frame.convert("RGB").resize((SIDE, SIDE))
    return Image.composite(picture, Image.blend(picture, Image.new("RGB", picture.size), 0.8), mask)


def _strip(strength_T: torch.Tensor) -> Image.Image:
    scaled = (strength_T / strength_T.max().clamp(min=1e-30) * 255).numpy().astype(np.uint8)[None]
    return Image.fromarray(scaled).resize((2 * SIDE, SIDE // 8), Image.Resampling.NEAREST)


def _image(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _gates(model: Fused) -> str:
    """What the gates say about how much of it counted."""
    lines = []
    for name, module in model.senses.items():
        sense: Any = module
        if sense.gated:
            values = [float(gated.attention_gate.detach().tanh().abs().mean()) for gated in sense.gated.values()]
            lines.append(f"{name}: gates {', '.join(f'{value:.3f}' for value in values)}")
            if max(values) == 0:
                lines.append(f"{name}: every gate is zero, so none of what was looked at counted")
    return "; ".join(lines)


def _page(model: str, prompt: str, answer: str, rows: Sequence[str], gates: str, *, spliced: bool) -> str:
    how = (
        "Light is the gradient of the word's log-probability times each patch's value: this model has no cross-attention."
        if spliced
        else "Shares are the weights of the cross-attention (the mean of heads and layers) when the word was chosen. Light is where its "
        "latents come from, by gradient times value through the bridge."
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>What the answer looked at</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}th{{text-align:right;vertical-align:top;padding:.5em 1em;white-space:pre}}
figure{{display:inline-block;margin:.3em}}figcaption{{font-size:.8em;color:#555}}pre{{white-space:pre-wrap;background:#f4f4f4;padding:1em}}</style>
<h1>What the answer looked at</h1><p>{html.escape(model)}</p><pre>{html.escape(prompt)}<strong>{html.escape(answer)}</strong></pre>
<p>{how}</p><p>{html.escape(gates)}</p><table>{"".join(rows)}</table></html>
"""
