"""What a plugin costs those who do not use it. These checks are given the Plugin."""

from __future__ import annotations

from zoo.registry.activation import TRIAL_TIMEOUT_S, try_in_child
from zoo.registry.plugin import Plugin
from zoo.registry.timing import Cost, cost
from zoo.testing.check import CheckFailed, check

MANIFEST_BUDGET_MS = 50.0
TRIES = 20  # the quickest counts
IMPORT_BUDGET_MS = 300.0


@check("manifest", "Its manifest can be read, and names at least one model or family.")
def manifest_is_valid(plugin: Plugin) -> None:
    if plugin.cards or plugin.families:
        return
    if plugin.error:
        raise CheckFailed(f"{plugin.error}; {plugin.cure}")
    raise CheckFailed("it names no model and no family: write a [[card]] into its zoo.toml, or return one from zoo_cards")


@check("listing", "Listing models imports neither the plugin nor torch.")
def listing_imports_nothing(plugin: Plugin) -> None:
    if plugin.manifest_sha256 is None:
        if plugin.listing_imports_torch:
            raise CheckFailed(
                "it has no manifest, so it is imported to be listed, and that imports torch: import torch inside the "
                "functions that build, or write a zoo.toml"
            )
        return
    imported = _cost(plugin).imported
    if imported:
        raise CheckFailed(f"listing it imported {', '.join(imported)}")


@check(
    "listing",
    f"Listing takes under {MANIFEST_BUDGET_MS:.0f} ms of processor time with a manifest, under {IMPORT_BUDGET_MS:.0f} ms "
    f"without.",
)
def listing_is_cheap(plugin: Plugin) -> None:
    if plugin.manifest_sha256 is None:
        if (plugin.import_ms or 0) > IMPORT_BUDGET_MS:
            raise CheckFailed(f"importing it to list it took {plugin.import_ms:.0f} ms, allowed are {IMPORT_BUDGET_MS:.0f}")
        return
    milliseconds = []
    for _ in range(TRIES):  # a busy machine makes caches cold, and processor time longer
        milliseconds.append(_cost(plugin).listing_ms)
        if milliseconds[-1] <= MANIFEST_BUDGET_MS:
            return
    raise CheckFailed(f"reading its manifest took {min(milliseconds):.0f} ms, allowed are {MANIFEST_BUDGET_MS:.0f}")


@check("listing", "It activates in a process of its own within a minute, and does not end it.")
def activation_ends_well(plugin: Plugin) -> None:
    tried = try_in_child(plugin, timeout_s=TRIAL_TIMEOUT_S)
    if tried.error:
        raise CheckFailed(tried.error)


def _cost(plugin: Plugin) -> Cost:
    found = cost(plugin, timeout_s=TRIAL_TIMEOUT_S, listing_only=True)
    if found is None:
        raise CheckFailed("the process that tried it did not survive")
    return found
