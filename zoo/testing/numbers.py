"""The same input gives the same output: alone or in a batch, padded or not, today or after saving, in fp32 or nearly so in bf16."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

from zoo.errors import MediaError, UsageError, WeightsMissingError
from zoo.models.build import DTYPES, Built
from zoo.models.encoded import Encoded
from zoo.testing.check import FEATURES, SEED, CheckFailed, CheckSkipped, Subject, check
from zoo.testing.fusion import FRAMES, bridge_width, features_of
from zoo.testing.language import next_logits, token_rows
from zoo.testing.samples import extreme, ordinary, uneven
from zoo.testing.truth import ENCODERS, MODELS, encode

TOLERANCE = 1e-4  # of the largest value: float32 sums differ in their last digits with the shape of the batch
HALF_COSINE = 0.99  # of 16 bits to float32
MOST_OBJECTS = 100_000  # that are searched for what is not registered: the merges of a tokenizer are many, and no tensors

Output = dict[str, torch.Tensor]


@check("numbers", "One seed gives one model, and one input one output, to the bit.", kinds=MODELS)
def same_seed_same_output(subject: Subject) -> None:
    first, second = (subject.open(weights=None, seed=SEED).module for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if not torch.equal(one, other):
            raise CheckFailed(f"two models from one seed differ in {name}")
    for modality in subject.reads:
        must_equal(outputs(subject, modality), outputs(subject, modality), "the same input a second time", exact=True)


@check("numbers", "A batch of n gives what n singles give.", kinds=MODELS)
def batch_equals_singles(subject: Subject) -> None:
    for modality in subject.reads:
        items = ordinary(modality)
        batch = outputs(subject, modality, items)
        for row, item in enumerate(items):
            single = outputs(subject, modality, [item])
            expected = {name: value[row : row + 1] for name, value in batch.items()}
            must_equal(single, expected, f"{modality} item {row} alone and in a batch of {len(items)}")


@check("numbers", "Padding changes nothing: an item beside a longer one gives what it gives alone.", kinds=ENCODERS)
def padding_changes_nothing(subject: Subject) -> None:
    for modality in subject.reads:
        items = uneven(modality)
        if subject.found.card.kind == "dual_encoder":
            batch = outputs(subject, modality, items)
            for row, item in enumerate(items):
                expected = {name: value[row : row + 1] for name, value in batch.items()}
                must_equal(
                    outputs(subject, modality, [item]), expected, f"{modality} item {row} alone and beside longer ones"
                )
            continue
        padded, counts = encode(subject, items), set()
        for row, item in enumerate(items):
            alone, when = encode(subject, [item]), f"{modality} item {row} alone and beside longer ones"
            count, beside = int(alone.mask_BT.sum()), int(padded.mask_BT[row].sum())
            if count != beside:
                raise CheckFailed(
                    f"{when}: {count} and {beside} of its tokens are real (mask_BT is False where one is padding)"
                )
            must_equal(_real(alone, 0), _real(padded, row), when)
            counts.add(count)
        if len(counts) == 1:
            raise CheckSkipped(f"nothing is padded: {modality} items of every size give as many tokens")


@check("numbers", "A gradient reaches every parameter that can be trained.", kinds=MODELS)
def gradient_reaches_every_parameter(subject: Subject) -> None:
    module = subject.module
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise CheckSkipped("it has no parameter that can be trained")
    module.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(SEED)
    with torch.enable_grad():
        loss = torch.zeros(())
        for output in _differentiable(subject):
            if output.requires_grad:
                loss = loss + (output * torch.randn(output.shape, generator=generator)).sum()
        if not loss.requires_grad:
            raise CheckFailed("no output depends on any parameter (is it computed under no_grad?)")
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    dead = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any()))
    ]
    module.zero_grad(set_to_none=True)
    if dead:
        shown = ", ".join(dead[:5]) + (f" and {len(dead) - 5} more" if len(dead) > 5 else "")
        raise CheckFailed(f"no output depends on {shown}")


@check("numbers", "Extreme but legal input gives finite numbers.", kinds=MODELS)
def extreme_input_stays_finite(subject: Subject) -> None:
    for modality in subject.reads:
        for name, item in extreme(modality):
            try:
                output = outputs(subject, modality, [item])
            except (MediaError, UsageError):
                continue  # a refusal that says why is an answer
            for key, value in output.items():
                if not bool(value.isfinite().all()):
                    raise CheckFailed(f"{name} gives NaN or infinity in its {key}")


@check("numbers", "Saved and loaded into a model of another seed, it gives the same output to the bit.", kinds=MODELS)
def state_survives_saving(subject: Subject) -> None:
    original = subject.built
    other = _reloaded(subject, original)
    for modality in subject.reads:
        must_equal(
            outputs(subject, modality), outputs(subject, modality, module=other), "after saving and loading", exact=True
        )


@check("numbers", "Every tensor and submodule is registered, so that it is saved, moved and cast.", kinds=MODELS)
def everything_is_registered(subject: Subject) -> None:
    known = {id(item) for item in (*subject.module.modules(), *subject.module.parameters())}
    for where, value, in_object in _attributes(subject.module):
        if id(value) in known:
            continue
        if isinstance(value, torch.Tensor):
            raise CheckFailed(f"{where} is a tensor that is neither a parameter nor a buffer (register_buffer)")
        if not in_object or value.state_dict():  # a transform without state loses nothing where an object holds it
            raise CheckFailed(f"{where} is a module that is not registered (use nn.ModuleList or nn.ModuleDict)")


@check(
    "numbers",
    "In each dtype and on each device of the card (bfloat16 and any GPU, if it names none) it gives nearly the same.",
    kinds=MODELS,
)
def dtype_and_device_can_change(subject: Subject) -> None:
    weights = "card" if subject.trained else None
    card = subject.found.card
    devices = [device for device in card.devices or ("cpu", "cuda") if _is_here(device)]
    tried = False
    for name in card.dtypes or ("bfloat16",):
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
            raise CheckFailed(f"the card names the dtype {name!r}, a model can be cast to float32, bfloat16 or float16")
        for device in devices[:1]:
            where = "" if device == "cpu" else f" on {device}"
            moved = subject.open(weights=weights, dtype=dtype, device=device).module
            must_be_near(subject, subject.module, moved, f"in {name}{where}", HALF_COSINE)
            tried = True
    for device in devices:
        if torch.device(device).type != "cpu":
            moved = subject.open(weights=weights, device=device).module
            must_be_near(subject, subject.module, moved, f"on {device}", 0.9999)
            tried = True
    if not tried:
        raise CheckSkipped(f"the card names the devices {', '.join(card.devices)}, and none of them is here")


def _is_here(device: str) -> bool:
    try:
        torch.device(device)
    except RuntimeError:
        raise CheckFailed(f"the card names the device {device!r}, which torch does not know") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch without CUDA asserts; meta devices hold no numbers
        return False
    return torch.device(device).type != "meta"


def outputs(subject: Subject, modality: str, items: list[Any] | None = None, *, module: Any = None) -> Output:
    """What a model says about items of one modality, by name; float32 on the CPU."""
    module = subject.module if module is None else module
    items = ordinary(modality) if items is None else items
    return run_prepared(subject, modality, prepare(subject, modality, items, module), module)


def prepare(subject: Subject, modality: str, items: list[Any], module: Any) -> Any:
    """What a model's forward takes, of raw items; the rows of ids for a decoder."""
    with torch.inference_mode():
        if subject.found.card.kind == "dual_encoder":
            return _to(module, module.preprocess(modality, items))
        if subject.found.card.kind == "decoder":
            return token_rows(module, items)
        if subject.found.card.kind == "bridge":
            return features_of(module, items, bridge_width(subject))
        return _to(module, module.preprocess(items))


