"""The same input gives the same output: alone or in a batch, padded or not, today or after saving, in fp32 or nearly so in bf16."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from zoo.batch import Encoded
from zoo.construct import Built
from zoo.errors import MediaError, UsageError, WeightsMissingError
from zoo.testing.check import SEED, CheckFailed, CheckSkipped, Subject, check
from zoo.testing.language import next_logits, token_rows
from zoo.testing.samples import extreme, ordinary, uneven
from zoo.testing.truth import ENCODERS, MODELS, encode

TOLERANCE = 1e-4  # of the largest value: float32 sums differ in their last digits with the shape of the batch
BFLOAT16_COSINE = 0.99

Output = dict[str, torch.Tensor]


@check("numbers", "One seed gives one model, and one input one output, to the bit.", kinds=MODELS)
def same_seed_same_output(subject: Subject) -> None:
    first, second = (subject.open(weights=None, seed=SEED).module for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if not torch.equal(one, other):
            raise CheckFailed(f"two models from one seed differ in {name}")
    for modality in subject.found.card.modalities:
        _must_equal(outputs(subject, modality), outputs(subject, modality), "the same input a second time", exact=True)


@check("numbers", "A batch of n gives what n singles give.", kinds=MODELS)
def batch_equals_singles(subject: Subject) -> None:
    for modality in subject.found.card.modalities:
        items = ordinary(modality)
        batch = outputs(subject, modality, items)
        for row, item in enumerate(items):
            single = outputs(subject, modality, [item])
            expected = {name: value[row : row + 1] for name, value in batch.items()}
            _must_equal(single, expected, f"{modality} item {row} alone and in a batch of {len(items)}")


@check("numbers", "Padding changes nothing: an item beside a longer one gives what it gives alone.", kinds=ENCODERS)
def padding_changes_nothing(subject: Subject) -> None:
    for modality in subject.found.card.modalities:
        items = uneven(modality)
        if subject.found.card.kind == "dual_encoder":
            batch = outputs(subject, modality, items)
            for row, item in enumerate(items):
                expected = {name: value[row : row + 1] for name, value in batch.items()}
                _must_equal(
                    outputs(subject, modality, [item]), expected, f"{modality} item {row} alone and beside longer ones"
                )
            continue
        padded = encode(subject, items)
        if bool(padded.mask_BT.all()):
            raise CheckSkipped(f"nothing is padded: {modality} items of every size give as many tokens")
        for row, item in enumerate(items):
            alone = encode(subject, [item])
            _must_equal(_real(alone, 0), _real(padded, row), f"{modality} item {row} alone and beside longer ones")


@check("numbers", "A gradient reaches every parameter that can be trained.", kinds=MODELS)
def gradient_reaches_every_parameter(subject: Subject) -> None:
    module = subject.module
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
    for modality in subject.found.card.modalities:
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
    for modality in subject.found.card.modalities:
        _must_equal(
            outputs(subject, modality), outputs(subject, modality, module=other), "after saving and loading", exact=True
        )


@check("numbers", "Every tensor and submodule is registered, so that it is saved, moved and cast.", kinds=MODELS)
def everything_is_registered(subject: Subject) -> None:
    known = {id(module) for module in subject.module.modules()}
    for name, module in subject.module.named_modules():
        for attribute, value in _attributes(module):
            where = f"{name}.{attribute}".lstrip(".")
            if isinstance(value, torch.Tensor):
                raise CheckFailed(f"{where} is a tensor that is neither a parameter nor a buffer (register_buffer)")
            if isinstance(value, torch.nn.Module) and id(value) not in known:
                raise CheckFailed(f"{where} is a module that is not registered (use nn.ModuleList or nn.ModuleDict)")


@check("numbers", "Cast to bfloat16, and moved to a GPU where there is one, it gives nearly the same.", kinds=MODELS)
def dtype_and_device_can_change(subject: Subject) -> None:
    weights = "card" if subject.trained else None
    moved = subject.open(weights=weights, dtype=torch.bfloat16).module
    must_be_near(subject, subject.module, moved, "in bfloat16", BFLOAT16_COSINE)
    if torch.cuda.is_available():
        moved = subject.open(weights=weights, device="cuda").module
        must_be_near(subject, subject.module, moved, "on the GPU", 0.9999)


def outputs(subject: Subject, modality: str, items: list[Any] | None = None, *, module: Any = None) -> Output:
    """What a model says about items of one modality, by name; float32 on the CPU."""
    module = subject.module if module is None else module
    items = ordinary(modality) if items is None else items
    with torch.inference_mode():
        if subject.found.card.kind == "dual_encoder":
            inputs = _to(module, module.preprocess(modality, items))
            found = {"embedding": module.encode(modality, inputs), "features": module.features(modality, inputs)}
        elif subject.found.card.kind == "decoder":
            found = {"logits": next_logits(module, token_rows(module, items))}
        else:
            encoded = module(_to(module, module.preprocess(items)))
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


def _must_equal(one: Output, other: Output, when: str, *, exact: bool = False) -> None:
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
    for modality in subject.found.card.modalities:
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


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """What hangs on a module beside what it registered, with the items of lists, tuples and dicts."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules") or name.endswith(("_hooks", "_hooks_with_kwargs")):
            continue
        if isinstance(value, dict):
            yield from ((f"{name}[{key!r}]", item) for key, item in value.items())
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{number}]", item) for number, item in enumerate(value))
        else:
            yield name, value
