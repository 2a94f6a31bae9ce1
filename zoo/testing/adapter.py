"""What an adapter promises: it begins as it says, learns alone, shares a batch, and can be taken out, kept and handed on."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zoo.adapters.adapt import Adapters
from zoo.adapters.adapted import Adapted
from zoo.decoding.generation import generate
from zoo.decoding.reading import batch_of
from zoo.errors import UsageError
from zoo.nn.attention import Attention
from zoo.nn.block import Block
from zoo.nn.decoder import Decoder
from zoo.nn.feed_forward import Gated
from zoo.nn.norm import RMSNorm
from zoo.nn.positions import Rotary
from zoo.nn.stack import Stack
from zoo.registry.activation import resolve
from zoo.testing.check import SEED, CheckFailed, CheckSkipped, Subject, check

ADAPTERS = ("adapter",)
TOLERANCE = 1e-5  # of the largest logit
WIDTH, HEADS, LAYERS, VOCABULARY, CONTEXT = 32, 4, 2, 64, 96


@check("adapter", "As it begins, an adapter of layers changes no logit, to the bit.", kinds=ADAPTERS, needs_model=False)
def it_begins_as_the_base(subject: Subject) -> None:
    base = _logits(small_decoder(), _rows())
    with _adapted(subject, shaken=False) as adapters:
        if adapters["own"].virtual is not None:
            raise CheckSkipped("it puts tokens before those of a row, which are something from the start")
        for row, (found, expected) in enumerate(zip(_logits(adapters.model, _rows()), base, strict=True)):
            if not torch.equal(found, expected):
                raise CheckFailed(
                    f"row {row} is another from the start, by {_apart(found, expected):.1e} of the largest logit"
                )


@check("adapter", "It changes what the model gives once its numbers are others.", kinds=ADAPTERS, needs_model=False)
def it_changes_something(subject: Subject) -> None:
    base = _logits(small_decoder(), _rows())
    with _adapted(subject) as adapters:
        for row, (found, expected) in enumerate(zip(_logits(adapters.model, _rows()), base, strict=True)):
            if not bool(found.isfinite().all()):
                raise CheckFailed(f"row {row} has logits that are NaN or infinite")
            if _apart(found, expected) < TOLERANCE:
                raise CheckFailed(f"row {row} is as without it, though its numbers are not those that it began with")


@check("adapter", "Gradients reach all of its parameters and none of the model's.", kinds=ADAPTERS, needs_model=False)
def only_it_learns(subject: Subject) -> None:
    with _adapted(subject) as adapters:
        before = {name: tensor.clone() for name, tensor in adapters.model.state_dict().items()}
        optimiser = torch.optim.SGD(adapters.parameters(), lr=0.01)
        tokens_BT, mask_BT = batch_of(_rows())
        adapters.model(tokens_BT, mask_BT=mask_BT)[:, -1].square().sum().backward()
        for name, parameter in adapters["own"].named_parameters():
            if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any())):
                raise CheckFailed(f"no gradient reaches {name.replace('/', '.')}")
        for name, parameter in adapters.model.named_parameters():
            if parameter.grad is not None:
                raise CheckFailed(f"the model's {name} has a gradient")
        optimiser.step()
        for name, tensor in adapters.model.state_dict().items():
            if not torch.equal(tensor, before[name]):
                raise CheckFailed(f"the model's {name} is another after a step of training")


@check("adapter", "Merged into the weights it gives the same, and taken out again it leaves them as they were, to the bit.", kinds=ADAPTERS, needs_model=False)  # fmt: skip
def merging_comes_back(subject: Subject) -> None:
    with _adapted(subject) as adapters:
        before = {name: tensor.clone() for name, tensor in adapters.model.state_dict().items()}
        expected = _logits(adapters.model, _rows())
        if adapters["own"].virtual is not None or not all(
            hasattr(part, "merged") for _, part in adapters["own"].named_parts()
        ):
            raise CheckSkipped("it is no change of weights, and cannot be merged")
        adapters.merge("own")
        _near(_logits(adapters.model, _rows()), expected, "merged")
        adapters.unmerge()
        for name, tensor in adapters.model.state_dict().items():
            if not torch.equal(tensor, before[name]):
                raise CheckFailed(f"the model's {name} is another after merging and unmerging")


@check("adapter", "Rows of one batch, with it, with another of its kind and without, give what they give alone; so do answers.", kinds=ADAPTERS, needs_model=False)  # fmt: skip
def rows_keep_their_own(subject: Subject) -> None:
    with _adapted(subject) as adapters:
        torch.manual_seed(SEED)
        _add(adapters, subject, "other")
        _shake(adapters, "other", SEED + 2)
        names = ["own", None, "other", "own"]
        rows = _rows()
        with adapters.using(names):
            together = _logits(adapters.model, rows)
        for row, name in enumerate(names):
            with adapters.using(name):
                (alone,) = _logits(adapters.model, [rows[row]])
            _near([together[row]], [alone], f"beside others ({name or 'the model alone'})")
        answers = generate(adapters.model, rows, max_tokens=5, adapters=names)  # type: ignore[arg-type]  # it keeps the contract
        for row, name in enumerate(names):
            (one,) = generate(adapters.model, [rows[row]], max_tokens=5, adapters=[name])  # type: ignore[arg-type]  # as above
            if one.ids != answers[row].ids:
                raise CheckFailed(f"row {row} answers {list(answers[row].ids)} beside others and {list(one.ids)} alone")


@check("adapter", "Written to a file and read again, it gives the same to the bit.", kinds=ADAPTERS, needs_model=False)
def its_file_comes_back(subject: Subject) -> None:
    with _adapted(subject) as adapters, tempfile.TemporaryDirectory() as folder:
        expected = _logits(adapters.model, _rows())
        adapters.save("own", Path(folder) / "own.safetensors")
        adapters.load(Path(folder) / "own.safetensors", name="read")
        for row, (found, wanted) in enumerate(zip(_logits(adapters.model, _rows()), expected, strict=True)):
            if not torch.equal(found, wanted):
                raise CheckFailed(f"row {row} is another after a file was written and read, by {_apart(found, wanted):.1e}")


@check("adapter", "Handed to HF PEFT's format and back, it gives the same.", kinds=ADAPTERS, needs_model=False)
def its_exchange_comes_back(subject: Subject) -> None:
    if subject.found.card.exchange is None:
        raise CheckSkipped("its card names no exchange")
    with _adapted(subject) as adapters, tempfile.TemporaryDirectory() as folder:
        expected = _logits(adapters.model, _rows())
        adapters.export("own", Path(folder) / "peft")
        adapters.load(Path(folder) / "peft", name="read")
        _near(_logits(adapters.model, _rows()), expected, "exported and read again")


@check("adapter", "A target that names no layer is a clear error.", kinds=ADAPTERS, needs_model=False)
def an_unknown_target_is_refused(subject: Subject) -> None:
    card = subject.found.card
    builder = resolve(subject.plugin, str(card.build), subject.registry.manager)
    if "targets" not in inspect.signature(builder).parameters:
        raise CheckSkipped("it has no option targets")
    try:
        with _adapted(subject, targets=["no such layer"]):
            raise CheckFailed("targets=['no such layer'] was accepted")
    except UsageError:
        return


@contextmanager
def _adapted(subject: Subject, *, shaken: bool = True, **options: Any) -> Iterator[Adapters]:
    """A small decoder with the adapter of the card, active."""
    model = small_decoder()
    adapters = Adapters(Adapted(model), subject.registry)
    torch.manual_seed(SEED)
    _add(adapters, subject, "own", **options)
    if shaken:
        _shake(adapters, "own", SEED + 1)
    yield adapters


def _add(adapters: Adapters, subject: Subject, name: str, **options: Any) -> None:
    try:
        adapters.add(subject.name, name=name, activate=name == "own", **options)
    except UsageError:
        raise
    except Exception as error:
        raise CheckFailed(f"it cannot stand on a decoder of zoo.nn: {type(error).__name__}: {error}") from error


def _shake(adapters: Adapters, name: str, seed: int) -> None:
    """Other numbers than it began with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters[name].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def small_decoder(width: int = WIDTH) -> Decoder:
    """A decoder of 2 layers with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        blocks = [
            Block(
                attention_norm=RMSNorm(width),
                attention=Attention(width, heads=HEADS, kv_heads=2),
                feed_forward_norm=RMSNorm(width),
                feed_forward=Gated(width, 2 * width),
            )
            for _ in range(LAYERS)
        ]
        stack = Stack(blocks, norm=RMSNorm(width), rotary=Rotary(width // HEADS, positions=CONTEXT), causal=True)
        return Decoder(embedding=torch.nn.Embedding(VOCABULARY, width), stack=stack, context=CONTEXT).eval()


def _rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in (5, 9, 2, 7)]


def _logits(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    """Of the real tokens of each row, float[T, V]."""
    tokens_BT, mask_BT = batch_of(rows)
    with torch.inference_mode():
        logits_BTV = model(tokens_BT, mask_BT=mask_BT)
    return [one[-len(row) :] for one, row in zip(logits_BTV, rows, strict=True)]


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _near(found: list[torch.Tensor], expected: list[torch.Tensor], what: str) -> None:
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not _apart(one, other) < TOLERANCE:
            raise CheckFailed(
                f"row {row}, {what}, is {_apart(one, other):.1e} of the largest logit away; at most {TOLERANCE:.0e} is right"
            )
