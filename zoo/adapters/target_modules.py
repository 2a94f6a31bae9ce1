"""The places of a built model where an adapter can stand, by name, whatever number format its layers run in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any

import torch
from torch import nn

from zoo.adapters.whole_modules import is_norm, whole_places
from zoo.errors import UsageError
from zoo.nn.attention import Attention
from zoo.nn.feed_forward import Gated
from zoo.nn.kernels.seam import is_kernel_embedding, is_kernel_linear
from zoo.nn.mixture import Mixture
from zoo.registry.suggest import did_you_mean, nearest

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PART = re.compile(r"(.+)\[(\d+)/(\d+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a part of an adapter stands.

    name: of the module that computes it, with dots, as the model has it when no kernel joined its layers; "self" where it is the model.
    kind: "linear", "embedding" or "convolution"; or "norm", where no method stands that changes a product.
    turned: whether a linear layer holds its weight as [K, N], as GPT-2's in transformers; `tensors` gives it as [N, K].
    layer: the module whose inputs and outputs the part sees. For a projection inside `nn.MultiheadAttention` that is the attention, and
        `weight_name` says which of its tensors.
    inputs, outputs: widths (of an embedding: its rows, and their width).
    columns: where the place's outputs are among those of the layer; None: they are all.
    keeps_rows: whether the first axis of what it reads is the batch; an expert reads tokens of any rows.
    """

    name: str
    kind: str
    layer: nn.Module
    inputs: int
    outputs: int
    columns: tuple[int, int] | None = None
    weight_name: str = "weight"
    keeps_rows: bool = True
    turned: bool = False

    @property
    def device(self) -> torch.device:
        """Where the layer lies."""
        for tensors in (self.layer.parameters(), self.layer.buffers()):
            for tensor in tensors:
                return torch.device(tensor.device)
        return torch.device("cpu")

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight of the place and its bias, as views of those of the layer. Raises UsageError where a kernel has none to give."""
        holder, weight_name = self._holder()
        weight = None if is_kernel_linear(holder) or is_kernel_embedding(holder) else getattr(holder, weight_name, None)
        if not isinstance(weight, torch.Tensor):
            raise UsageError(
                f"{self.name} runs by a kernel ({type(self.layer).__name__}), which rounds its weight for good: build the model without "
                f"a kernel for this, or put the adapter into weights first (zoo adapt merge)"
            )
        bias = getattr(holder, weight_name.removesuffix("weight") + "bias", None)
        if self.turned:
            weight = weight.T
        if self.columns is None:
            return weight, bias
        rows = slice(*self.columns)
        return weight[rows], None if bias is None else bias[rows]

    def computed_tensor(self) -> str | None:
        """The name of a tensor of the place that is computed from others at each call (`torch.nn.utils.parametrizations`), so that none can write to it."""
        holder, weight_name = self._holder()
        names = (weight_name, weight_name.removesuffix("weight") + "bias")
        return next((name for name in names if not isinstance(getattr(holder, name, None), nn.Parameter | None)), None)

    def _holder(self) -> tuple[nn.Module, str]:
        path, _, name = self.weight_name.rpartition(".")
        return self.layer.get_submodule(path), name


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model that an adapter is built for: the first argument of the builder of an `adapter` card.

    norms: more places, for what trains modules whole (`whole`).
    tied: a head that is no module of its own -> the embedding whose weight it reads, by name.
    layers, kv_heads, head_width, width, device: of its decoder, for virtual tokens; 0 where it has none.
    embed: text -> the embeddings of its tokens, float[T, W]; None where the decoder has no tokenizer.
    """

    model: nn.Module
    places: Mapping[str, Place]
    norms: Mapping[str, Place] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    layers: int = 0
    kv_heads: int = 0
    head_width: int = 0
    width: int = 0
    device: torch.device | str = "cpu"
    embed: Callable[[str], torch.Tensor] | None = None

    def chosen(self, targets: Sequence[str] | str) -> list[Place]:
        """As `chosen_places`."""
        return chosen_places(self.places, targets)

    def whole(self, targets: Sequence[str] | str) -> list[Place]:
        """As `zoo.adapters.whole_modules.whole_places`, of layers and norms."""
        return whole_places(self.model, {**self.places, **self.norms}, targets)

    def require_decoder(self, method: str) -> None:
        """Raise UsageError unless there is a decoder to read virtual tokens."""
        if not self.layers:
            raise UsageError(
                f"{method} puts tokens before those that a decoder reads, and {type(self.model).__name__} has no decoder: use a method that stands "
                f"on layers (zoo list --kind adapter)"
            )


