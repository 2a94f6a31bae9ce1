"""A built model by a kernel: module -> module, in place, layer by layer.

All that is not linear (norms, positions, attention, the residual) stays in float32. A model that runs by a kernel is not trained: adapters
on it are.
"""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.nn.block import Block
from zoo.nn.cache import Cache
from zoo.nn.decoder import Decoder
from zoo.nn.extension import extensions_in
from zoo.nn.feed_forward import Gated
from zoo.nn.kernels.contract import Kernel, LayerFormat, Published, Tensors
from zoo.nn.kernels.exact import EXACT_LINEAR
from zoo.nn.kernels.seam import runs_by_kernel
from zoo.nn.kernels.step import DecodeStep, decode_step
from zoo.nn.memory import give_back_memory
from zoo.nn.mixture import Mixture

LARGE = 10_000_000  # parameters: looking through the memory of the process for less is not worth its time
HEAD, BIAS = "head", "bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which layer runs by what.

    kernel: of every layer that no other line names. others: pattern of layers' names (`stack.blocks.0.*`) -> their kernel, None: they stay
        as they are; the first that fits counts. name: of the kernel, for messages. published: name of a parameter -> its
        weight as the file holds it, where the module's own was not filled in. kept: name of a layer, as it is called when projections are joined -> its
        tensors, and its bias as "bias", for a module whose weights mean nothing; a layer that is not among them stays as it is.
    """

    kernel: Kernel
    name: str = "float32"
    others: Mapping[str, Kernel | None] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    kept: Mapping[str, Tensors] | None = None

    def of(self, layer: str) -> Kernel | None:
        """The kernel of a layer by its name."""
        for pattern, kernel in self.others.items():
            if fnmatch.fnmatchcase(layer, pattern):
                return kernel
        return self.kernel


def apply_layers(module: nn.Module, plan: Plan) -> nn.Module:
    """The module, with each of its linear layers in the format of the plan; projections of zoo.nn that read the same input are joined first.

    A router stays as it is, and a layer that the kernel's format does not fit takes the kernel's other one, or float32. The tied head of a
    `Decoder` is a layer of its own afterwards. Raises UsageError for a kernel without layers, a pattern that names none, a module that is not in float32, and one
    that has a kernel or adapters already.
    """
    _require_ready(module, plan)
    size = sum(parameter.numel() for parameter in module.parameters())
    decoders = [(name, part) for name, part in module.named_modules() if isinstance(part, Decoder)]
    for name, decoder in decoders:
        _replace_head(decoder, _dotted(name), plan)
    for name, part in list(module.named_modules()):
        if isinstance(part, Block):
            _join(part.attention, ("query", "key", "value"), "query_key_value", f"{_dotted(name)}attention.", plan)
        if isinstance(part, Gated):
            _join(part, ("gate", "up"), "gate_and_up", _dotted(name), plan)
        _replace_children(part, _dotted(name), plan)
        del part
    _fill_in(module, plan)
    for _, decoder in decoders:
        decoder.step = None if plan.kernel.step is None else plan.kernel.step(decoder)
        straight = decode_step(decoder)
        decoder.one_step = straight if decoder.step is None else OneStep(decoder, straight)
    if size >= LARGE:
        gc.collect()
        give_back_memory()
    return module.eval()


def _require_ready(module: nn.Module, plan: Plan) -> None:
    """Raise UsageError for a kernel or a module that cannot be joined, and for a pattern that fits no linear layer, embedding or head."""
    if any(kernel is not None and kernel.linear is None for kernel in (plan.kernel, *plan.others.values())):
        raise UsageError(
            f"kernel {plan.name} has no layers: it compiles whole modules, and this one has none that it could; leave it out"
        )
    if runs_by_kernel(module):
        raise UsageError(f"the model runs by a kernel already: build it anew for {plan.name}")
    if any(extension.names for extension in extensions_in(module)):
        raise UsageError(f"the model has adapters: apply kernel {plan.name} first, and adapt what runs by it")
    wrong = next((tensor for tensor in module.parameters() if tensor.dtype != torch.float32), None)
    if wrong is not None:
        raise UsageError(f"kernel {plan.name} takes a model in float32, got {wrong.dtype}: leave out dtype")
    names = [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Embedding))]
    names += [_dotted(name) + HEAD for name, part in module.named_modules() if isinstance(part, Decoder)]
    for pattern in plan.others:
        if not fnmatch.filter(names, pattern):
            some = ", ".join(names[:3] + names[-1:])
            raise UsageError(f"no layer is called {pattern!r}: this model has {len(names)}, as {some}")


def _replace_children(part: nn.Module, prefix: str, plan: Plan) -> None:
    """The linear layers that a module holds itself, each by its kernel; a router stays."""
    for name, child in list(part.named_children()):
        kernel = plan.of(prefix + name)
        if type(child) is nn.Linear and kernel is not None and not (isinstance(part, Mixture) and name == "router"):
            setattr(part, name, _converted(child, prefix + name, _formats(kernel), plan))


def _formats(kernel: Kernel) -> tuple[LayerFormat, ...]:
    """What a linear layer may become, the first that fits it."""
    return (*(one for one in (kernel.linear, kernel.otherwise) if one is not None), EXACT_LINEAR)


def _dotted(name: str) -> str:
    return f"{name}." if name else ""


class OneStep:
    """One token of each row, by the kernel's step where it takes the call, else as straight code or by the modules."""

    def __init__(self, decoder: Decoder, straight: DecodeStep | None) -> None:
        self.decoder, self.straight = decoder, straight

    def __call__(self, tokens_B: torch.Tensor, cache: Cache, *, before_layer: Any = None) -> torch.Tensor:
        """int[B] and a cache -> logits float32[B, V], as `DecodeStep`."""
        step = self.decoder.step
        if self.straight is None or (step is not None and step.takes(cache, before_layer=before_layer)):
            logits_BV: torch.Tensor = self.decoder(tokens_B[:, None], cache=cache, before_layer=before_layer)[:, 0]
            return logits_BV
        return self.straight(tokens_B, cache, before_layer=before_layer)


