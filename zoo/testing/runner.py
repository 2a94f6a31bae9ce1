"""Running the checks: those of a plugin here, those of a model in a process of its own that cannot take the others with it."""

from __future__ import annotations

import fnmatch
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from zoo import __version__
from zoo.errors import UsageError
from zoo.registry import child
from zoo.registry.activation import resolve
from zoo.registry.card import Card
from zoo.registry.lookup import Found, Registry, default_registry
from zoo.registry.modality import TEXT
from zoo.registry.plugin import DISTRIBUTION_OF_THIS_PROCESS, Plugin, code_sha256
from zoo.registry.records import write_record
from zoo.testing import adapter, fusion, kernel, language, listing, numbers, pairs, process, speech, truth
from zoo.testing.check import CHECKS, LEVELS, Check, Result, Subject, run_check

TIMEOUT_S = 600.0
SINGLE_TIMEOUT_S = 60.0  # of one check by itself, after all together did not survive
MODULES = (
    listing,
    truth,
    numbers,
    process,
    pairs,
    language,
    speech,
    fusion,
    adapter,
    kernel,
)  # importing them registers their checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the checks found. `results` maps a model's name, or `plugin`, to what was found about it."""

    plugin: str
    distribution: str
    version: str
    files_sha256: str | None
    results: Mapping[str, tuple[Result, ...]]

    def count(self, status: str) -> int:
        """How many checks ended so."""
        return sum(result.status == status for results in self.results.values() for result in results)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of which no check could say anything."""
        return tuple(name for name, results in self.results.items() if all(one.status == "skipped" for one in results))

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something of each was tried: what has no checks has passed none."""
        return self.count("failed") == 0 and not self.unknown

    @property
    def verdict(self) -> str:
        """One word: passed, failed, or unknown where nothing failed and no check could say anything of a model."""
        return "failed" if self.count("failed") else "unknown" if self.unknown else "passed"

    def badge(self) -> dict[str, Any]:
        """The result as plain data, pinned to distribution, version and the hash of the plugin's files."""
        import torch

        return {
            "plugin": self.plugin,
            "dist": self.distribution,
            "version": self.version,
            "files_sha256": self.files_sha256,
            "zoo": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "verdict": self.verdict,
            "unknown": list(self.unknown),
            "passed": self.count("passed"),
            "failed": self.count("failed"),
            "skipped": self.count("skipped"),
            "results": {name: [asdict(result) for result in results] for name, results in self.results.items()},
        }


def checks_for(kind: str | None, modalities: Sequence[str] = ()) -> list[Check]:
    """The checks of a kind of card, or of a whole plugin for None, by level; for a card that reads `modalities`, where given.

    What reads text alone is nobody's sense: a decoder reads text itself.
    """
    chosen = [check for check in CHECKS.values() if (kind in check.kinds if kind else not check.kinds)]
    if kind == "encoder" and tuple(modalities) == (TEXT,):
        chosen = [check for check in chosen if check.level != "fusion"]
    return sorted(chosen, key=lambda check: LEVELS.index(check.level))


def own_checks(plugin: Plugin, card: Card, registry: Registry) -> dict[str, Check]:
    """The checks that a plugin's manifest brings for a card of its own, by name (`<plugin>:<check>`)."""
    model = card.name.partition("/")[2]
    found = {}
    for row in plugin.offers.checks:
        if not row.models or any(fnmatch.fnmatchcase(model, pattern) for pattern in row.models):
            name = f"{plugin.name}:{row.name}"
            found[name] = Check(name, "own", row.promise, (card.kind,), partial(_run_own, plugin, row.run, registry))
    return found


def _run_own(plugin: Plugin, target: str, registry: Registry, subject: Subject) -> None:
    resolve(plugin, target, registry.manager)(subject)