def run_prepared(subject: Subject, modality: str, inputs: Any, module: Any) -> Output:
    """What a model says about what `prepare` made, by name; float32 on the CPU."""
    with torch.inference_mode():
        if subject.found.card.kind == "dual_encoder":
            found = {"embedding": module.encode(modality, inputs), "features": module.features(modality, inputs)}
        elif subject.found.card.kind == "decoder":
            found = {"logits": next_logits(module, inputs)}
        elif subject.found.card.kind == "bridge":
            latents_BLW, mask_BL = module(inputs)
            found = {"latents": latents_BLW * mask_BL[..., None]}
        else:
            encoded = module(inputs)
            found = {"tokens": encoded.tokens_BTD, "pooled vector": encoded.pooled_BD}
    return {name: value.float().cpu() for name, value in found.items()}


def _differentiable(subject: Subject) -> Iterator[torch.Tensor]:
    """Everything a model can output for the ordinary and the uneven items."""
    module, card = subject.module, subject.found.card
    for samples in (ordinary, uneven):
        if card.kind == "dual_encoder":
            embeddings = [
                module.encode(modality, module.preprocess(modality, samples(modality))) for modality in card.modalities
            ]
            yield from embeddings
            yield from (
                module.features(modality, module.preprocess(modality, samples(modality))) for modality in card.modalities
            )
            yield module.logit_scale * (embeddings[0] @ embeddings[-1].T) + getattr(module, "logit_bias", 0.0)
            continue
        if card.kind == "decoder":
            yield next_logits(module, token_rows(module, samples(card.modalities[0])))
            continue
        if card.kind == "bridge":
            features = features_of(module, samples(FEATURES), bridge_width(subject))
            yield from (module(features, frames=1)[0], module(features, frames=FRAMES)[0])
            continue
        inputs = module.preprocess(samples(card.modalities[0]))
        encoded = module(inputs)
        yield encoded.tokens_BTD
        yield encoded.pooled_BD
        if subject.found.classes:
            yield module.logits(inputs)


