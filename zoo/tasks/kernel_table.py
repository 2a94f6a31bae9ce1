"""Which kernel pays for a model on this machine: speed at each batch, memory, and what it costs in right answers, side by side."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.errors import UsageError, ZooError
from zoo.media.audio import Sound
from zoo.models.build import Built, ModelSpec, open_model, spec_of
from zoo.models.encoded import Encoded
from zoo.models.kernel_verdicts import PLAIN, KernelRow, KernelTable, asked_weights, keep_verdict, machine, measuring
from zoo.models.kernels import FLOAT32, kernel_card, kernel_identity, kernel_named
from zoo.nn.kernels.seam import is_kernel_embedding, is_kernel_linear
from zoo.registry.lookup import Registry, default_registry
from zoo.registry.modality import AUDIO, IMAGE, TEXT
from zoo.registry.plugin import one_line
from zoo.tasks.encoding import joined, preparation

KINDS = ("decoder", "encoder", "dual_encoder")
PASSAGE = (
    "A library that promises speed says on which machine, for which shape and against what. A number without those three is an advertisement. "
    "The table below is made anew wherever it is asked for, and rows that lose stay in it: four bits are slower than sixteen where arithmetic and not "
    "memory decides, and a format that wins for one token may lose for a hundred."
)
SENTENCES = (
    "a red boat on a lake",
    "two people talk in a kitchen",
    "the second half of the game",
    "an old map of the city",
)
DECODED, PROMPT = 12, 64  # tokens a round writes, and reads before
ROUNDS = 5
KL_BOUND, COSINE_BOUND = (
    0.02,
    0.999,
)  # that `auto` keeps: nats a token to float32's distribution, and the least cosine of a vector


def measure_kernels(
    model: str | ModelSpec,
    kernels: Sequence[str] | None = None,
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = ROUNDS,
    report: Callable[[str], None] | None = None,
) -> KernelTable:
    """Measure a decoder or an encoder by each kernel, in turn, and keep the verdict for this machine (`verdict_of`).

    kernels: names; every installed one that applies when None. The model as it was built, in float32, is always among them.
    batches: rows at once. rounds: of which the median counts; kernels alternate within a round.
    Raises UsageError for a kind that is not measured, a kernel that does not exist and numbers out of range.
    """
    registry = default_registry()
    spec = spec_of(model)
    if spec.name is None or spec.kernel is not None or spec.dtype is not None:
        raise UsageError("name one model, without kernel and dtype: they are what is compared")
    if rounds < 1 or not batches or min(batches) < 1:
        raise UsageError(f"rounds and batches are at least 1, got {rounds} and {list(batches)}")
    card = registry.find(str(spec.name)).card
    if card.kind not in KINDS:
        raise UsageError(f"kernels are measured on {', '.join(KINDS)}; {card.name} is of kind {card.kind}")
    names = list(kernels) if kernels else _applying(card.kind, registry)
    names = [name if name == FLOAT32 else kernel_card(name, registry).name for name in names]
    subjects: dict[str, _Subject] = {}
    failed: dict[str, str] = {}
    every = [PLAIN, *dict.fromkeys(names)]
    for number, name in enumerate(every, start=1):
        if report is not None:
            report(f"opening {card.name}, {name} ({number} of {len(every)})")
        try:
            wanted = ModelSpec(spec.name, weights=spec.weights, kernel=None if name == PLAIN else name)
            with torch.random.fork_rng(devices=[]), measuring():
                torch.manual_seed(0)  # random weights are the same for all
                subjects[name] = _Subject(open_model(wanted))
            subjects[name].once(batches)
        except Exception as error:
            if name == PLAIN:
                raise
            subjects.pop(name, None)
            failed[name] = one_line(error) if isinstance(error, ZooError) else f"{type(error).__name__}: {one_line(error)}"
    timings = _alternated(subjects, batches, rounds, report)
    plain = subjects[PLAIN]
    rows = [_row(name, subject, plain, timings[name], timings[PLAIN], registry) for name, subject in subjects.items()]
    rows += [KernelRow(kernel=name, works=False, reason=reason) for name, reason in failed.items()]
    table = KernelTable(model=plain.built.name, machine=machine(), threads=torch.get_num_threads(), rows=tuple(rows))
    keep_verdict(plain.built.found.name, table, asked_weights(spec.weights))
    return table


class _Subject:
    """One opened model with what it is measured on."""

    def __init__(self, built: Built) -> None:
        self.built, self.module = built, built.module
        self.decodes = built.found.card.kind == "decoder"
        self.modality = TEXT if self.decodes else built.found.card.modalities[0]
        if not self.decodes:
            prepare, items = preparation(built, self.modality), _items(self.modality)
            self.inputs = joined([prepare([item]) for item in items]) if self.modality == IMAGE else prepare(items)

    def once(self, batches: Sequence[int]) -> None:
        """A first call of each shape: what is compiled or laid out then is not measured."""
        for batch in batches:
            self.run(batch)

    def run(self, batch: int) -> tuple[float, float]:
        """Seconds of one round: of what is counted, and of reading the prompt, where there is one."""
        with torch.inference_mode():
            return self._decode(batch) if self.decodes else (self._encode(batch), 0.0)

    def _encode(self, batch: int) -> float:
        rows = [number % _rows(self.inputs) for number in range(batch)]
        inputs = self.inputs[rows] if isinstance(self.inputs, torch.Tensor) else tuple(part[rows] for part in self.inputs)
        start = time.perf_counter()
        self.vectors(inputs)
        return time.perf_counter() - start

    def vectors(self, inputs: Any) -> torch.Tensor:
        """float[B, E] of prepared inputs."""
        module: Any = self.module
        given = module.encode(self.modality, inputs) if hasattr(module, "encode") else module(inputs)
        return given.pooled_BD if isinstance(given, Encoded) else given

    def _decode(self, batch: int) -> tuple[float, float]:
        module: Any = self.module
        ids = self.passage()[:PROMPT]
        tokens_BT = torch.tensor([ids] * batch)
        cache = module.new_cache(batch, len(ids) + DECODED)
        start = time.perf_counter()
        logits_BV = module(tokens_BT, cache=cache, at_BN=torch.full((batch, 1), len(ids) - 1))[:, 0]
        read = time.perf_counter()
        for _ in range(DECODED):
            tokens_B = logits_BV.argmax(-1)
            step = getattr(module, "one_step", None)
            logits_BV = step(tokens_B, cache) if step is not None else module(tokens_B[:, None], cache=cache)[:, 0]
        return time.perf_counter() - read, read - start

    def passage(self) -> list[int]:
        """The ids of the passage; of a decoder without a tokenizer some that are drawn."""
        module: Any = self.module
        if module.tokenizer is None:
            return torch.randint(0, module.vocabulary, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
        ids: list[int] = module.tokenizer.encode(PASSAGE)
        return ids[: module.context - DECODED]

    def logprobs(self) -> torch.Tensor:
        """Log p of every next token of the passage, float[T, V]."""
        with torch.inference_mode():
            module: Any = self.module
            logprobs_TV: torch.Tensor = module(torch.tensor([self.passage()]))[0].float().log_softmax(-1)
            return logprobs_TV

    def weight_bytes(self) -> int:
        """Of all tensors, as a file has them."""
        layers: list[Any] = [part for part in self.module.modules() if is_kernel_linear(part) or is_kernel_embedding(part)]
        tensors = [*self.module.state_dict().values(), *(one for layer in layers for one in layer.tensors().values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _alternated(
    subjects: dict[str, _Subject], batches: Sequence[int], rounds: int, report: Callable[[str], None] | None
) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """Kernel -> batch -> (seconds, seconds of the prompt) of each round; in every round each kernel has its turn."""
    timings: dict[str, dict[int, list[tuple[float, float]]]] = {name: {batch: [] for batch in batches} for name in subjects}
    for number in range(rounds):
        if report is not None:
            report(f"round {number + 1} of {rounds}")
        for batch in batches:
            for name, subject in subjects.items():
                timings[name][batch].append(subject.run(batch))
        gc.collect()
    return timings


def _row(
    name: str,
    subject: _Subject,
    plain: _Subject,
    timings: dict[int, list[tuple[float, float]]],
    plains: dict[int, list[tuple[float, float]]],
    registry: Registry,
) -> KernelRow:
    counted = DECODED if subject.decodes else 1
    seconds = {batch: statistics.median(one for one, _ in rounds) for batch, rounds in timings.items()}
    plain_s = {batch: statistics.median(one for one, _ in rounds) for batch, rounds in plains.items()}
    kl_nats = agreement = cosine = prefill = None
    if subject.decodes:
        wanted_TV, found_TV = plain.logprobs(), subject.logprobs()
        kl_nats = float((wanted_TV.exp() * (wanted_TV - found_TV)).sum(-1).mean())
        agreement = float((wanted_TV.argmax(-1) == found_TV.argmax(-1)).float().mean())
        first = min(timings)
        read = min(PROMPT, len(subject.passage()))
        prefill = first * read / statistics.median(one for _, one in timings[first])
    else:
        with torch.inference_mode():
            cosines = torch.nn.functional.cosine_similarity(
                plain.vectors(plain.inputs).float(), subject.vectors(subject.inputs).float()
            )
        cosine = float(cosines.min())
    return KernelRow(
        kernel=name,
        works=True,
        per_second={batch: batch * counted / one for batch, one in seconds.items()},
        faster={batch: plain_s[batch] / one for batch, one in seconds.items()},
        prefill_per_second=prefill,
        weight_bytes=subject.weight_bytes(),
        kl_nats=kl_nats,
        agreement=agreement,
        cosine=cosine,
        identity="" if name == PLAIN else kernel_identity(kernel_named(name, registry), registry),
    )


def _applying(kind: str, registry: Registry) -> list[str]:
    """Every installed kernel that says it is for a kind, the core's own first."""
    cards = [card for card in registry.cards(kind="kernel") if not card.applies_to or kind in card.applies_to]
    return [FLOAT32, *(card.name for card in cards)]


def _items(modality: str) -> list[Any]:
    """Four different items of a modality. Raises UsageError for one that has none here."""
    generator = np.random.default_rng(0)
    if modality == IMAGE:
        small = generator.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        return [Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC) for pixels in small]
    if modality == TEXT:
        return list(SENTENCES)
    if modality == AUDIO:
        return [Sound(generator.normal(0, 0.1, 16_000).astype(np.float32), 16_000) for _ in range(4)]
    raise UsageError(f"there are no items of {modality} to measure with yet")


def _rows(inputs: Any) -> int:
    return len(inputs if isinstance(inputs, torch.Tensor) else inputs[0])