def check_plugin(plugin: Plugin, *, registry: Registry | None = None, say: Callable[[str], None] | None = None) -> Report:
    """Check a plugin and every card of its manifest; the result is kept and shown by `zoo plugins` until its files change.

    say: called with each name before it is checked, and with each check where those must be run one by one.
    """
    registry = registry or default_registry()
    results = {"plugin": _plugin_results(plugin, say)}
    if all(result.status != "failed" for result in results["plugin"] if result.check == "activation-ends-well"):
        for card in plugin.cards:
            found = Found(card, card.choose_weights(None))
            results[found.name] = _model_results(found, plugin, registry, say)
    report = _report(plugin, results)
    badge = report.badge()
    write_record(
        "badge",
        plugin,
        {key: badge[key] for key in ("files_sha256", "verdict", "unknown", "passed", "failed", "skipped", "zoo")},
    )
    return report


def check_model(name: str, *, registry: Registry | None = None, say: Callable[[str], None] | None = None) -> Report:
    """Check one model, which may be the member of a family, and its plugin. Raises UnknownNameError for the name."""
    registry = registry or default_registry()
    found = registry.find(name)
    plugin = registry.owner(found.card)
    if plugin.distribution == DISTRIBUTION_OF_THIS_PROCESS:
        raise UsageError(
            f"{found.card.name} is registered in this process, and checks run in others: put it into a distribution (zoo new {plugin.name})"
        )
    results = {"plugin": _plugin_results(plugin, say), found.name: _model_results(found, plugin, registry, say)}
    return _report(plugin, results)


def _report(plugin: Plugin, results: Mapping[str, tuple[Result, ...]]) -> Report:
    return Report(
        plugin=plugin.name,
        distribution=plugin.distribution,
        version=plugin.version,
        files_sha256=code_sha256(plugin),
        results=results,
    )


def _plugin_results(plugin: Plugin, say: Callable[[str], None] | None) -> tuple[Result, ...]:
    if say:
        say(f"{plugin.distribution} {plugin.version}")
    return tuple(run_check(check, plugin) for check in checks_for(None))


def _model_results(
    found: Found, plugin: Plugin, registry: Registry, say: Callable[[str], None] | None
) -> tuple[Result, ...]:
    """In one process; if that does not survive, each check in one of its own, so that the guilty one has a name."""
    if say:
        say(found.name)
    checks = [*checks_for(found.card.kind, found.card.modalities), *own_checks(plugin, found.card, registry).values()]
    if not checks:
        return (Result("any", "manifest", "skipped", f"the kit has no checks for the kind {found.card.kind} yet"),)
    name = Subject(found, plugin, registry).name_to_open
    outcome = _in_child(name, checks, TIMEOUT_S)
    if outcome.finished:
        return tuple(Result(**fields) for fields in outcome.value)
    results = []
    for check in checks:
        results.append(_alone(name, check))
        if say:
            say(f"{found.name} again, each check by itself: {check.name} {results[-1].status}")
    return tuple(results)


def _alone(name: str, check: Check) -> Result:
    timeout_s = SINGLE_TIMEOUT_S + (process.TIMEOUT_S if check.level == "process" else 0)  # those have a limit of their own
    outcome = _in_child(name, [check], timeout_s)
    if outcome.finished:
        return Result(**outcome.value[0])
    end = f"{outcome.end} ({timeout_s:g} s)" if outcome.exit_code is None else outcome.end
    words = f": {outcome.last_words}" if outcome.last_words else ""
    return Result(check.name, check.level, "failed", f"it did not survive this check, which {end}{words}")


def _in_child(name: str, checks: Sequence[Check], timeout_s: float) -> child.Outcome:
    fields = {"name": name, "checks": [check.name for check in checks]}
    return child.call("zoo.testing.runner:_check_here", fields, timeout_s=timeout_s)


def _check_here(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In a child: run the named checks on a model."""
    subject = process.subject_here(fields)
    known = CHECKS | own_checks(subject.plugin, subject.found.card, subject.registry)
    return [asdict(run_check(known[name], subject)) for name in fields["checks"]]