def _converted(layer: Any, name: str, formats: Sequence[LayerFormat], plan: Plan, *, parameter: str = "") -> nn.Module:
    """What the first of the formats that fits makes of a layer; the layer itself where none does, or that format leaves it.

    parameter: name of its weight, where it is not that of the layer.
    """
    form = next((one for one in formats if one.fits(*layer.weight.shape)), None)
    new = None
    if form is not None and plan.kept is None:
        published = plan.published.get(parameter or f"{name}.weight")
        new = form.layer(_tensors(layer.weight, published, form), getattr(layer, "bias", None))
        if published is not None:
            published.release()
    elif form is not None and plan.kept is not None and name in plan.kept:
        tensors = dict(plan.kept[name])
        bias_N = tensors.pop(BIAS, None)
        new = form.layer(tensors, bias_N)
    kept: nn.Module = layer if new is None else new
    return kept


def _tensors(weight_NK: torch.Tensor, published: Published | None, form: LayerFormat) -> Tensors:
    """What a format keeps of a weight: its own blocks where it takes them as published. Raises UsageError for NaN and infinity."""
    if published is not None and published.kind in form.blocks:
        return {published.kind: published.rows}
    numbers_NK = weight_NK.detach() if published is None else published.dequantise()
    if form is not EXACT_LINEAR and not all(bool(bound.isfinite()) for bound in torch.aminmax(numbers_NK)):
        raise UsageError(
            "a weight holds NaN or infinity, which no format of few bits can keep: the model is broken, train or fetch it anew"
        )
    return form.quantise(numbers_NK)


def _join(part: Any, names: tuple[str, ...], joined: str, prefix: str, plan: Plan) -> None:
    """Linear layers with one input and one kernel as one layer with all their outputs, in place of them."""
    layers = [getattr(part, name) for name in names]
    kernels = [plan.of(prefix + name) for name in names]
    kernel = kernels[0]
    if (
        kernel is None
        or any(other is not kernel for other in kernels)
        or not all(type(layer) is nn.Linear for layer in layers)
    ):
        return
    first, bias = _formats(kernel)[0], None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat(
            [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() for layer in layers]
        )
    if plan.kept is not None and prefix + joined not in plan.kept and any(prefix + name in plan.kept for name in names):
        return  # they were kept apart
    rows, inputs = sum(len(layer.weight) for layer in layers), layers[0].in_features
    published = [plan.published.get(f"{prefix}{name}.weight") for name in names]
    blocks = [
        one.rows for one in published if one is not None and one.kind in first.blocks and one.kind == _kind(published[0])
    ]
    kinds = [one.kind for one in published if one is not None and one.kind in first.blocks]
    if len(kinds) == len(names) and len(set(kinds)) > 1:
        return  # no layer holds blocks of two types, and none is rounded anew for being joined
    if plan.kept is not None:
        plain = nn.Linear(inputs, rows, bias=bias is not None, device="meta")
        together: Any = _converted(plain, prefix + joined, _formats(kernel), plan)
    elif len(blocks) == len(names) and first.fits(rows, inputs):
        together = first.layer({str(_kind(published[0])): torch.cat(blocks)}, bias)
    else:
        pairs = zip(layers, published, strict=True)
        weight = torch.cat([layer.weight.detach() if one is None else one.dequantise() for layer, one in pairs])
        plain = nn.Linear(inputs, rows, bias=bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            plain.bias = nn.Parameter(bias, requires_grad=False)
        together = _converted(plain, prefix + joined, _formats(kernel), plan)
    for one in published:
        if one is not None:
            one.release()
    setattr(part, joined, together)
    for name in names:
        setattr(part, name, nn.Identity())


def _kind(published: Published | None) -> str | None:
    return None if published is None else published.kind


def _replace_head(decoder: Decoder, prefix: str, plan: Plan) -> None:
    """A head of its own in place of the tied embedding, made before the embedding is rounded."""
    kernel, of_table = plan.of(prefix + HEAD), plan.of(f"{prefix}embedding")
    head, table = decoder.head, decoder.embedding
    if kernel is not None and (head is None or type(head) is nn.Linear):
        formats = (*((kernel.head,) if kernel.head is not None else ()), *_formats(kernel))
        parameter = f"{prefix}embedding.weight" if head is None else ""
        source = table if head is None else head
        new = _converted(source, prefix + HEAD, formats, plan, parameter=parameter)
        decoder.head = head if new is source else new
    if of_table is not None and of_table.embedding is not None and type(table) is nn.Embedding:
        decoder.embedding = _converted(table, f"{prefix}embedding", (of_table.embedding,), plan)


def _fill_in(module: nn.Module, plan: Plan) -> None:
    """The parameters that kept their layers, from the file."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in plan.published:
                parameter.copy_(plan.published[name].dequantise())
                plan.published[name].release()
