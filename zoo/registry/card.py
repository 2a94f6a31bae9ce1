"""Cards: what is known about a model before any of its code is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

# Each has a contract, a level of the conformance kit, a template and a page: a kind without them cannot be declared.
KINDS = ("encoder", "dual_encoder", "bridge", "decoder", "transcriber", "adapter", "kernel")
PIECES = ("layer", "module", "step")  # that a kernel takes


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Who publishes a card: the distribution is what pip knows, the plugin is the entry point's name."""

    plugin: str
    distribution: str
    version: str
    manifest_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a weights row. Trust rests on the hash alone.

    role: `model` for the tensors; the builder receives the path of every other file as `<role>_path`.
    sha256: of the whole file. None marks a file that its publisher does not pin (a hub family): the hash seen at the first
        download is kept and required from then on.
    size_bytes: length of the file, for progress and for `zoo list`; checked where there is no hash.
    sources: places that claim to hold those bytes, tried in order; one that is a list names parts to be joined.
    """

    role: str
    sha256: str | None
    size_bytes: int | None
    sources: tuple[str | tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One set of trained parameters of a card, with the side files (a tokenizer, say) that belong to them.

    tag: what is appended to the model's name with a dot; the first row is the one that is meant without a tag.
    files: the tensors and the files beside them.
    licence: of these weights, as an SPDX name where there is one.
    variant: keyword arguments of the builder that differ from the card's for these weights.
    preprocess: numbers of the preparation that differ from the card's.
    keys: `"package.module:function"` of the plugin that turns the published state dict into the module's; it is called for
        a file whose keys are not the module's own.
    classes: number of outputs of the trained classifier, where it differs from the card's.
    score_scale: name of the scale of the cosines, where thresholds were published for these very weights, as
        `laion-english` (see the presets of `zoo filter`).
    """

    tag: str
    files: tuple[File, ...]
    licence: str | None = None
    variant: Mapping[str, Any] = field(default_factory=_empty)
    preprocess: Mapping[str, Any] = field(default_factory=_empty)
    keys: str | None = None
    classes: int | None = None
    score_scale: str | None = None

    @property
    def size_bytes(self) -> int | None:
        """Bytes of all files together, one that has two roles counted once; None when a file does not declare its size."""
        different = {file.sha256 or file.sources: file for file in self.files}
        sizes = [file.size_bytes for file in different.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """What a choice between kernels needs to know.

    takes: the pieces of a model that it computes: `layer` (linear layers), `module` (an encoder compiled whole), `step` (a decoder's
        reading and writing of tokens).
    bits: for each weight, scales included. group: weights that share a scale; 0 where a row does.
    instruction_sets: of the processor, one of which it needs; empty where any will do.
    rounds_inputs: whether what a layer is given is rounded, too. gradients: whether they reach the inputs of its layers, so that adapters
        on it can be trained.
    """

    takes: tuple[str, ...]
    bits: float = 32
    group: int = 0
    instruction_sets: tuple[str, ...] = ()
    rounds_inputs: bool = False
    gradients: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One model, as data.

    name: full name `<plugin>/<model>`; a manifest leaves the plugin out.
    kind: which contract the built module keeps.
    modalities: what it reads: text, image, audio, video, series.
    build: `"package.module:function"` inside the plugin's own package, called with `variant` as keyword arguments;
        None when the plugin builds through the `zoo_build` hook.
    variant: keyword arguments of the builder.
    parts: role -> name of another card; each is built first and handed to the builder under its role.
    weights: sets of trained parameters; without any, the model is built with random ones.
    parameters: how many parameters the module has.
    tokens: what the encoder emits, `{"count": T, "width": D}`; a count of 0 means it depends on the input.
    embedding_width: E of a dual encoder.
    classes: number of outputs of an encoder that has a trained classifier.
    licence: of the model, as an SPDX name where there is one.
    paper: address of the publication it comes from.
    summary: what it is for, in one line.
    preprocess: numbers of the preparation of an item, handed to the builder; for images those of
        `zoo.api.to_pixels`.
    keys: as that of a weights row, for local files of a card that has no rows.
    settings: `"package.module:function"` of the plugin, (path of a weight file that a person gave, arguments of the builder) -> arguments that
        change because the file, or one beside it, says so (see `zoo.api.arguments_from`). It raises `zoo.api.WeightsError` for what the
        model cannot keep.
    keep_float32: submodules that stay in float32 when the model is cast to 16 bits (see `zoo.models.precision`).
    default_for: tasks that may use this card when the user names none.
    devices: what it is meant for, where that is not everything; asked by `zoo can`.
    dtypes: the number formats it is meant for, where that is not every one; asked by `zoo can`.
    applies_to: for an adapter or a kernel, the kinds of card that it transforms.
    exchange: for an adapter, `"package.module:object"` that reads and writes HF PEFT's files (see `zoo.adapters.peft`).
    kernel: of a kernel, what it takes and what it costs.
    module_names: of modules, ours -> those in the library under which others publish adapters for the same weights; `*` is any text.
    """

    name: str
    kind: str
    modalities: tuple[str, ...]
    provider: Provider
    build: str | None = None
    variant: Mapping[str, Any] = field(default_factory=_empty)
    parts: Mapping[str, str] = field(default_factory=_empty)
    weights: tuple[Weights, ...] = ()
    parameters: int | None = None
    tokens: Mapping[str, int] = field(default_factory=_empty)
    embedding_width: int | None = None
    classes: int | None = None
    licence: str | None = None
    paper: str | None = None
    summary: str = ""
    preprocess: Mapping[str, Any] = field(default_factory=_empty)
    keys: str | None = None
    settings: str | None = None
    keep_float32: tuple[str, ...] = ()
    default_for: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    applies_to: tuple[str, ...] = ()
    exchange: str | None = None
    kernel: KernelFacts | None = None
    module_names: Mapping[str, str] = field(default_factory=_empty)

    def choose_weights(self, tag: str | None) -> Weights | None:
        """The weights with this tag; the first row when `tag` is None; None when the card has no weights."""
        if tag is None:
            return self.weights[0] if self.weights else None
        return next((row for row in self.weights if row.tag == tag), None)
