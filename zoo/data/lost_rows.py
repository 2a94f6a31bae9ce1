"""Which rows of a finished file of vectors would be lost by writing it anew: said before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zoo.data import tables
from zoo.data.inputs import Source, printable
from zoo.data.item_content import read_source, sha256_of_item
from zoo.errors import MediaError, UsageError


def expected_rows(sources: Sequence[Source], old_rows: Sequence[tables.Row], *, allow_urls: bool) -> list[tables.Row]:
    """The rows that a run will write, as far as that can be said before anything is computed.

    A name that the finished output has is taken to be readable. Only where it has others besides are the new names read and
    hashed, since one of them may be an old content that was moved.
    """
    names = {(row.item, row.modality) for row in old_rows}
    named = [(printable(source.item.label), source.modality) for source in sources]
    rows = [tables.Row(*name, "") for name in named if name in names]
    if not names - set(named):
        return rows
    for source, name in zip(sources, named, strict=True):
        if name not in names:
            with suppress(MediaError):
                rows.append(tables.Row(*name, sha256_of_item(source.item, read_source(source.item, allow_urls=allow_urls))))
    return rows


def refuse_to_lose(out: Path, old_rows: Sequence[tables.Row], rows: Sequence[tables.Row], kept: str = "") -> None:
    """Raise UsageError where rows of the finished output have no successor: neither their name nor, under a new name, their content."""
    old_names, names = ({(row.item, row.modality) for row in some} for some in (old_rows, rows))
    gone = [row for row in old_rows if (row.item, row.modality) not in names]
    moved = Counter(row.sha256 for row in rows if (row.item, row.modality) not in old_names)
    lost = []
    for row in gone:
        if moved[row.sha256] > 0:
            moved[row.sha256] -= 1
        else:
            lost.append(row.item)
    if lost:
        more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        raise UsageError(
            f"--out {out}: {len(lost):,} of its {len(old_rows):,} rows would be lost, whose inputs are not given or cannot be read "
            f"now ({lost[0]}{more}): give them too, or another --out, or --overwrite{kept}"
        )
