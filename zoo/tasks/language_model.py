"""A decoder with its tokenizer, opened once and asked many times: an installed one, or a composition that reads media, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.prompt import Prompt
from zoo.errors import PluginError, UsageError
from zoo.models.build import Built, ModelSpec, spec_of
from zoo.models.composition import Composition, open_composition
from zoo.models.contracts import Decoder, Tokenizer
from zoo.models.fusion.fused import Fused
from zoo.models.kernels import FLOAT32, apply_kernel, check_kernel
from zoo.models.recipe import FILE
from zoo.nn.kernels.seam import runs_by_kernel
from zoo.registry.lookup import default_registry
from zoo.registry.modality import TEXT
from zoo.registry.plugin import describe
from zoo.tasks.encoding import open_for
from zoo.tasks.media_prompt import Part, Written, check_senses, read_media, written

TASK = "generate"


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A built decoder with its tokenizer, ready to be asked many times; prompts that begin alike are read once.

    draft: a decoder with the same tokens that guesses some of them ahead (`dataclasses.replace(language, draft=other.decoder)`).
    """

    built: Built = field(repr=False)
    decoder: Decoder = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    kernel: str
    prefixes: PrefixCache = field(default_factory=PrefixCache, repr=False)
    draft: Decoder | None = field(default=None, repr=False)

    def write(self, prompt: str | Sequence[Part | tuple[str, str]], *, chat: bool, system: str | None = None) -> Written:
        """A prompt as it is read: a user's turn of a conversation, or the text and the media themselves. Raises UsageError."""
        parts: list[Any] = [prompt] if isinstance(prompt, str) else list(prompt)
        turns = [part for part in parts if isinstance(part, tuple)]
        if turns and len(turns) == len(parts) and chat and self.tokenizer.chat is not None:
            if system is not None:
                raise UsageError('the turns of a conversation say all: ("system", text) is the first of them, not system')
            text = "\n".join(f"{turn[0]}: {turn[1]}" for turn in turns if len(turn) == 2)
            return Written(Prompt(tuple(self.tokenizer.chat(turns))), text)
        if turns:
            raise UsageError(
                "turns (role, text) are asked with chat=True, of a model trained on conversations, and stand alone"
            )
        check_senses(self.decoder, parts, self.built.name)
        if not chat:
            if system is not None:
                raise UsageError("a system message belongs to a conversation: add --chat (in Python: chat=True)")
            media = [read_media(part) for part in parts]
            return written(self.decoder, self.tokenizer, media, media_cache=self.prefixes.media)
        if self.tokenizer.chat is None:
            raise UsageError(f"{self.built.name} was not trained on conversations: leave out --chat")
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise UsageError("a conversation holds text alone so far: leave out --chat, or the media")
        before = [] if system is None else [("system", system)]
        text = "\n".join(texts)
        return Written(Prompt(tuple(self.tokenizer.chat([*before, ("user", text)]))), text)


def open_language_model(
    model: str | Path | ModelSpec | Built | Composition | None = None, *, plain: bool = False
) -> LanguageModel:
    """Build a decoder for `generate` and `score`: the named one, a composition, or the installed default.

    model: also the folder of a composition, or a recipe (`zoo.compose`); a text that names no model may be that of a folder. A
        `zoo.ModelSpec` says how it is opened, without a kernel by "float32", which rounds nothing; a model that was built already, that is not on the
        CPU or has another dtype runs as it is then.
    plain: leave a composition's float32 layers as they were trained, not laid out for running alone, so that gradients flow (an
        explanation follows them).
    Raises UsageError for a model of another kind and a kernel that does not exist, PluginError for a decoder without a tokenizer.
    """
    if isinstance(model, torch.nn.Module):
        raise UsageError(
            "a language model is named, or opened by zoo.open_model; a decoder module of your own is asked by the functions of "
            "zoo.api (generate_tokens, stream_tokens)"
        )
    if isinstance(model, Composition):
        return _of_composition(model)
    asked = model if isinstance(model, Built) else spec_of(model)
    if isinstance(asked, ModelSpec):
        if asked.kernel is not None:
            check_kernel(asked.kernel)
        if _names_composition(asked.name):
            return _of_composition(_opened_composition(asked, plain=plain))
        if asked.kernel is None and asked.dtype is None and str(asked.device) == "cpu":
            asked = replace(asked, kernel=FLOAT32)
        elif asked.kernel == FLOAT32 and (asked.dtype is not None or str(asked.device) != "cpu"):
            asked = replace(asked, kernel=None)  # nothing is rounded, and nothing laid out
    built = open_for(TASK, asked, kinds=("decoder",), modalities=(TEXT,))
    module: Any = built.module
    tokenizer = getattr(module, "tokenizer", None)
    if tokenizer is None:
        raise PluginError(
            f"{describe(built.found.card.provider)}: {built.name} has no tokenizer, so it reads no text (zoo fetch {built.found.name} "
            f"brings what belongs to its weights)"
        )
    kernel = built.kernel or str(next(module.parameters()).dtype).removeprefix("torch.")
    return LanguageModel(built, module, tokenizer, kernel)


def _of_composition(composition: Composition) -> LanguageModel:
    fused: Any = composition.module
    if fused.tokenizer is None:
        raise PluginError(f"{composition.recipe.decoder} has no tokenizer, so it reads no text")
    return LanguageModel(composition.built, fused, fused.tokenizer, _format_of(composition))


def _opened_composition(spec: ModelSpec, *, plain: bool) -> Composition:
    """The composition of a folder or a recipe, laid out for being asked alone unless it is to stay `plain`."""
    if spec.weights != "card":
        raise UsageError(f"{spec.name} is a composition, whose recipe names its weights: leave out --weights")
    kernel = spec.kernel or FLOAT32
    composition = open_composition(Path(str(spec.name)), device=spec.device, dtype=spec.dtype, kernel=kernel)
    if spec.dtype is None and str(spec.device) == "cpu" and not (plain and kernel == FLOAT32):
        _lay_out(composition.module, kernel)
    return composition


def _lay_out(module: Fused, kernel: str) -> None:
    """The layers of a composition that is only asked, as a decoder's by itself: those of its senses by the same kernel."""
    if not runs_by_kernel(module.decoder):
        apply_kernel(module.decoder, kernel)
    senses: Any = module.senses.values()
    for sense in senses:
        apply_kernel(sense.gated, kernel)


def _format_of(composition: Composition) -> str:
    """The kernel of a composition's decoder, or the number format that it was cast to."""
    weight = next(composition.module.decoder.parameters(), None)
    cast = weight is not None and weight.dtype != torch.float32
    return str(weight.dtype).removeprefix("torch.") if weight is not None and cast else composition.kernel


def _names_composition(name: str | Path | None) -> bool:
    """Whether a folder or a recipe is meant: a `Path` always does, a text where it names no model."""
    if not isinstance(name, str):
        return name is not None
    path = Path(name)
    try:
        if not (path / FILE).is_file() and not (path.suffix == ".toml" and path.is_file()):
            return False
    except (OSError, ValueError):  # a name that no file can have
        return False
    return not default_registry().matches(name)  # the name of a model means the model: ./NAME is the folder
