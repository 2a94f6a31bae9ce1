"""Where `zoo transcribe` writes, and in which format; what would be lost by it is refused before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UsageError, ZooError
from zoo.media.file import expanded
from zoo.registry.atomic_write import write_text

FORMATS = ("txt", "srt", "vtt", "tsv", "json")


def format_of(out: str | None, asked: str | None, *, several: bool, as_json: bool) -> str:
    """The format that is asked for, or that the name of the output ends in, else txt (json with --json).

    Raises UsageError where the two differ, and for a name that ends in something else.
    """
    usual = asked or ("json" if as_json else "txt")
    if out is None or several or names_folder(out):
        return usual
    named = Path(out).suffix.lower().removeprefix(".")
    if asked is not None:
        if named in FORMATS and named != asked:
            raise UsageError(f"--out {out} ends in .{named}, and --format says {asked}: leave one of them out")
        return asked
    if named and named not in FORMATS:
        raise UsageError(f"--out {out}: expected a name ending in .{', .'.join(FORMATS)}, or --format beside it")
    return named or usual


def names_folder(out: str) -> bool:
    return out.endswith(("/", os.sep)) or expanded(out).is_dir()


def transcript_files(out: str, sounds: Sequence[Path], format_: str) -> dict[Path, Path]:
    """Each sound -> where its transcript goes: the file named, or one in the folder named, as the sounds lie beside one another.

    Raises UsageError for what cannot be written and for what is one of the sounds.
    """
    path = expanded(out)
    if len(sounds) == 1 and not names_folder(out):
        if not path.parent.is_dir():
            raise UsageError(f"--out {out}: there is no folder {path.parent}")
        targets = {sounds[0]: path}
    else:
        if path.exists() and not path.is_dir():
            raise UsageError(f"--out {out}: {len(sounds)} transcripts need a folder, and this is a file")
        if (named := path.suffix.lower().removeprefix(".")) in FORMATS and not names_folder(out):
            raise UsageError(
                f"--out {out}: {len(sounds)} transcripts need a folder: --out {path.with_suffix('')}/ --format {named}"
            )
        names = [Path(sound.name) for sound in sounds]
        if len(set(names)) < len(names):  # the folders tell them apart
            absolute = [sound.absolute() for sound in sounds]
            common = os.path.commonpath([str(sound.parent) for sound in absolute])
            names = [sound.relative_to(common) for sound in absolute]
        targets = {
            sound: path / name.with_name(f"{name.name}.{format_}") for sound, name in zip(sounds, names, strict=True)
        }
    for target in targets.values():
        if target.is_dir():
            raise UsageError(f"--out {target}: a folder, where a transcript is to be written")
        if any(target.exists() and sound.exists() and target.samefile(sound) for sound in sounds):
            raise UsageError(f"--out {target}: it is one of the sounds, and would be lost: give another name")
        target.parent.mkdir(parents=True, exist_ok=True)
    return targets


def write_transcript(target: Path, text: str) -> None:
    """Under its final name, when it is whole. Raises ZooError where the disk refuses."""
    try:
        write_text(target, text)
    except OSError as error:
        raise ZooError(
            f"--out {target}: cannot be written ({error}); what was done is kept in {journal_of(target)}"
        ) from error


def journal_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def finished(targets: dict[Path, Path], *, single: bool, overwrite: bool) -> dict[Path, Any]:
    """The sounds whose transcripts are there, so that nothing is done twice and nothing lost. Raises UsageError for a single one."""
    there = {} if overwrite else {sound: target for sound, target in targets.items() if target.exists()}
    if there and single:
        raise UsageError(f"--out {next(iter(there.values()))}: it is there already: give another name, or --overwrite")
    return there