def _reloaded(subject: Subject, original: Built) -> torch.nn.Module:
    state = {name: tensor.detach().clone().contiguous() for name, tensor in original.module.state_dict().items()}
    if subject.found.card.parts:
        module = subject.open(weights="card" if subject.trained else None, seed=SEED + 1).module
        for tensor in module.state_dict().values():
            tensor.zero_()  # so that only what is saved can bring the output back
        module.load_state_dict(state, strict=True)
        return module
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(state, path)
        try:
            return subject.open(weights=path, seed=SEED + 1).module
        except WeightsMissingError as error:
            raise CheckSkipped(f"a file that belongs to its weights is not on this machine: {error}") from None


def _real(encoded: Encoded, row: int) -> Output:
    mask_T = encoded.mask_BT[row]
    return {"tokens": encoded.tokens_BTD[row][mask_T].float(), "pooled vector": encoded.pooled_BD[row].float()}


def must_equal(one: Output, other: Output, when: str, *, exact: bool = False) -> None:
    """Raises CheckFailed, with `when` and the difference, unless the two are equal: within TOLERANCE, or to the bit."""
    for name, value in one.items():
        expected = other[name]
        if value.shape != expected.shape:
            raise CheckFailed(f"{when}: {name} of shape {list(value.shape)} and {list(expected.shape)}")
        if exact and not torch.equal(value, expected):
            raise CheckFailed(f"{when}: {name} differs by up to {_difference(value, expected):.2g}")
        scale = max(1e-3, float(expected.abs().max())) if expected.numel() else 1.0
        if not exact and not _difference(value, expected) <= TOLERANCE * scale:
            raise CheckFailed(
                f"{when}: {name} differs by {_difference(value, expected):.2g}, allowed is {TOLERANCE * scale:.2g} "
                f"({TOLERANCE} of its largest value)"
            )


def _difference(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).abs().max()) if value.numel() else 0.0


def must_be_near(subject: Subject, exact: Any, moved: Any, how: str, least: float) -> float:
    """The least cosine between the outputs of two modules on the ordinary samples. Raises CheckFailed if it is below `least`."""
    lowest = 1.0
    for modality in subject.reads:
        expected, actual = outputs(subject, modality, module=exact), outputs(subject, modality, module=moved)
        for name, value in expected.items():
            if not bool(actual[name].isfinite().all()):
                raise CheckFailed(f"{how} its {name} holds NaN or infinity")
            cosine = float(torch.nn.functional.cosine_similarity(value.flatten(), actual[name].flatten(), dim=0))
            if cosine < least:
                raise CheckFailed(f"{how} its {name} has cosine {cosine:.4f} to float32, allowed is {least}")
            lowest = min(lowest, cosine)
    return lowest


def _to(module: Any, inputs: Any) -> Any:
    """Prepared inputs on the device of the model."""
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    move: Callable[[Any], Any] = lambda value: value.to(device) if isinstance(value, torch.Tensor) else value  # noqa: E731
    return tuple(move(value) for value in inputs) if isinstance(inputs, tuple) else move(inputs)


def _attributes(root: torch.nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """Tensors and modules that hang on modules beside what these registered, in containers and objects of any depth: where,
    the value, and whether an object that is neither a module nor a container holds it. The nearest come first.
    """
    waiting = deque((name, value, False) for path, module in root.named_modules() for name, value in _own(path, module))
    seen: set[int] = set()
    while waiting and len(seen) < MOST_OBJECTS:
        where, value, in_object = waiting.popleft()
        if isinstance(value, (torch.Tensor, torch.nn.Module)):
            yield where, value, in_object
            continue
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        held = _held(where, value)
        in_object = in_object or not isinstance(value, _CONTAINERS)
        waiting.extend((name, item, in_object) for name, item in held if not isinstance(item, _LEAVES))


_CONTAINERS = (Mapping, list, tuple, set, frozenset, deque)
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), type, ModuleType, FunctionType, BuiltinFunctionType)


def _own(path: str, module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name not in ("_parameters", "_buffers", "_modules") and not name.endswith(("_hooks", "_hooks_with_kwargs")):
            yield f"{path}.{name}".lstrip("."), value


def _held(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a container or an object holds, each with its place."""
    if isinstance(value, Mapping):
        yield from ((f"{where}[{key!r:.40}]", item) for key, item in value.items())
    elif isinstance(value, _CONTAINERS):
        yield from ((f"{where}[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, partial):
        yield from _held(f"{where}.args", value.args)
        yield from _held(f"{where}.keywords", value.keywords)
    elif isinstance(value, MethodType):
        yield f"{where}.__self__", value.__self__
    else:
        yield from ((f"{where}.{name}", item) for name, item in getattr(value, "__dict__", {}).items())
        slots = {name for kind in type(value).__mro__ for name in _slots(kind)}
        yield from ((f"{where}.{name}", getattr(value, name)) for name in sorted(slots) if hasattr(value, name))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
