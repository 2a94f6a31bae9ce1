"""What an adapter is made of: parts that stand on layers of a built model, and tokens that a decoder reads before all others."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from zoo.models.drawn import Snapshot, was_trained
from zoo.nn.stamp import stamp_of

Columns = tuple[int, int] | None  # of a layer's outputs; None: all
# Of each place of a layer where its outputs are, and the part of each adapter, or None.
Held = Sequence[tuple[Columns, Sequence[Any]]]
Numbers = torch.Tensor | None  # int[B], which adapter each row takes; None: all take the first
Mixed = Callable[[torch.Tensor, torch.Tensor, Numbers], torch.Tensor]  # input, output of a layer, numbers -> output


class Part(Protocol):
    """What an adapter does at one place (`zoo.adapters.target_modules.Place`). A part is a module with any of these; what it lacks, it leaves alone.

    The input is float[B, ..., K] of a linear layer, int[B, T] of an embedding, float[B, C, ...] of a convolution (`Place.kind`), in the
    model's number format; parameters are float32 on `Place.device`, and tensors that are not trained are buffers, so that `to` moves them.

    before(input) -> input: what the layer is given instead.
    after(input, output) -> output: what comes of the place. The first axis of both is the batch; rows do not see each other.
    merged(weight, bias) -> weight, bias: the same as other weights of the layer; without it the adapter cannot be merged. All are
        float32, and as the layer has them: [N, K] of a linear layer, [V, W] of an embedding, [N, K, ...] of a convolution.
    mixed(held, scales) -> (input, output, numbers) -> output: a static function that does `after` at all places of a layer and for all rows
        in one pass, where each row has an adapter of its own (`numbers`; the number of adapters stands for none). It is for running: it is
        called without gradients and without dropout, lays out once what it needs, and writes into the output. Without it, and in training,
        the rows of each part are taken out, changed and put back. `mixed_before(parts, scales) -> (input, numbers) -> input` is the same
        for `before`. A class that has an `after` of its own does not inherit them.
    additive: True of a class whose change of the output depends neither on the weight nor on the output, so that others of its kind can
        be merged or not beside it. A class that has an `after` of its own does not inherit it.
    """


class Virtual(Protocol):
    """What a decoder reads before the tokens of a row: `count` tokens, as embeddings or as keys and values.

    embeddings() -> float[P, W], which the decoder reads like those of words (Lester et al. 2021, arXiv:2104.08691); or
    keys_and_values() -> float[layers, 2, G, P, K], which its layers find in the cache (Li and Liang 2021, arXiv:2101.00190).
    """

    count: int


class Adapter(nn.Module):
    """Parts by the name of their place, and virtual tokens: what the builder of an `adapter` card returns.

    `scale` is how far it goes from the base, 1 as trained; what it was made by (`method`, `options`) is kept for its file.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module] | None = None,
        *,
        virtual: nn.Module | None = None,
        combine: Callable[..., Adapter] | None = None,
        learning_rate: float = 2e-3,
    ) -> None:
        """parts: by the name of their place. virtual: see `Virtual`. learning_rate: what usually suits the method (AdamW).

        combine: (base, adapters, factors, *, how, r, and more of its own) -> an adapter made of several of the same method, with its options.
        """
        super().__init__()
        self.combine = combine
        self.learning_rate = learning_rate
        self.parts = nn.ModuleDict({part_key(name): part for name, part in (parts or {}).items()})
        self.virtual = virtual
        self.scale = 1.0
        self.method = ""
        self.options: dict[str, Any] = {}
        self.drawn: Mapping[str, Snapshot] = {}  # its parameters as they were drawn; none where they were trained before
        self._key: tuple[tuple[int, float], str] | None = None

    @property
    def places(self) -> list[str]:
        """The places where it has parts, in order."""
        return [_place(key) for key in self.parts]

    def part(self, place: str) -> nn.Module | None:
        """The part at a place; None where it has none."""
        found: nn.Module | None = self.parts[part_key(place)] if part_key(place) in self.parts else None  # noqa: SIM401 - a ModuleDict has no get
        return found

    def named_parts(self) -> Iterator[tuple[str, Any]]:
        for name, part in self.parts.items():
            yield _place(name), part

    @property
    def virtual_count(self) -> int:
        """Tokens that a decoder reads before all others."""
        virtual: Any = self.virtual
        return 0 if virtual is None else int(virtual.count)

    @property
    def untrained(self) -> bool:
        """Whether its parameters are still as they were drawn."""
        return bool(self.drawn) and not was_trained(self, self.drawn)

    @property
    def key(self) -> str:
        """sha256 of its content: two adapters with one key give the same numbers, whatever their names."""
        stamp = (stamp_of(self), self.scale)
        if self._key is None or self._key[0] != stamp:
            digest = hashlib.sha256(f"{self.method} {self.scale!r} {sorted(self.options.items())!r}".encode())
            for name, tensor in self.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            self._key = (stamp, digest.hexdigest())
        return self._key[1]


