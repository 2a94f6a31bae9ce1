"""What a kernel is made of. A plugin's builder returns a `Kernel`; the core applies it to a built model (`zoo.nn.kernels.apply`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from zoo.nn.cache import Cache

Tensors = Mapping[str, torch.Tensor]  # all that is kept of one weight, by name


class Published(Protocol):
    """A weight as its file holds it, in blocks of few bits: `kind` names their type, `rows` are their bytes uint8[N, bytes of a row]."""

    @property
    def kind(self) -> str: ...

    @property
    def rows(self) -> torch.Tensor: ...

    def dequantise(self) -> torch.Tensor:
        """The weight that the blocks stand for, float32[N, K]."""
        ...

    def release(self) -> None:
        """Its memory is not needed for now: a file's bytes are read from the file again."""
        ...


def _any_size(outputs: int, inputs: int) -> bool:
    return outputs > 0 and inputs > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFormat:
    """One number format of a weight: how it is rounded, what is kept of it, and the layer that runs by what is kept.

    quantise: weight float32[N, K] -> its tensors. They are plain, in no library's layout, and all that is saved of the weight.
    layer: (those tensors, bias float32[N] or None) -> a layer without parameters that computes with them. It keeps `KernelLinear`,
        or `KernelEmbedding` where the format is one of tables; its `tensors()` are those tensors again, bit for bit. None: the layer
        that it would replace stays.
    dequantise: those tensors -> the weight float32[N, K] that they stand for: the plain reference of the layer.
    fits: (N, K) -> whether a weight of that size can be kept so.
    blocks: types of GGUF that `layer` takes as published, as the one tensor `{"<TYPE>": uint8[N, bytes of a row]}`.
    """

    quantise: Callable[[torch.Tensor], Tensors]
    layer: Callable[[Tensors, torch.Tensor | None], nn.Module | None]
    dequantise: Callable[[Tensors], torch.Tensor]
    fits: Callable[[int, int], bool] = _any_size
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """What a module is compiled for.

    key: sha256 over the weights and the code of the module, under which a compiled form may be kept. cache: the folder for it.
    threads: how many it may use; None: as many as torch has. calibration: inputs of the module, for formats that need real ones.
    """

    key: str
    cache: Path | None = None
    threads: int | None = None
    calibration: Sequence[tuple[torch.Tensor, ...]] = ()


class Step(Protocol):
    """What reads and writes tokens of a decoder in place of its modules, over the decoder's own cache (`zoo.nn.cache.Cache`)."""

    def takes(self, cache: Cache | None, /, **others: object) -> bool:
        """Whether a call of `Decoder.forward` can be answered. others: its other arguments by name, None where they are not given.

        It says no where adapters or hooks stand on the decoder, gradients are wanted, or an argument is given that it does not know.
        """
        ...

    def __call__(
        self,
        tokens_BT: torch.Tensor,
        cache: Cache,
        /,
        *,
        mask_BT: torch.Tensor | None = None,
        at_BN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `Decoder.forward`: int[B, T] -> float32[B, T, V], of the tokens at `at_BN` alone where given; they are added to the cache."""
        ...


Compile = Callable[[nn.Module, CompileRequest], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How a model computes, in three sizes of piece; a kernel has at least one of `linear`, `compile` and `step`.

    linear: of linear layers. head: of a decoder's last layer, None as `linear`. embedding: of its table, None leaves it as it is.
    otherwise: of layers that `linear` does not fit; None: float32.
    compile: (module that takes and gives tensors alone, request) -> a module that gives the same, compiled whole.
    step: decoder to which the layers were applied -> what reads and writes tokens in its place, or None where it does not know the
        decoder's shape.
    """

    linear: LayerFormat | None = None
    head: LayerFormat | None = None
    embedding: LayerFormat | None = None
    otherwise: LayerFormat | None = None
    compile: Compile | None = None
    step: Callable[[nn.Module], Step | None] | None = None
