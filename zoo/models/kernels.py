"""A kernel by name -> a built model that runs by it: layer by layer, or compiled whole."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.errors import PluginError, UsageError, ZooError
from zoo.models.compilation import compile_method, compile_model
from zoo.nn.kernels.apply import Plan, apply_layers
from zoo.nn.kernels.contract import Kernel, Published, Tensors
from zoo.nn.kernels.exact import EXACT
from zoo.nn.kernels.seam import runs_by_kernel
from zoo.registry.lookup import USABLE, Registry, default_registry
from zoo.registry.plugin import code_sha256, describe
from zoo.registry.suggest import did_you_mean, nearest

if TYPE_CHECKING:
    from zoo.registry.card import Card

AUTO = "auto"  # the fastest that was measured on this machine (`zoo.models.kernel_verdicts`)
FLOAT32 = "float32"  # the core's own: laid out for running, nothing rounded


@dataclass(frozen=True, slots=True)
class Chosen:
    """A kernel and its card; the core's own has none."""

    name: str
    kernel: Kernel
    card: Card | None = None


def kernel_named(name: str, registry: Registry | None = None) -> Chosen:
    """A kernel by its name, full or short. Raises UsageError for one that nobody provides, PluginError for a builder that fails."""
    if name == FLOAT32:
        return Chosen(name, EXACT)
    registry = registry or default_registry()
    card = kernel_card(name, registry)
    builder, owner = registry.builder(card), registry.owner(card)
    if builder is None:
        raise PluginError(f"{describe(owner)}: the card {card.name} names no function that builds it (build)")
    try:
        kernel = builder(**card.variant)
    except ZooError:
        raise
    except Exception as error:
        raise PluginError(f"{describe(owner)} raised {type(error).__name__} while building {card.name}: {error}") from error
    if not isinstance(kernel, Kernel):
        raise PluginError(f"{describe(owner)} must build {card.name} as a zoo.api.Kernel, got {type(kernel).__name__}")
    return Chosen(name, kernel, card)


def check_kernel(name: str, registry: Registry | None = None) -> None:
    """Raise UsageError for a name that no kernel has, before anything is built; no plugin is imported."""
    if name in (FLOAT32, AUTO):
        return
    registry = registry or default_registry()
    found = kernel_card(name, registry)
    owner = registry.owner(found)
    if owner.state not in USABLE:
        raise UsageError(f"kernel {name}: {owner.distribution} {owner.version} is {owner.state}: {owner.cure}")


def kernel_card(name: str, registry: Registry) -> Card:
    """The card of a kernel. Raises UsageError for a name that no kernel has, or several."""
    matches = registry.matches(name)  # asked so, nothing is looked up among the many names of families
    if not matches:
        raise UsageError(_unknown(name, registry))
    kernels = [match.card for match in matches if match.card.kind == "kernel"]
    if not kernels:
        raise UsageError(f"{matches[0].card.name} is of kind {matches[0].card.kind}; {_unknown(name, registry)}")
    if len(kernels) > 1:
        kernels = [registry.find(name).card]  # which says what it may mean
    return kernels[0]