def base_of(model: nn.Module) -> Base:
    """A model as the builders of adapters see it."""
    decoder: Any = next((part for part in model.modules() if hasattr(part, "new_cache") and hasattr(part, "stack")), None)
    places, norms = places_of(model), norms_of(model)
    tied = {
        f"{name}.head".lstrip("."): f"{name}.embedding".lstrip(".")
        for name, part in model.named_modules()
        if is_tied(part, getattr(part, "embedding", None))
    }
    if decoder is None:
        return Base(model=model, places=places, norms=norms, tied=tied)
    cache = decoder.new_cache(1, 0)
    layers, _, _, kv_heads, _, head_width = cache.store.shape

    def embed(text: str) -> torch.Tensor:
        ids = decoder.tokenizer.encode(text)
        with torch.no_grad():
            embedded: torch.Tensor = decoder.embedding(torch.tensor(ids, dtype=torch.long, device=cache.store.device))
        return embedded.clone()

    return Base(
        model=model,
        places=places,
        norms=norms,
        tied=tied,
        layers=layers,
        kv_heads=kv_heads,
        head_width=head_width,
        width=decoder.width,
        device=cache.store.device,
        embed=embed if decoder.tokenizer is not None else None,
    )


def places_of(model: nn.Module) -> dict[str, Place]:
    """Every place of a model, by name."""
    found: dict[str, Place] = {}
    inside: set[str] = set()
    experts: list[str] = []
    for name, module in model.named_modules():
        if name in inside:
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside |= {f"{name}.{child}".lstrip(".") for child, _ in module.named_modules() if child}
            places = _of_attention(name, module)
        elif isinstance(module, Attention) and module.query_key_value is not None:
            inside.add(f"{name}.query_key_value")
            keys, width = module.kv_heads * module.head_width, module.heads * module.head_width
            places = _joined(name, module.query_key_value, {"query": width, "key": keys, "value": keys})
        elif isinstance(module, Gated) and module.gate_and_up is not None:
            inside.add(f"{name}.gate_and_up")
            joined: Any = module.gate_and_up
            half = joined.out_features // 2
            places = _joined(name, joined, {"gate": half, "up": half})
        else:
            place = _of_layer(name or "self", module)
            places = [] if place is None else [place]
        if isinstance(module, Mixture):
            inside.add(f"{name}.router".lstrip("."))  # it is multiplied in float32, and called by nobody
            experts.append(f"{name}.experts.".lstrip("."))
        found |= {place.name: place for place in places}
    for name, place in found.items():
        if name.startswith(tuple(experts)):
            found[name] = replace(place, keeps_rows=False)
    return found


def norms_of(model: nn.Module) -> dict[str, Place]:
    """The norms of a model as places, by name."""
    return {
        name: Place(name=name, kind="norm", layer=module, inputs=len(module.weight), outputs=len(module.weight))
        for name, module in model.named_modules()
        if name and is_norm(module)
    }


def is_tied(module: Any, embedding: Any) -> bool:
    """Whether a module is a decoder that reads its head from an embedding."""
    return (
        embedding is not None
        and getattr(module, "embedding", None) is embedding
        and getattr(module, "head", embedding) is None
    )


def chosen_places(places: Mapping[str, Place], targets: Sequence[str] | str) -> list[Place]:
    """The places that some target names, in the model's order.

    A target is a name (the whole of one means that layer alone) or its last words (`query`, `attention.query`), a pattern
    (`stack.blocks.1?.*.value`), or with `[1/3]` one of equal slices of a fused layer's outputs, counted from 0 (`qkv[0/3]`). "all-linear" is
    every linear layer but heads and classifiers.
    Raises UsageError for a target that names nothing, with what there is.
    """
    if isinstance(targets, str):
        targets = [targets]
    if not targets:
        raise UsageError(f"targets name at least one layer: this model has {_shown(places)}")
    chosen: dict[str, Place] = {}
    for target in targets:
        sliced = PART.fullmatch(target)
        pattern = sliced[1] if sliced else target
        if target == "all-linear":
            matched = [place for place in places.values() if place.kind == "linear" and not _is_head(place.name)]
        elif pattern in places:
            matched = [places[pattern]]
        else:
            matched = [
                place for name, place in places.items() if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
            ]
        if not matched:
            raise UsageError(
                f"no layer is called {target!r}{_suggested(pattern, places)}; targets say which are adapted (--option targets=a,b)"
            )
        for place in matched:
            part = _slice(place, int(sliced[2]), int(sliced[3])) if sliced else place
            chosen[part.name] = part
    _refuse_overlaps(chosen)
    order = {name: number for number, name in enumerate(places)}
    return sorted(chosen.values(), key=lambda place: (order[place.name.partition("[")[0]], place.columns or (0, 0)))


