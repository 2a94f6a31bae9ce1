"""The checks as pytest items: one line in an author's pyproject.toml runs them all.

    [tool.pytest.ini_options]
    addopts = ["-p", "zoo.testing.pytest_plugin", "--zoo-check=NAME"]

NAME is a plugin, a distribution or a model; the option may be repeated. The items run in pytest's own process, so that
`--pdb`, `-k` and `-x` work on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zoo.errors import UsageError
from zoo.registry.lookup import Found, Registry
from zoo.registry.plugin import Plugin
from zoo.registry.settings import load_settings


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option `--zoo-check`."""
    group = parser.getgroup("zoo", "conformance of zoo plugins")
    group.addoption(
        "--zoo-check", action="append", default=[], metavar="NAME", help="plugin, distribution or model to check"
    )


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add an item for each check of each named plugin and model."""
    for name in session.config.getoption("--zoo-check"):
        items.extend(_items(session, name))


def subjects(name: str) -> tuple[Plugin, list[Found], Registry]:
    """The plugin that a name means, and the models of it to check. Raises UsageError or UnknownNameError."""
    registry = Registry(load_settings())
    for plugin in registry.plugins:
        if name in (plugin.name, plugin.distribution):
            return plugin, [Found(card, card.choose_weights(None)) for card in plugin.cards], registry
    if "/" not in name:
        known = ", ".join(sorted(plugin.name for plugin in registry.plugins))
        raise UsageError(f"no plugin, distribution or model is called {name!r}; installed plugins are {known}")
    found = registry.find(name)
    return registry.owner(found.card), [found], registry


def _items(session: pytest.Session, name: str) -> Iterator[pytest.Item]:
    from zoo.testing.check import Subject
    from zoo.testing.runner import checks_for, own_checks

    plugin, models, registry = subjects(name)
    for check in checks_for(None):
        yield _Item.from_parent(session, name=f"{plugin.distribution}::{check}", check=check, subject=plugin)
    for found in models:
        subject = Subject(found, plugin, registry)
        own = own_checks(plugin, found.card, registry).values()
        for check in (*checks_for(found.card.kind, found.card.modalities), *own):
            yield _Item.from_parent(session, name=f"{found.name}::{check}", check=check, subject=subject)


class _Item(pytest.Item):
    """One check of one subject."""

    def __init__(self, *, check: Any, subject: Any, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.check = check
        self.subject = subject

    def runtest(self) -> None:
        from zoo.testing.check import CheckSkipped

        try:
            self.check.run(self.subject)
        except CheckSkipped as reason:
            pytest.skip(str(reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from zoo.testing.check import CheckFailed

        if isinstance(excinfo.value, CheckFailed):
            return f"{self.check.promise}\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        return "zoo", None, self.name