def apply_kernel(
    module: nn.Module,
    kernel: str,
    *,
    skip: Sequence[str] = (),
    per_layer: Mapping[str, str] | None = None,
    registry: Registry | None = None,
) -> nn.Module:
    """Run a module of one's own by a kernel of layers, in place; returns it.

    kernel: a name (`zoo list --kind kernel`), or "float32", which lays weights out for running and rounds nothing. skip: patterns of names of
        layers that stay as they are (`stack.blocks.0.*`). per_layer: pattern -> kernel of the layers that it fits; those of `skip` come first.
    Raises UsageError for an unknown kernel, a pattern that fits no layer, a module that is not in float32, is on a device that the kernel
    does not know, or runs by a kernel or with adapters already.
    """
    chosen = kernel_named(kernel, registry)
    _require_device(module, chosen)
    others = _others(skip, per_layer or {}, registry)
    return apply_layers(module, Plan(kernel=chosen.kernel, name=kernel, others=others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of a kernel beside its name.

    skip: patterns of names of layers that stay as they are. per_layer: pattern -> name of another kernel. published: weights as the file holds
    them, for parameters that were not filled in. kept: name of a layer -> its tensors, as `zoo.quantize` wrote them. key: sha256 of what shapes
    the model's numbers. calibration: inputs of what is compiled, for kernels that need them.
    """

    skip: Sequence[str] = ()
    per_layer: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    kept: Mapping[str, Tensors] | None = None
    key: str = ""
    calibration: Mapping[str, Sequence[tuple[torch.Tensor, ...]]] = field(default_factory=dict)


AS_USUAL = Asked()


def run_by(module: Any, chosen: Chosen, model: Card, asked: Asked, registry: Registry | None = None) -> None:
    """Run a model by a kernel, in place. model: its card.

    One whose parts suit formats in ways of their own has `kernel_plan(full name of a kernel)`: pattern of layers' names -> kernel, or None where nothing of
    it is to run by one. `compiled` are the methods of its parts that a kernel of whole modules takes: part -> methods.
    Raises UsageError for a kind that the kernel is not for, and a model without anything that it could run.
    """
    card = chosen.card
    if card is not None and card.applies_to and model.kind not in card.applies_to:
        raise UsageError(
            f"kernel {chosen.name} applies to {', '.join(card.applies_to)}, {model.name} is of kind {model.kind}: leave it out"
        )
    _require_device(module, chosen)
    planned = module.kernel_plan(FLOAT32 if card is None else card.name) if hasattr(module, "kernel_plan") else {}
    if planned is None:
        return
    if chosen.kernel.linear is None:
        _compile(module, chosen, model, asked, registry)
        return
    kept = [pattern for name in model.keep_float32 for pattern in _layers_in(module, name)]
    others = _others((*asked.skip, *kept), {**asked.per_layer, **_installed(planned, registry)}, registry)
    plan = Plan(kernel=chosen.kernel, name=chosen.name, others=others, published=asked.published, kept=asked.kept)
    apply_layers(module, plan)
    if chosen.name != FLOAT32 and not runs_by_kernel(module):
        raise UsageError(f"{model.name} has no linear layer that kernel {chosen.name} could run: leave it out")


def _compile(module: Any, chosen: Chosen, model: Card, asked: Asked, registry: Registry | None) -> None:
    """Let what can be compiled of a model be so; the layers of its other parts are laid out where some are left."""
    if chosen.kernel.compile is None:
        raise UsageError(f"kernel {chosen.name} takes decoders step by step, and {model.name} has none: leave it out")
    parts: Mapping[str, Sequence[str]] = getattr(module, "compiled", {})
    if not parts:
        if asked.skip or asked.per_layer:
            raise UsageError(f"kernel {chosen.name} compiles whole modules: leave out skip and per_layer")
        compile_model(module, model, chosen.kernel.compile, key=asked.key, calibration=asked.calibration)
        return
    taken = [pattern for part in parts for pattern in _layers_in(module, part)]
    others = _others(asked.skip, asked.per_layer, registry)
    for pattern in others:
        if any(fnmatch.fnmatchcase(name, pattern) for part in parts for name in _names_in(module, part)):
            raise UsageError(f"kernel {chosen.name} compiles {' and '.join(parts)} whole: {pattern!r} names layers of it")
    for part, methods in parts.items():
        for method in methods:
            compile_method(module.get_submodule(part), method, chosen.kernel.compile, key=f"{asked.key}-{part}")
    apply_layers(module, Plan(kernel=EXACT, others={**dict.fromkeys(taken), **others}))


def _installed(planned: Mapping[str, str], registry: Registry | None) -> dict[str, str]:
    """A model's own plan, with float32 in place of kernels that are not installed: the plan is about speed, and asks for nothing."""
    registry = registry or default_registry()
    return {pattern: name if name == FLOAT32 or registry.matches(name) else FLOAT32 for pattern, name in planned.items()}


def _others(skip: Sequence[str], per_layer: Mapping[str, str], registry: Registry | None) -> dict[str, Kernel | None]:
    """Pattern -> kernel, None for layers that stay; what is skipped comes first."""
    others: dict[str, Kernel | None] = dict.fromkeys(skip)
    for pattern, name in per_layer.items():
        kernel = kernel_named(name, registry).kernel
        if kernel.linear is None:
            raise UsageError(f"kernel {name} compiles whole modules: it takes no single layers ({pattern})")
        others.setdefault(pattern, kernel)
    return others


def kernel_identity(chosen: Chosen, registry: Registry) -> str:
    """What shapes the numbers of a kernel: its name, distribution, version and code; nothing for the core's own, which rounds none."""
    if chosen.card is None:
        return ""
    owner = registry.owner(chosen.card)
    return f"{chosen.card.name} {owner.distribution} {owner.version} {code_sha256(owner)}"


def _layers_in(module: nn.Module, name: str) -> list[str]:
    """The names of the linear layers and tables at or below a submodule."""
    return [glob.escape(one) for one in _names_in(module, name)]


def _names_in(module: nn.Module, name: str) -> list[str]:
    named = (one for one, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Embedding)))
    return [one for one in named if f"{one}.".startswith(f"{name}.")]


def _require_device(module: nn.Module, chosen: Chosen) -> None:
    devices = chosen.card.devices if chosen.card is not None else ("cpu",)
    wrong = next((one.device for one in module.parameters() if devices and one.device.type not in devices), None)
    if wrong is not None:
        raise UsageError(
            f"kernel {chosen.name} takes a model on {' or '.join(devices)}, got one on {wrong}: leave out device"
        )


def _unknown(name: str, registry: Registry) -> str:
    known = sorted(card.name.partition("/")[2] for card in registry.cards(kind="kernel"))
    hint = did_you_mean(nearest(name, known), "")
    return f"a kernel is one of {', '.join((FLOAT32, *known))}, got {name!r}{f'; {hint}' if hint else ''}"