def finished(adapter: Adapter) -> Adapter:
    """The adapter as it is used after training: what only helped to train it is dropped from a copy."""
    if hasattr(adapter.virtual, "finish"):
        adapter = copy.deepcopy(adapter)
        virtual: Any = adapter.virtual
        adapter.options = {**adapter.options, **virtual.finish()}
    return adapter


def part_key(place: str) -> str:
    """The name of a place as that of a submodule of `Adapter.parts`, which has no dots."""
    return place.replace("/", "|").replace(".", "/")


def _place(key: str) -> str:
    return key.replace("/", ".").replace("|", "/")


def scaled(changed: torch.Tensor, original: torch.Tensor, scale: float) -> torch.Tensor:
    """The way from `original` to `changed`, gone by `scale`."""
    return changed if scale == 1.0 else original + scale * (changed - original)


def after(part: Any, input_BX: torch.Tensor, output_BN: torch.Tensor, scale: float) -> torch.Tensor:
    """What comes of a place under one part, for all rows."""
    return scaled(part.after(input_BX, output_BN), output_BN, scale)


def mixed_by_rows(held: Held, scales: Sequence[float]) -> Mixed:
    """`Part.mixed` for parts that have none of their own."""

    def apply(input_BX: torch.Tensor, output_BN: torch.Tensor, number_B: Numbers) -> torch.Tensor:
        for columns, parts in held:
            own_BN = output_BN if columns is None else output_BN[..., slice(*columns)]
            for number, (part, scale) in enumerate(zip(parts, scales, strict=True)):
                if part is None:
                    continue
                if number_B is None:
                    own_BN = after(part, input_BX, own_BN, scale)
                    continue
                rows = (number_B == number).nonzero().flatten()
                if len(rows):
                    changed = after(part, input_BX[rows], own_BN[rows], scale)
                    own_BN = own_BN.index_copy(0, rows, changed.to(own_BN.dtype))
            output_BN = put(output_BN, columns, own_BN)
        return output_BN

    return apply


def mixed_before_by_rows(parts: Sequence[Any], scales: Sequence[float]) -> Callable[[torch.Tensor, Numbers], torch.Tensor]:
    """`Part.mixed_before` for parts that have none of their own."""

    def apply(input_BX: torch.Tensor, number_B: Numbers) -> torch.Tensor:
        for number, (part, scale) in enumerate(zip(parts, scales, strict=True)):
            if part is None:
                continue
            if number_B is None:
                input_BX = scaled(part.before(input_BX), input_BX, scale)
                continue
            rows = (number_B == number).nonzero().flatten()
            if len(rows):
                own_BX = input_BX[rows]
                input_BX = input_BX.index_copy(0, rows, scaled(part.before(own_BX), own_BX, scale).to(input_BX.dtype))
        return input_BX

    return apply


def put(output_BN: torch.Tensor, columns: Columns, own_BN: torch.Tensor) -> torch.Tensor:
    """The outputs of a layer with those of one place in their columns."""
    if columns is None:
        return own_BN
    return torch.cat((output_BN[..., : columns[0]], own_BN, output_BN[..., columns[1] :]), -1)
