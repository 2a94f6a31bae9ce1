"""Running many images or sounds through a model: read, prepare and compute in threads, in order, with errors kept where they happened.

On a CPU each thread takes a few images at a time from file to answer with one thread of its own for the arithmetic: reading
overlaps with computing, nothing waits at barriers, and four images of activations stay in the cache. That was 3.8 times as fast
as a loop over batches of 32 (`benchmarks/throughput.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from tqdm import tqdm

from zoo.data.inputs import Item
from zoo.data.item_content import load
from zoo.errors import MediaError, PluginError
from zoo.models.build import Built
from zoo.registry.modality import AUDIO, IMAGE
from zoo.registry.plugin import describe
from zoo.tasks.encoding import Prepare, joined, moved, plugin_errors, preparation, sample_rate_of

CPU_BATCH, DEVICE_BATCH = 4, 32
BATCHES_AHEAD = 2  # for each thread: memory stays bounded however many images there are
PROGRESS_FROM = 16  # images; fewer are answered before a bar could be read

Row = torch.Tensor | str


def run_items(
    built: Built,
    items: Sequence[Item],
    compute: Callable[[Any], torch.Tensor],
    *,
    batch_size: int | None = None,
    device: str = "cpu",
    allow_urls: bool = False,
    progress: bool = False,
) -> Iterator[Row]:
    """`compute(prepared batch)` row by row, in the order of the items; for one that cannot be read, the error's text.

    items: of one modality. compute: what the model's `preprocess` gives for B items -> tensor with first axis B. It is called in several
        threads, in inference mode.
    batch_size: items computed together; 4 on a CPU and 32 elsewhere when None.
    """
    size = batch_size or (CPU_BATCH if device == "cpu" else DEVICE_BATCH)
    modality = items[0].modality if items else IMAGE
    prepare = preparation(built, modality)

    @torch.inference_mode()
    def answer(batch: Sequence[Item]) -> list[Row]:
        with plugin_errors(built):
            loaded = [_load(item, allow_urls=allow_urls, sample_rate_hz=sample_rate_of(built)) for item in batch]
            prepared = (_prepared_sounds if modality == AUDIO else _prepared_images)(loaded, prepare)
            outputs = torch.empty(0) if prepared is None else compute(moved(prepared, device)).cpu()
        good = sum(not isinstance(row, str) for row in loaded)
        if len(outputs) != good:
            raise PluginError(
                f"{describe(built.found.card.provider)}: {built.name} gave {len(outputs)} rows for {good} items"
            )
        rows = iter(outputs)
        return [row if isinstance(row, str) else next(rows) for row in loaded]

    batches = [items[start : start + size] for start in range(0, len(items), size)]
    with progress_bar(len(items), "sound" if modality == AUDIO else "image", progress=progress) as bar:
        for rows in in_threads(answer, batches, count=len(batches)):
            bar.update(len(rows))
            yield from rows


def in_threads(answer: Callable[[Any], Any], batches: Iterable[Any], *, count: int | None) -> Iterator[Any]:
    """`answer(batch)` for each batch, in order, in as many threads as torch has; each computes with its share of them.

    count: how many batches there are, None when that is not known; the division depends on nothing else, so that the same
        batch gives the same numbers in every run.
    """
    with _threads(count) as workers:
        yield from ordered_map(answer, batches, workers=workers, ahead=BATCHES_AHEAD * workers)


def progress_bar(total: int | None, unit: str, *, progress: bool) -> Any:
    """A bar on stderr where that is a terminal and there is enough to do."""
    wanted = progress and (total is None or total >= PROGRESS_FROM)
    return tqdm(total=total, unit=unit, disable=None if wanted else True)


def ordered_map(function: Callable[[Any], Any], arguments: Iterable[Any], *, workers: int, ahead: int) -> Iterator[Any]:
    """`map` in threads, in order, with at most `ahead` calls waiting or unread."""
    remaining = iter(arguments)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        pending: list[Future[Any]] = [pool.submit(function, argument) for argument in itertools.islice(remaining, ahead)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(function, argument) for argument in itertools.islice(remaining, 1)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_RUNNING: list[int] = []  # torch's own number of threads, once for each run under way; the last to end gives it back
_LOCK = Lock()


@contextmanager
def _threads(batches: int | None) -> Iterator[int]:
    """How many workers to start, with torch's threads divided among them and given back when the last run has ended."""
    with _LOCK:
        threads = _RUNNING[0] if _RUNNING else torch.get_num_threads()
        _RUNNING.append(threads)
        workers = max(1, threads if batches is None else min(threads, batches))
        torch.set_num_threads(max(1, threads // workers))
    try:
        yield workers
    finally:
        with _LOCK:
            _RUNNING.pop()
            if not _RUNNING:
                torch.set_num_threads(threads)


def _load(item: Item, *, allow_urls: bool, sample_rate_hz: int | None) -> Any:
    """Pixels or samples, or the error's text where there are none."""
    try:
        return load(item, allow_urls=allow_urls, sample_rate_hz=sample_rate_hz)
    except MediaError as error:
        return str(error)


def _prepared_images(loaded: list[Any], prepare: Prepare) -> Any:
    """One prepared batch of the images among `loaded`; one that the model refuses becomes the reason."""
    rows = []
    for number, image in enumerate(loaded):
        if not isinstance(image, str):
            try:
                rows.append(prepare([image]))
            except MediaError as error:
                loaded[number] = str(error)
    return joined(rows) if rows else None


def _prepared_sounds(loaded: list[Any], prepare: Prepare) -> Any:
    """As `_prepared_images`. Sounds differ in length, and are padded by the model's own preparation: all at once, or those it takes."""
    sounds = [sound for sound in loaded if not isinstance(sound, str)]
    try:
        return prepare(sounds) if sounds else None
    except MediaError:
        _prepared_images(loaded, prepare)
        sounds = [sound for sound in loaded if not isinstance(sound, str)]
        return prepare(sounds) if sounds else None
