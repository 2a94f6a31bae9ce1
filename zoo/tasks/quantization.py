"""A model by a kernel, kept as a file that is opened like a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.errors import UsageError
from zoo.models.build import Built, ModelSpec, open_model, spec_of, with_kernel
from zoo.models.kernels import FLOAT32, Asked, kernel_named
from zoo.models.quantised import FILE, QuantisedRecord, write_quantised
from zoo.nn.kernels.seam import is_kernel_embedding, is_kernel_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A model by a kernel. layers: name -> number format, of what runs by it. file: where it was written; None where it was not.

    weight_bytes: of all tensors that it holds, as a file would have them.
    """

    built: Built
    layers: Mapping[str, str]
    file: Path | None
    weight_bytes: int


def quantize(
    model: str | Path | ModelSpec | Built,
    kernel: str,
    *,
    skip: Sequence[str] = (),
    per_layer: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Quantised:
    """Let a model run by a kernel of layers, and keep it in a folder that is opened like a model.

    model: a name, or what was built (in place). skip: patterns of names of layers that stay float32 (`decoder.head`). per_layer: pattern -> another
    kernel. out: the folder, into which `model.safetensors` is written. overwrite: replace one that is there.
    Raises UsageError for a kernel that does not exist, has no layers, or that the model cannot take, for a pattern that fits no layer, a model that runs
    by a kernel already, WeightsError for NaN, ZooError where the disk refuses.

        quantised = zoo.quantize("smollm/135m-instruct", "int8", skip=["head"], out="smollm-int8")
        zoo.generate("The capital of France is", model="smollm-int8")
    """
    per_layer = dict(per_layer or {})
    chosen = kernel_named(kernel)
    if out is not None and not overwrite and (Path(out).expanduser() / FILE).exists():
        raise UsageError(f"{out} holds a model already: name another folder, or say overwrite (--overwrite)")
    if chosen.kernel.linear is None:
        raise UsageError(
            f"kernel {kernel} compiles whole modules when they are first called, and keeps those itself: give it as kernel when you open"
        )
    if not isinstance(model, Built):
        spec = spec_of(model)
        if spec.kernel is not None:
            raise UsageError(
                f"{spec.name} runs by kernel {spec.kernel} already: name the model that it was made of, without a kernel"
            )
        # blocks of its file go there as they are
        built = open_model(replace(spec, kernel=kernel, skip=tuple(skip), per_layer=per_layer))
    elif model.kernel not in (None, FLOAT32):
        raise UsageError(f"{model.name} runs by kernel {model.kernel} already: open it without one")
    else:
        built = with_kernel(model, kernel, asked=Asked(skip=tuple(skip), per_layer=per_layer))
    layers = {
        name: str(part.number_format)
        for name, part in built.module.named_modules()
        if is_kernel_linear(part) or is_kernel_embedding(part)
    }
    file = None
    if out is not None:
        provider = chosen.card.provider if chosen.card is not None else None
        record = QuantisedRecord(
            model=built.found.name
            if built.found.weights is not None and built.name == built.found.name
            else built.found.card.name,
            files=files_of(built),
            kernel=chosen.card.name if chosen.card is not None else FLOAT32,
            distribution=provider.distribution if provider is not None else "modalzoo",
            version=provider.version if provider is not None else "",
            skip=list(skip),
            per_layer=per_layer,
        )
        file = write_quantised(built.module, record, Path(out).expanduser())
    return Quantised(built=built, layers=layers, file=file, weight_bytes=_weight_bytes(built))


def files_of(built: Built) -> dict[str, str]:
    """Role of each file -> its sha256, those of its parts among them."""
    return dict(built.files) | {
        f"{role}.{name}": sha256 for role, part in built.parts.items() for name, sha256 in files_of(part).items()
    }


def _weight_bytes(built: Built) -> int:
    parts = [part for part in built.module.modules() if is_kernel_linear(part) or is_kernel_embedding(part)]
    tensors = [*built.module.state_dict().values(), *(tensor for part in parts for tensor in part.tensors().values())]  # type: ignore[operator]  # the protocol has it
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
