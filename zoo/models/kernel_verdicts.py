"""What was measured of kernels on this machine, kept in the state folder: what `--kernel auto` goes by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from zoo.errors import UsageError, ZooError
from zoo.models.kernels import kernel_identity, kernel_named
from zoo.registry.atomic_write import write_text
from zoo.registry.documents import parse_json
from zoo.registry.lookup import Registry
from zoo.registry.settings import state_dir

CARD = "card"  # the weights that a card names
PLAIN = "as built"  # the model without a kernel: what the others are compared with
KL_BOUND, COSINE_BOUND = (
    0.02,
    0.999,
)  # that `auto` keeps: nats a token to float32's distribution, and the least cosine of a vector


_measuring: ContextVar[bool] = ContextVar("zoo_measuring", default=False)


@contextmanager
def measuring() -> Iterator[None]:
    """What runs inside measures anew: what was measured before is not said."""
    token = _measuring.set(True)
    try:
        yield
    finally:
        _measuring.reset(token)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """What one kernel did. works: whether it runs the model here; reason: why not.

    per_second: batch -> tokens (decoders write, by batch) or items (encoders) a second of wall time, the median of the rounds. prefill_per_second: tokens
    read a second. weight_bytes: of all tensors. kl_nats: mean Kullback-Leibler divergence of the next token's distribution from float32's;
    agreement: share of tokens whose likeliest next is the same. cosine: least of the vectors' to float32's. engine: what answered, where the kernel says.
    faster: batch -> ratio to the model as it was built. identity: of the kernel's code.
    """

    kernel: str
    works: bool
    reason: str = ""
    per_second: dict[int, float] = field(default_factory=dict)
    faster: dict[int, float] = field(default_factory=dict)
    prefill_per_second: float | None = None
    weight_bytes: int = 0
    kl_nats: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    identity: str = ""

    @property
    def right(self) -> bool:
        """Whether its error is within the stated bounds."""
        near = self.kl_nats is None or self.kl_nats <= KL_BOUND
        return self.works and near and (self.cosine is None or self.cosine >= COSINE_BOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTable:
    """The rows of one model on one machine. best: batch -> the fastest kernel within the bounds."""

    model: str
    machine: str
    threads: int
    rows: tuple[KernelRow, ...]

    @property
    def best(self) -> dict[int, str]:
        """Of the kernels whose error is within the bounds, the fastest at each batch."""
        right = [row for row in self.rows if row.right and row.per_second]
        batches = sorted({batch for row in right for batch in row.per_second})
        return {batch: max(right, key=lambda row: row.per_second.get(batch, 0)).kernel for batch in batches}


def asked_weights(weights: str | Path | None) -> str:
    """Which weights a verdict is about, as one text: "card", "none", or the place of a person's own file."""
    return (
        "none" if weights is None else weights if weights in (CARD, "none") else str(Path(weights).expanduser().absolute())
    )


def verdict_of(model: str, weights: str = CARD) -> KernelTable | None:
    """What was measured of a model on this machine with as many threads, or None. model: its name. weights: as they were asked for."""
    try:
        record = parse_json(_path(model, weights).read_bytes())
        rows = [
            {**row, **{key: {int(batch): one for batch, one in row[key].items()} for key in ("per_second", "faster")}}
            for row in record["rows"]
        ]
        return KernelTable(
            model=record["model"],
            machine=record["machine"],
            threads=record["threads"],
            rows=tuple(KernelRow(**row) for row in rows),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def fastest(model: str, registry: Registry, weights: str = CARD, batch: int = 1) -> str | None:
    """The kernel that `auto` means: the fastest within the bounds of what was measured here; None for the model as it is built.

    Raises UsageError where nothing was measured, or another version of it was.
    """
    again = f"zoo bench kernels {model}" + ("" if weights == CARD else f" --weights {weights}")
    table = verdict_of(registry.find(model).name, weights)
    if table is None:
        raise UsageError(
            f"kernel auto is the fastest that was measured on this machine with {torch.get_num_threads()} threads, and nothing was: {again}"
        )
    best = table.best
    chosen = best.get(batch) or best.get(min(best, default=0), PLAIN)
    row = next((row for row in table.rows if row.kernel == chosen), None)
    if chosen == PLAIN or row is None:
        return None
    if not _is_current(row, registry):
        raise UsageError(f"kernel {chosen} was the fastest, and is another version now, or not installed: {again}")
    return chosen


def slower(model: str, kernel: str, registry: Registry, weights: str = CARD) -> str | None:
    """Words about a kernel that was measured here to be slower than none, at every batch; None for others."""
    table = None if _measuring.get() else verdict_of(model, weights)
    row = None if table is None else next((row for row in table.rows if row.kernel == kernel), None)
    if row is None or not row.faster or max(row.faster.values()) >= 1 or not _is_current(row, registry):
        return None
    return f"kernel {kernel} is {max(row.faster.values()):.2f} times as fast as none on this machine (zoo bench kernels {model})"


def _is_current(row: KernelRow, registry: Registry) -> bool:
    """Whether the kernel is still the one that was measured."""
    try:
        return kernel_identity(kernel_named(row.kernel, registry), registry) == row.identity
    except ZooError:
        return False


def machine() -> str:
    """The processor, by its model and what torch multiplies by."""
    name = ""
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return f"{name or 'unknown processor'}, {torch.backends.cpu.get_cpu_capability()}"


def keep_verdict(model: str, table: KernelTable, weights: str = CARD) -> None:
    """Keep a table for this machine, with earlier rows of kernels that it does not have; a home that cannot be written loses it, never the answer."""
    path, earlier = _path(model, weights), verdict_of(model, weights)
    measured = {row.kernel for row in table.rows}
    rows = (*table.rows, *(row for row in (earlier.rows if earlier else ()) if row.kernel not in measured))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(replace(table, rows=rows)), indent=1), durable=False)


def _path(model: str, weights: str) -> Path:
    key = f"{model} {weights} {machine()} {torch.get_num_threads()} {torch.__version__}"
    return state_dir() / "kernels" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
