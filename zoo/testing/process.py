"""It stays inside its own walls: nothing of the process is changed, and other processes can use it."""

from __future__ import annotations

import hashlib
import importlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn

import torch
from packaging.requirements import Requirement

from zoo.models.build import open_model
from zoo.registry import child
from zoo.registry.lookup import default_registry
from zoo.registry.surroundings import changes, snapshot
from zoo.testing.check import SEED, CheckFailed, CheckSkipped, Subject, check
from zoo.testing.numbers import Output, must_equal, outputs, prepare, run_prepared
from zoo.testing.samples import uneven
from zoo.testing.truth import MODELS

TIMEOUT_S = 120.0
THREADS = 4
MOST_MEETINGS = 12
MEETINGS_S = 1.0  # that they may take, where two would take less
PATIENCE_S = 0.2


@check(
    "process",
    "Importing, building and running it change nothing of the whole process but what its requirements change themselves.",
    kinds=MODELS,
)
def process_stays_as_it_was(subject: Subject) -> None:
    changed = _in_child("_changes_here", subject)
    if changed:
        raise CheckFailed("; ".join(changed))


@check("process", "It works in a forked process.", kinds=MODELS)
def works_after_fork(subject: Subject) -> None:
    if not hasattr(os, "fork"):
        raise CheckSkipped("this system does not fork")
    problem, *digests = _in_child("_fork_here", subject)
    if problem:
        raise CheckFailed(problem)
    if digests[0] != digests[1]:
        raise CheckFailed("its output in a forked process differs from its parent's")


@check("process", "It can be sent to a spawned process and works there.", kinds=MODELS)
def works_after_spawn(subject: Subject) -> None:
    digests = _in_child("_spawn_here", subject)
    if digests[0] != digests[1]:
        raise CheckFailed("its output in a spawned process differs from its parent's")


@check("process", "Preparing and running in several threads at once gives what one gives.", kinds=MODELS)
def works_in_threads(subject: Subject) -> None:
    interval = sys.getswitchinterval()
    for modality in subject.reads:
        items = uneven(modality)
        start = time.perf_counter()
        alone = [outputs(subject, modality, [item]) for item in items]
        one_s = (time.perf_counter() - start) / len(items)
        sys.setswitchinterval(1e-5)  # another thread goes on at every operation of torch
        try:
            _run_in_threads(subject, modality, items, alone)
        finally:
            sys.setswitchinterval(interval)
        _run_between_lines(subject, modality, items, alone, one_s)


def _run_in_threads(subject: Subject, modality: str, items: list[Any], alone: list[Output]) -> None:
    """Each thread prepares one item, waits until all have, and runs it. Raises CheckFailed for what differs from `alone`."""
    barrier = threading.Barrier(THREADS, timeout=TIMEOUT_S)

    def work(row: int) -> Output:
        try:
            barrier.wait()
            inputs = prepare(subject, modality, [items[row]], subject.module)
            barrier.wait()  # what one parked on the module for its forward is overwritten by now
            return run_prepared(subject, modality, inputs, subject.module)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(THREADS) as pool:
        rows = [number % len(items) for number in range(THREADS)]
        answers = [pool.submit(work, row) for row in rows]
    _must_be_alike(answers, [alone[row] for row in rows], f"{modality} in {THREADS} threads at once and alone")


def _run_between_lines(subject: Subject, modality: str, items: list[Any], alone: list[Output], one_s: float) -> None:
    """One thread stands still at a line of the model's code while another runs in whole: what is parked on the module shows.

    Free threads would meet there by luck alone; a check must say the same every time.
    """
    lines: dict[tuple[str, int], None] = {}
    inputs = [prepare(subject, modality, [item], subject.module) for item in items]

    def run(row: int, at_line: Callable[[tuple[str, int]], None] | None = None) -> Output:
        if at_line is not None:
            sys.settrace(_tracer(at_line))
        try:
            return run_prepared(subject, modality, inputs[row], subject.module)
        finally:
            if at_line is not None:
                sys.settrace(None)

    with ThreadPoolExecutor(2) as pool:  # the threads are its own: no tracer of a debugger is lost
        pool.submit(run, 0, lambda line: lines.setdefault(line, None)).result()
        most = max(2, min(MOST_MEETINGS, int(MEETINGS_S / (2 * one_s))))
        for place in _spread(list(lines), most):
            here, go_on = threading.Event(), threading.Event()

            def stand(line: tuple[str, int], place: Any = place, here: Any = here, go_on: Any = go_on) -> None:
                if line == place and not here.is_set():
                    here.set()
                    go_on.wait(TIMEOUT_S)

            first = pool.submit(run, 0, stand)
            while not here.wait(0.01) and not first.done():
                pass
            second = pool.submit(run, 1)
            with suppress(TimeoutError):  # it waits for a lock that the first holds, as it may
                second.exception(timeout=PATIENCE_S + 10 * one_s)
            go_on.set()
            when = f"{modality} in 2 threads, one of them at {Path(place[0]).name} line {place[1]}, and alone"
            _must_be_alike([first, second], alone[:2], when)


def _tracer(at_line: Callable[[tuple[str, int]], None]) -> Callable[..., Any]:
    """A trace function (see sys.settrace) that calls `at_line` with the file and number of each line outside torch and here."""
    not_theirs = (*(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__)), "<frozen")

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            at_line((frame.f_code.co_filename, frame.f_lineno))
        return local

    def called(frame: FrameType, _: str, __: Any) -> Any:
        return None if frame.f_code.co_filename.startswith(not_theirs) else local

    return called


