"""Examples of classes, one folder for each class: the items, and which of them are copies of one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.data.inputs import Item, expand_files, holds, printable
from zoo.data.item_content import read_source, sha256_of_source
from zoo.data.lines import TABLES
from zoo.data.walk import listing
from zoo.errors import MediaError, UsageError
from zoo.media.readers import suffixes_of
from zoo.registry.modality import AUDIO, IMAGE

_PLURAL = {IMAGE: "images", AUDIO: "sounds"}


def shot_names(folder: Path, labels: Sequence[str] | None) -> list[str]:
    """The classes of a folder of examples: `labels`, or every folder in it when None. Raises UsageError."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "there is no such folder"
        texts = " (examples of texts: add --text)" if folder.suffix.lower() in TABLES else ""
        raise UsageError(f"--shots {folder}: {what}; expected one folder of examples for each class{texts}")
    there = listing(folder)
    if there.problem:
        raise MediaError(f"--shots {folder}: {there.problem}")
    names = list(labels or sorted([*there.folders, *there.links]))
    if len(names) < 2:
        raise UsageError(f"--shots {folder}: expected at least two folders, one for each class, found {len(names)}")
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise UsageError(f"--shots {folder}: no folder of examples for {', '.join(missing)}")
    return names


def shot_items(folder: Path, names: Sequence[str], modality: str) -> list[tuple[Item, int]]:
    """Each example with the number of its class. Raises UsageError that names every class without any of the modality."""
    other = AUDIO if modality == IMAGE else IMAGE
    if not any(holds(folder / name, modality) for name in names) and any(holds(folder / name, other) for name in names):
        raise UsageError(f"--shots {folder}: the examples are {_PLURAL[other]}, and what is asked are {_PLURAL[modality]}")
    empty = [name for name in names if not holds(folder / name, modality)]
    if empty:
        raise UsageError(
            f"--shots {folder}: no example in {', '.join(empty)}: the folder holds no {modality} ({', '.join(suffixes_of(modality))}); "
            f"put some in, or leave the class out (remove the folder, or name the others with --labels)"
        )
    return [(item, target) for target, name in enumerate(names) for item in expand_files(folder / name, modality)]


def distinct_shots(
    examples: Sequence[tuple[Item, int]], names: Sequence[str]
) -> tuple[list[tuple[Item, int]], list[tuple[Item, Item]]]:
    """The examples without copies of one another, byte for byte, and (copy, of which) for those left out.

    A copy that stays in while its twin is left out answers for it, and leave-one-out counts that as skill. What cannot be read stays,
    to be reported where it is used. Raises UsageError for one that two classes have: one of them is wrong.
    """
    first: dict[str, tuple[Item, int]] = {}
    kept, copies, contradictions = [], [], []
    for item, target in examples:
        try:
            digest = sha256_of_source(read_source(item, allow_urls=False))
        except MediaError:
            kept.append((item, target))
            continue
        twin, its_target = first.setdefault(digest, (item, target))
        if twin is item:
            kept.append((item, target))
        elif its_target == target:
            copies.append((item, twin))
        else:
            contradictions.append(
                f"{printable(twin.label)} ({names[its_target]}) and {printable(item.label)} ({names[target]})"
            )
    if contradictions:
        more = f", and {len(contradictions) - 1} more such pairs" if len(contradictions) > 1 else ""
        raise UsageError(
            f"the same {examples[0][0].modality} is an example of two classes: {contradictions[0]}{more}; remove one of the two"
        )
    return kept, copies
