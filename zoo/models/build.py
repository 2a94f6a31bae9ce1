"""A name -> a module with its weights. One lookup, one call of the plugin's builder, one strict load."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from zoo.errors import PluginError, ResolutionError, UsageError, WeightsMissingError
from zoo.models.construct import arguments_of, construct, side_files
from zoo.models.drawn import (
    Snapshot,
    buffers_differ,
    saved_buffers,
    saved_numbers,
    snapshot,
    snapshot_sha256,
    tensors_sha256,
    was_trained,
)
from zoo.models.file_settings import files_of, numbers_of, settings_of_file, without_files
from zoo.models.identity import decoder_of, identity_of, random_state
from zoo.models.kernel_verdicts import CARD, asked_weights, fastest, slower
from zoo.models.kernels import AS_USUAL, AUTO, Asked, Chosen, kernel_identity, kernel_named, run_by
from zoo.models.loading import NoRandomParameters, load
from zoo.models.precision import cast
from zoo.models.quantised import QuantisedRecord, parts_of, quantised_file, require_kernel
from zoo.nn.extension import content_key, extension_of
from zoo.nn.kernels.contract import Published
from zoo.registry.activation import warn
from zoo.registry.lookup import Found, Registry, default_registry
from zoo.registry.plugin import code_sha256, describe
from zoo.weights.delivery import locate_files
from zoo.weights.formats.read import read_state_dict
from zoo.weights.local_file import local_file
from zoo.weights.strict_load import load_strict
from zoo.weights.verified import Located, hashed, require_unchanged

DTYPES = (None, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, and how it is opened: what every task takes as `model` where a name says too little.

    name: a model's (`zoo list`), or the folder of a composition; None for the installed default of the task.
    weights: "card" for the card's own, a path to a file of the same architecture, or None for a random initialisation.
    kernel: what it computes by (`zoo list --kind kernel`); "float32" lays weights out for running and rounds nothing. None: as it was built; language models
        and transcribers by "float32". skip: patterns of names of layers that it leaves as they are. per_layer: pattern -> another kernel.
    """

    name: str | Path | None = None
    _: KW_ONLY
    weights: str | Path | None = "card"
    device: str = "cpu"
    dtype: torch.dtype | None = None
    kernel: str | None = None
    skip: Sequence[str] = ()
    per_layer: Mapping[str, str] = field(default_factory=dict)