def _spread(places: list[Any], most: int) -> list[Any]:
    """At most `most` of the places, evenly spread from the first to the last."""
    if len(places) <= most:
        return places
    return [places[round(number * (len(places) - 1) / (most - 1))] for number in range(most)]


def _must_be_alike(answers: list[Future[Output]], alone: list[Output], when: str) -> None:
    errors = [error for error in (answer.exception() for answer in answers) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        if isinstance(error, (CheckFailed, CheckSkipped)):
            raise error
        words = " ".join(str(error).split())[:300]
        raise CheckFailed(f"{when}: it raised {type(error).__name__}: {words}")
    for answer, expected in zip(answers, alone, strict=True):
        must_equal(answer.result(), expected, when)


def _in_child(function: str, subject: Subject) -> list[str]:
    """What a function of this file gives in a child. What has no samples, or no reading, is skipped before one is started."""
    for modality in subject.reads:
        uneven(modality)
    outcome = child.call(
        f"zoo.testing.process:{function}",
        {"name": subject.name_to_open},
        timeout_s=TIMEOUT_S,
        environment={"ZOO_OFFLINE": "1"},
    )
    if not outcome.finished:
        lines = outcome.stderr.strip().splitlines()
        raise CheckFailed(f"the process that tried it {outcome.end}" + (f": {lines[-1][:300]}" if lines else ""))
    found: list[str] = outcome.value
    return found


def subject_here(fields: Mapping[str, Any]) -> Subject:
    """The model of that name, in this process."""
    registry = default_registry()
    found = registry.find(fields["name"])
    return Subject(found, registry.owner(found.card), registry)


def _changes_here(fields: Mapping[str, Any]) -> list[str]:
    """In a child: what importing, building and running a model changed, in words."""
    subject = subject_here(fields)
    _import_requirements(subject.plugin.distribution)
    reports: SimpleQueue[logging.LogRecord] = SimpleQueue()  # what an import changes is put back, and reported there
    logging.getLogger("zoo").addHandler(QueueHandler(reports))
    before = snapshot()
    subject.open(weights=None)
    words = [f"importing and building it changed {text}" for text in changes(before)]
    states = []
    for seed in (SEED, SEED + 1):
        torch.manual_seed(seed)
        open_model(subject.name_to_open, weights=None, registry=subject.registry)
        states.append(torch.get_rng_state())
    if torch.equal(*states):
        words.append("building it sets torch's seed")
    _ = subject.built
    before = snapshot()
    for modality in subject.reads:
        outputs(subject, modality)
    words += [f"running it changed {text}" for text in changes(before)]
    while not reports.empty():
        words.append(reports.get().getMessage())
    return words


def _import_requirements(distribution: str) -> None:
    """So that what a library sets when it is imported is not held against the plugin that needs it."""
    required = {
        _canonical(Requirement(text).name) for text in metadata.requires(distribution) or () if "extra ==" not in text
    }
    for module, distributions in metadata.packages_distributions().items():
        if required & {_canonical(name) for name in distributions} and module.isidentifier() and not module.startswith("_"):
            with suppress(Exception):  # the plugin's own import says what is wrong with it
                importlib.import_module(module)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _fork_here(fields: Mapping[str, Any]) -> list[str]:
    """In a child: what went wrong in a forked process, the digests of the outputs there and of those here."""
    torch.set_num_threads(1)  # the threads of the parent do not exist in a forked process
    subject = subject_here(fields)
    here = _digest(subject)  # before the fork: what a process gets is what was used before
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        _answer_and_end(writer, subject)
    os.close(writer)
    deadline = time.monotonic() + TIMEOUT_S / 2
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return [f"the forked process did not end in {TIMEOUT_S / 2:.0f} s", "", here]
        time.sleep(0.02)
    with os.fdopen(reader, encoding="utf-8") as answer:
        kind, _, words = answer.read().partition(" ")
    if kind == "digest":
        return ["", words, here]
    if kind == "error":
        return [f"in a forked process it raised {words}", "", here]
    code = os.waitstatus_to_exitcode(ended[1])
    return [f"the forked process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}", "", here]


def _answer_and_end(writer: int, subject: Subject) -> NoReturn:
    """In a forked process: `digest HEX`, or `error TYPE: TEXT` of what it raised."""
    try:
        answer = f"digest {_digest(subject)}"
    except BaseException as error:  # noqa: BLE001 - a stranger's model may raise anything, and nothing may go on here
        answer = f"error {type(error).__name__}: {' '.join(str(error).split())[:400]}"
    os.write(writer, answer.encode())
    os._exit(0)


def _spawn_here(fields: Mapping[str, Any]) -> list[str]:
    """In a child: the digests of the outputs in a spawned process, to which the module was sent, and here."""
    torch.set_num_threads(1)
    subject = subject_here(fields)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    here = _digest(subject)  # before it is sent: what was made at the first run must survive the way too
    process = context.Process(target=_spawned, args=(fields, subject.module, answers))
    process.start()
    process.join(TIMEOUT_S / 2)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"the spawned process ended with {process.exitcode}")
    return [answers.get(), here]


def _spawned(fields: Mapping[str, Any], module: torch.nn.Module, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(_digest(subject_here(fields), module))


def _digest(subject: Subject, module: torch.nn.Module | None = None) -> str:
    """Of all outputs, to the bit."""
    digest = hashlib.sha256()
    for modality in subject.reads:
        for value in outputs(subject, modality, module=module).values():
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