def _slice(place: Place, number: int, count: int) -> Place:
    if place.kind != "linear" or not 0 <= number < count or place.outputs % count:
        raise UsageError(
            f"{place.name}[{number}/{count}] is no slice of it: it has {place.outputs} outputs, which {count} equal slices must divide, "
            f"and they are counted from 0"
        )
    size, start = place.outputs // count, 0 if place.columns is None else place.columns[0]
    columns = (start + number * size, start + (number + 1) * size)
    return replace(place, name=f"{place.name}[{number}/{count}]", outputs=size, columns=columns)


def overlaps(places: Iterable[Place]) -> Iterator[tuple[Place, Place]]:
    """Pairs of places that have outputs of a layer in common."""
    by_layer: dict[tuple[int, str], list[Place]] = {}
    for place in places:
        by_layer.setdefault((id(place.layer), place.weight_name), []).append(place)
    for alike in by_layer.values():
        alike.sort(key=_range)
        for one, other in combinations(alike, 2):
            if _range(other)[0] < _range(one)[1]:
                yield one, other


def _range(place: Place) -> tuple[int, int]:
    return place.columns or (0, place.outputs)


def _refuse_overlaps(chosen: Mapping[str, Place]) -> None:
    """Raise UsageError where one output would be changed twice."""
    for one, other in overlaps(chosen.values()):
        raise UsageError(f"{one.name} and {other.name} are the same outputs: name one of them")


def _of_layer(name: str, module: Any) -> Place | None:
    if isinstance(module, nn.Linear) or is_kernel_linear(module):
        return Place(name=name, kind="linear", layer=module, inputs=module.in_features, outputs=module.out_features)
    if is_turned_linear(module):
        inputs, outputs = module.weight.shape
        return Place(name=name, kind="linear", layer=module, inputs=inputs, outputs=outputs, turned=True)
    if isinstance(module, nn.Embedding) or is_kernel_embedding(module):
        return Place(name=name, kind="embedding", layer=module, inputs=module.num_embeddings, outputs=module.embedding_dim)
    if type(module) in CONVOLUTIONS:  # others pad or scale in their own ways
        return Place(name=name, kind="convolution", layer=module, inputs=module.in_channels, outputs=module.out_channels)
    return None


def is_turned_linear(module: Any) -> bool:
    """Whether a module is a linear layer that holds its weight as [K, N]: `Conv1D` of transformers, which GPT-2 and its kin are made of."""
    weight = getattr(module, "weight", None)
    known = isinstance(weight, torch.Tensor) and weight.ndim == 2 and getattr(module, "nf", None) == weight.shape[1]
    return known and type(module).__name__ == "Conv1D"


def _of_attention(name: str, module: nn.MultiheadAttention) -> list[Place]:
    """The projections of torch's attention, which reads its weights itself and calls no layer."""
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        return []  # `zoo.adapters.adapted_attention` does not compute these
    width, prefix = module.embed_dim, f"{name}." if name else ""
    output = Place(
        name=f"{prefix}out_proj", kind="linear", layer=module, inputs=width, outputs=width, weight_name="out_proj.weight"
    )
    joined = {"query": 0, "key": 1, "value": 2}
    return [
        Place(
            name=f"{prefix}in_proj",
            kind="linear",
            layer=module,
            inputs=width,
            outputs=3 * width,
            weight_name="in_proj_weight",
        ),
        *(
            Place(
                name=f"{prefix}{part}",
                kind="linear",
                layer=module,
                inputs=width,
                outputs=width,
                columns=(number * width, (number + 1) * width),
                weight_name="in_proj_weight",
            )
            for part, number in joined.items()
        ),
        output,
    ]


def _joined(name: str, layer: Any, outputs: Mapping[str, int]) -> list[Place]:
    """The layers that a kernel joined, under the names that they had."""
    places, start = [], 0
    for part, size in outputs.items():
        columns = (start, start + size)
        full = f"{name}.{part}" if name else part
        places.append(Place(name=full, kind="linear", layer=layer, inputs=layer.in_features, outputs=size, columns=columns))
        start += size
    return places


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] in ("head", "classifier")


def _suggested(target: str, places: Mapping[str, Place]) -> str:
    tails = {name.rpartition(".")[2] for name in places}
    near = nearest(target.rpartition(".")[2], sorted(tails), cutoff=0.5)
    return f"; {did_you_mean(near, '')}" if near else f": this model has {_shown(places)}"


def _shown(places: Mapping[str, Place]) -> str:
    """The last words of the names, with how many places end so."""
    counts: dict[str, int] = {}
    for name in places:
        tail = name.rpartition(".")[2]
        counts[tail] = counts.get(tail, 0) + 1
    return ", ".join(f"{tail} ({count})" for tail, count in list(counts.items())[:20]) or "no layer that one could stand on"