def spec_of(model: str | Path | ModelSpec | None) -> ModelSpec:
    """The same as a spec: a name alone is opened as its card says. Raises UsageError for a module, of which nobody knows what it is."""
    if isinstance(model, torch.nn.Module):
        raise UsageError(
            f"a task takes the name of a model, a zoo.ModelSpec or what zoo.open_model returned, got the module {type(model).__name__}: open it "
            f"with zoo.open_model instead of zoo.build, or register its builder (zoo.register)"
        )
    spec = model if isinstance(model, ModelSpec) else ModelSpec(name=model)
    quantised = None if spec.name is None else quantised_file(str(spec.name), spec.weights)
    if quantised is None:
        return spec
    path, record, beside = quantised
    return replace(spec, name=beside or record.model, weights=path, kernel=spec.kernel or record.kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A module and what it is made of.

    name: full name with the weights tag; without it when the weights are random or a local file's.
    identity: sha256 over everything that shapes its numbers (distribution, version, code, weights or the random state they
        were drawn from, arguments, dtype, parts, torch), the key under which results derived from it may be kept.
    files: role -> sha256 of the weight files; empty for a random initialisation.
    kernel: the one that it runs by, where one was applied (`zoo.models.kernels`).
    opened: its own parameters, those of no part, as they were when it was opened; with hashes where they were drawn.
    """

    module: torch.nn.Module
    found: Found
    name: str
    identity: str
    files: Mapping[str, str]
    parts: Mapping[str, Built]
    kernel: str | None = None
    opened: Mapping[str, Snapshot] = field(default_factory=dict, repr=False)

    @property
    def state_identity(self) -> str:
        """The identity together with what was trained since, and the adapters that calls take now: what results derived now may be kept under."""
        trained = (part.content.get(role, "") for part in every_part(self) for role in ("parameters", "buffers"))
        since = " ".join(filter(None, (content_key(self.module), *trained)))
        return hashlib.sha256(f"{self.identity} {since}".encode()).hexdigest() if since else self.identity

    @property
    def content(self) -> dict[str, str]:
        """Where its own numbers come from: role -> sha256 of its files; "drawn" for parameters as they were drawn, "parameters" for those
        that were trained since it was opened, "buffers" where those alone were written to; the three by what they hold in memory.
        """
        if not self.opened:
            return dict(self.files)
        if was_trained(self.module, self.opened):
            return {**self.files, "parameters": tensors_sha256(self.module.state_dict().items())}
        of_a_file = "model" in self.files or not any(one.parameter for one in self.opened.values())
        own = {} if of_a_file else {"drawn": snapshot_sha256(self.opened)}
        if buffers_differ(self.module, self.opened):
            own["buffers"] = tensors_sha256(saved_buffers(self.module))
        return {**self.files, **own}

    @property
    def random(self) -> bool:
        """Whether parameters of it, or of one of its parts, were drawn and never trained: its answers mean nothing."""
        return any("drawn" in part.content for part in every_part(self))


def every_part(built: Built) -> Iterator[Built]:
    """A built model, its parts and theirs."""
    yield built
    for part in built.parts.values():
        yield from every_part(part)


def build(
    name: str,
    *,
    weights: str | Path | None = "card",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    kernel: str | None = None,
    **overrides: Any,
) -> torch.nn.Module:
    """Build a model by name, in eval mode.

    weights: "card" for the card's own (the tag in the name, or the first), a path to a file of the same architecture, or
        None for a random initialisation. What differs for the weights' row (its variant, preparation and classes) holds for the row's
        own weights, and for others where the name carries its tag. What a file of yours says itself (GGUF, config.json beside it) replaces
        that, with a word, or is refused. overrides replace the card's variant arguments.
    kernel: what it computes by (`zoo list --kind kernel`), "float32" for the core's own; such a model runs, and is not trained.
    Raises UnknownNameError, PluginError, WeightsError or UsageError.
    """
    return open_model(name, weights=weights, device=device, dtype=dtype, kernel=kernel, **overrides).module


def open_model(
    name: str | ModelSpec,
    *,
    weights: str | Path | None = "card",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    kernel: str | None = None,
    registry: Registry | None = None,
    **overrides: Any,
) -> Built:
    """As `build`, with the card, the parts and the hashes that say where the numbers come from.

    name: also a `ModelSpec` with a name, which says weights, device, dtype and kernel by itself.
    """
    asked = AS_USUAL
    if isinstance(name, ModelSpec):
        _refuse_beside(weights, device, dtype, kernel)
        asked = Asked(skip=name.skip, per_layer=name.per_layer)
        weights, device, dtype, kernel, name = name.weights, name.device, name.dtype, name.kernel, _named(name)
    registry = registry or default_registry()
    quantised = quantised_file(name, weights)
    if quantised is not None:
        return _open_quantised(*quantised, kernel, registry, other={"device": device, "dtype": dtype, **overrides})
    chosen = None if kernel is None else _chosen(kernel, name, registry, asked_weights(weights))
    weights = None if weights == "none" else weights
    if dtype not in DTYPES:
        raise UsageError(f"dtype is one of {', '.join(map(str, DTYPES[1:]))}, got {dtype}")
    from_card = weights == "card"
    found = _meant(name, registry, from_card=from_card)
    owner = registry.owner(found.card)
    parts = {
        role: open_model(part, weights=weights and "card", device=device, dtype=dtype, registry=registry)
        for role, part in found.card.parts.items()
    }
    said, located = _files(weights, found, registry, overrides)
    drawn = None if "model" in located or parts else random_state()
    with NoRandomParameters() if "model" in located else contextlib.nullcontext():
        module = construct(found, owner, registry, {**parts, **said, **side_files(found, located), **overrides})
    keep_blocks = chosen is not None and chosen.kernel.linear is not None and (dtype, str(device)) == (None, "cpu")
    published = _loaded(module, located, found, registry, trusted=from_card, keep_blocks=keep_blocks)
    require_unchanged(*located.values())
    module = _moved(module, device).eval()
    if dtype is not None and not parts:  # parts were cast when they were built, each as its own card says
        module = cast(module, dtype, found.card.keep_float32)
    files = {role: file.sha256 for role, file in located.items()}
    named = found.name if from_card or found.tagged else found.card.name
    known, numbers = files | decoder_of(located, registry), {**numbers_of(said), **overrides}
    identity = identity_of(named, found, code_sha256(owner), known, numbers, parts, dtype, drawn)
    own = snapshot(_own_numbers(module, parts), hashed="model" not in files)
    built = Built(
        module=module,
        found=found,
        name=found.name if from_card else found.card.name,
        identity=identity,
        files=files,
        parts=parts,
        opened=own,
    )
    return built if chosen is None else _by_kernel(built, chosen, registry, replace(asked, published=published))


def _files(
    weights: str | Path | None, found: Found, registry: Registry, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Located]]:
    """Arguments that change because a person's own file says so, and role -> each file of the model."""
    if weights is None:
        return {}, {}
    if weights == "card":
        return {}, locate_files(found, registry=registry)
    local = _local_weights(Path(weights), found)
    arguments = {**arguments_of(found), **overrides}
    said = settings_of_file(local.path, found, registry.owner(found.card), registry, arguments)
    beside = locate_files(without_files(found, said), registry=registry, model=False)
    return said, {**beside, "model": local, **files_of(said, local)}


def _loaded(
    module: torch.nn.Module, located: Mapping[str, Located], found: Found, registry: Registry, **how: bool
) -> Mapping[str, Published]:
    return load(module, located["model"].path, found, registry, **how) if "model" in located else {}


def _refuse_beside(weights: object, device: object, dtype: object, kernel: object) -> None:
    if (weights, str(device), dtype, kernel) != ("card", "cpu", None, None):
        raise UsageError("a ModelSpec says how the model is opened: leave out weights, device, dtype and kernel beside it")


def _named(spec: ModelSpec) -> str:
    if spec.name is None:
        raise UsageError("zoo.open_model opens the model that is named: a default is that of a task")
    return str(spec.name)


def _open_quantised(
    path: Path,
    record: QuantisedRecord,
    beside: str | None,
    kernel: str | None,
    registry: Registry,
    *,
    other: Mapping[str, Any],
) -> Built:
    """The model of a file that `zoo quantize` wrote. Raises UsageError where something else was asked of it."""
    strange = [name for name, value in other.items() if str(value) not in ("cpu", "None")]
    if strange:
        raise UsageError(
            f"{path} runs by kernel {record.kernel} on the CPU, as it was built: leave out {', '.join(strange)}"
        )
    found = registry.find(record.model)
    if beside is not None and registry.find(beside).card.name != found.card.name:
        raise UsageError(f"{path} is a quantised {record.model}, not {beside}: name that model")
    chosen = kernel_named(record.kernel, registry)
    version = "" if chosen.card is None else chosen.card.provider.version
    words = require_kernel(record, chosen, version, kernel, str(path))
    if words is not None:
        warn(words)
    owner = registry.owner(found.card)
    parts = {
        role: open_model(part, weights="card" if record.files else None, registry=registry)
        for role, part in found.card.parts.items()
    }
    located = {**locate_files(found, registry=registry, model=False), "model": hashed(path)}
    with NoRandomParameters():
        module = construct(found, owner, registry, {**parts, **side_files(found, located)})
    kept, rest = parts_of(read_state_dict(path), record, str(path))
    asked = Asked(skip=record.skip, per_layer=record.per_layer, kept=kept)
    run_by(module, chosen, found.card, asked, registry)
    load_strict(module, rest, str(path))
    require_unchanged(*located.values())
    files = {role: file.sha256 for role, file in located.items()}
    identity = identity_of(found.name, found, code_sha256(owner), files, {}, parts, None, None)
    identity = hashlib.sha256(f"{identity} {kernel_identity(chosen, registry)}".encode()).hexdigest()
    own = snapshot(_own_numbers(module, parts), hashed=False)
    return Built(
        module=module.eval(),
        found=found,
        name=found.card.name,
        identity=identity,
        files=files,
        parts=parts,
        kernel=chosen.name,
        opened=own,
    )


def with_kernel(built: Built, kernel: str, *, registry: Registry | None = None, asked: Asked = AS_USUAL) -> Built:
    """A built model that runs by a kernel from now on, in place. Raises as `zoo.models.kernels.run_by`."""
    registry = registry or default_registry()
    chosen = _chosen(kernel, built.found.name, registry)
    return built if chosen is None else _by_kernel(built, chosen, registry, asked)


def _chosen(kernel: str, model: str, registry: Registry, weights: str = CARD) -> Chosen | None:
    """The kernel for a model, None for none of them; a line says so where it was measured on this machine to be slower than none."""
    name = fastest(model, registry, weights) if kernel == AUTO else kernel
    if name is None:
        return None
    chosen = kernel_named(name, registry)
    words = None if chosen.card is None else slower(registry.find(model).name, chosen.card.name, registry, weights)
    if words is not None:
        warn(words)
    return chosen


def _by_kernel(built: Built, chosen: Chosen, registry: Registry, asked: Asked) -> Built:
    """The same by a kernel, which is part of its identity; the core's own rounds nothing, and is none."""
    run_by(built.module, chosen, built.found.card, replace(asked, key=built.identity), registry)
    by = " ".join(filter(None, (kernel_identity(chosen, registry), *asked.skip, *map(str, asked.per_layer.items()))))
    identity = hashlib.sha256(f"{built.identity} {by}".encode()).hexdigest() if by else built.identity
    return replace(built, kernel=chosen.name, identity=identity)


def _meant(name: str, registry: Registry, *, from_card: bool) -> Found:
    """The card and the row that a name means. Raises WeightsMissingError where the card's own weights are wanted and it has none."""
    found = registry.find(name)
    _refuse_circles(found, registry, ())
    card = found.card
    if from_card and not card.weights and not card.parts and card.parameters != 0:
        raise WeightsMissingError(
            f"{card.name} has no weights of its own: give a file of them (--weights FILE), or none for a random initialisation (--weights none; in Python zoo.ModelSpec({card.name!r}, weights=None))"
        )
    return found if from_card or found.tagged else _without_variant(found)


def _own_numbers(module: torch.nn.Module, parts: Mapping[str, Built]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers by name, without those of its parts."""
    theirs = {id(tensor) for part in parts.values() for _, tensor in saved_numbers(part.module)}
    return ((name, tensor) for name, tensor in saved_numbers(module) if id(tensor) not in theirs)


def _moved(module: torch.nn.Module, device: str | torch.device) -> torch.nn.Module:
    try:
        return module.to(device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device}: {str(error).splitlines()[0]}") from error


def device_of(built: Built) -> torch.device:
    """Where a model lies; the CPU when it holds no tensor."""
    return next((tensor.device for tensor in built.module.state_dict().values()), torch.device("cpu"))


def weight_hashes(built: Built) -> dict[str, dict[str, str]]:
    """Name with tag -> role -> sha256 (`Built.content`), for a model, for each of its parts, and for the adapters that it runs under."""
    hashes = {built.name: content} if (content := built.content) else {}
    extension = extension_of(built.module)
    if extension is not None:
        hashes |= {f"{built.name} under {name}": dict(content) for name, content in extension.hashes().items()}
    for part in built.parts.values():
        hashes |= weight_hashes(part)
    return hashes


def _without_variant(found: Found) -> Found:
    """The card as it is: what differs for its first row says nothing about other weights, unless the caller named that row."""
    row = found.weights
    return found if row is None else replace(found, weights=replace(row, variant={}, preprocess={}, classes=None))


def _refuse_circles(found: Found, registry: Registry, above: tuple[str, ...]) -> None:
    if found.card.name in above:
        circle = " -> ".join((*above[above.index(found.card.name) :], found.card.name))
        raise PluginError(f"{describe(registry.owner(found.card))}: a model cannot be a part of itself: {circle}")
    for part in found.card.parts.values():
        try:
            part_found = registry.find(part)
        except (PluginError, ResolutionError) as error:
            raise type(error)(f"{error} (it is a part of {found.card.name})") from error
        _refuse_circles(part_found, registry, (*above, found.card.name))


def _local_weights(path: Path, found: Found) -> Located:
    if found.card.parts:
        raise UsageError(f"--weights {path}: {found.name} is made of other models and has no weights of its own")
    path = local_file(path)
    return hashed(path)
