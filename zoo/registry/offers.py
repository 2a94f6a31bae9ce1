"""What a plugin offers beside models, as rows of its manifest: commands, readers of media, formats of weights, checks of the kit.

Like a card, a row is data: it is known without importing anything, and the function that it names is imported at its first use.

[[command]]                               # `zoo speech`, and a line of `zoo --help`
name = "speech"
summary = "where somebody speaks in audio files"
build = "zoo_birds.commands:speech"       # (parser) -> what runs the parsed arguments, and returns the exit code

[[reader]]                                # of media files that the core cannot read
modality = "image"
suffixes = [".tif", ".tiff"]
read = "zoo_birds.tiff:read"               # (path) -> RGB image, or sound

[[format]]                                # of weight files that the core cannot read
name = "plain"
magic = "706c61696e"                      # how such a file begins, in hex
read = "zoo_birds.plain:read"             # (path) -> names to tensors

[[check]]                                 # what `zoo check` asks of this plugin's own models, beside the core's checks
name = "rank-is-kept"
promise = "the rank of the change is at most r"
models = ["low-*"]                        # patterns of their names; all if left out
run = "zoo_birds.checks:rank_is_kept"     # (zoo.testing.Subject) -> None; raises zoo.testing.CheckFailed
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.registry.fields import (
    FieldError,
    choice_of,
    each,
    refuse_unknown,
    target_of,
    text_of,
    texts_of,
)
from zoo.registry.modality import AUDIO, IMAGE, SUFFIXES

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
SUFFIX = re.compile(r"\.[a-z0-9]{1,15}")
MAGIC = re.compile(r"([0-9a-f]{2}){2,16}")
READABLE = (IMAGE, AUDIO)
# What the core reads by itself or lays beside media: a row that took one of these would break other people's folders.
BESIDE = (
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".toml",
    ".tar",
    ".zip",
    ".npy",
    ".npz",
    ".parquet",
    ".safetensors",
    ".gguf",
    ".bin",
    ".pt",
    ".pth",
)
TAKEN = frozenset((*(suffix for suffixes in SUFFIXES.values() for suffix in suffixes), *BESIDE))
OWN_MAGICS = ("504b0304", "80", "47475546")  # zip and pickle of torch, GGUF


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of the command line: `zoo NAME`, a line of `zoo --help`, with --json and --debug as every command has them.

    name: lower-case letters, digits and hyphens; a command of the core keeps its name.
    summary: what it does, in one line of the help.
    build: `"package.module:function"`, (argparse.ArgumentParser) -> function: adds the arguments and returns what runs them, which takes the
        parsed arguments and returns the exit code (0 done, 1 it failed). It prints the answer on stdout, and one JSON document where
        `arguments.json` says so; errors are raised (`zoo.api.UsageError` and the like). It imports torch in what it returns, not before.
    """

    name: str
    summary: str
    build: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A reader of media files that the core does not read. It serves every task that names files or folders, indexes included; members of tars
    and addresses are read by the core alone.

    modality: `image` or `audio`.
    suffixes: of its files, in lower case and with the dot. Those that have a meaning already (.jpg, .wav, .txt, .npy ...) are refused.
    read: `"package.module:function"`, (pathlib.Path) -> RGB `PIL.Image.Image`, or `zoo.api.Sound` as it was recorded. The core has looked at
        the size of the file before, and holds what comes back to its limits of pixels and seconds of sound, but not to one of time. Raise `zoo.api.MediaError`, with the path,
        for what cannot be read; whatever else is raised costs this file only.
    """

    modality: str
    suffixes: tuple[str, ...]
    read: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of weight files that the core does not read (safetensors, torch checkpoints, GGUF and CTranslate2 are its own).

    name: what messages call such a file, before the word file.
    magic: the first 2 to 16 bytes of every such file, in lower-case hex. A file that a format of the core claims is never asked of a plugin,
        and one that two plugins claim is not read.
    read: `"package.module:function"`, (pathlib.Path) -> names to dense tensors on the CPU, under the names that the card's `keys` knows. It runs
        no code from the file, trusts no number in it, and raises `zoo.api.WeightsError`, with the path, for a damaged one.
    """

    name: str
    magic: str
    read: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCheck:
    """A check of the conformance kit for this plugin's own models, beside the core's. `zoo check` runs it in the same process of its own.

    name: lower-case letters, digits and hyphens; it is shown as `<plugin>:<name>`.
    promise: what holds where it passes, in one sentence.
    run: `"package.module:function"`, (zoo.testing.Subject) -> None. A subject has the card (`found`), the built model (`module`, `built`), whether it has trained weights
        (`trained`), and builds it anew (`open(weights=..., dtype=...)`). It raises `zoo.testing.CheckFailed` with what was found and what was expected, or
        `zoo.testing.CheckSkipped` where it says nothing.
    models: patterns of the names of models it is for, without the plugin's; all where it is left out.
    """

    name: str
    promise: str
    run: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """All rows of one plugin."""

    commands: tuple[Command, ...] = ()
    readers: tuple[Reader, ...] = ()
    formats: tuple[Format, ...] = ()
    checks: tuple[OwnCheck, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.commands or self.readers or self.formats or self.checks)

    def targets(self) -> Iterator[str]:
        """Every function that the rows name."""
        yield from (row.build for row in self.commands)
        yield from (row.read for row in self.readers)
        yield from (row.read for row in self.formats)
        yield from (row.run for row in self.checks)


TABLES = ("command", "reader", "format", "check")


def parse_offers(document: Mapping[str, Any], package: str) -> Offers:
    """The rows of a manifest; raises FieldError.

    package: the plugin's own, the only one that a row may point into.
    """
    offers = Offers(
        commands=tuple(each(document, "command", lambda row: _command(row, package))),
        readers=tuple(each(document, "reader", lambda row: _reader(row, package))),
        formats=tuple(each(document, "format", lambda row: _format(row, package))),
        checks=tuple(each(document, "check", lambda row: _check(row, package))),
    )
    for table, names in (
        ("command", [row.name for row in offers.commands]),
        ("reader", [f"{row.modality} {suffix}" for row in offers.readers for suffix in row.suffixes]),
        ("format", [row.magic for row in offers.formats]),
        ("check", [row.name for row in offers.checks]),
    ):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise FieldError(table, f"two [[{table}]] rows are for {twice}")
    return offers


def refuse_idle_checks(offers: Offers, models: Sequence[str]) -> None:
    """Raise FieldError for a pattern of a check that matches no model: it would never run, and nobody would know."""
    for check in offers.checks:
        idle = next((pattern for pattern in check.models if not fnmatch.filter(models, pattern)), None)
        if idle is not None:
            raise FieldError("models", f"check {check.name!r} is for {idle!r}, and no model of this plugin is called so")


def _command(row: Mapping[str, Any], package: str) -> Command:
    refuse_unknown(row, {"name", "summary", "build"})
    summary = text_of(row, "summary", required=True)
    return Command(name=_name(row), summary=summary, build=_own_target(row, "build", package))


def _reader(row: Mapping[str, Any], package: str) -> Reader:
    refuse_unknown(row, {"modality", "suffixes", "read"})
    suffixes = texts_of(row, "suffixes")
    wrong = next((suffix for suffix in suffixes if not SUFFIX.fullmatch(suffix)), None)
    if not suffixes or wrong is not None:
        raise FieldError(
            "suffixes", f'suffixes are lower-case file endings such as [".tif"], got {wrong or list(suffixes)!r}'
        )
    taken = next((suffix for suffix in suffixes if suffix in TAKEN), None)
    if taken is not None:
        raise FieldError(
            "suffixes", f"{taken} has a meaning already, and no plugin changes it: take a suffix of the format's own"
        )
    if len(set(suffixes)) < len(suffixes):
        raise FieldError("suffixes", f"a suffix is named once, got {', '.join(suffixes)}")
    modality = choice_of(row, "modality", READABLE)
    return Reader(modality=modality, suffixes=suffixes, read=_own_target(row, "read", package))


def _format(row: Mapping[str, Any], package: str) -> Format:
    refuse_unknown(row, {"name", "magic", "read"})
    magic = text_of(row, "magic", required=True)
    if not MAGIC.fullmatch(magic):
        raise FieldError("magic", f"magic is how such a file begins, 2 to 16 bytes in lower-case hex, got {magic!r}")
    own = next((one for one in OWN_MAGICS if magic.startswith(one)), None)
    if own is not None:
        raise FieldError("magic", f"a file that begins with {own} is read by the core, so this row would never be asked")
    return Format(name=text_of(row, "name", required=True), magic=magic, read=_own_target(row, "read", package))


def _check(row: Mapping[str, Any], package: str) -> OwnCheck:
    refuse_unknown(row, {"name", "promise", "models", "run"})
    promise = text_of(row, "promise", required=True)
    models = texts_of(row, "models")
    return OwnCheck(name=_name(row), promise=promise, models=models, run=_own_target(row, "run", package))


def _name(row: Mapping[str, Any]) -> str:
    name = text_of(row, "name", required=True)
    if not NAME.fullmatch(name):
        raise FieldError("name", f"name {name!r} must match {NAME.pattern}")
    return name


def _own_target(row: Mapping[str, Any], key: str, package: str) -> str:
    target = target_of(row, key)
    if target is None:
        raise FieldError(key, f'{key} must be "package.module:function", it is left out')
    if target.partition(":")[0].partition(".")[0] != package:
        raise FieldError(key, f"{key} may only point inside the plugin's own package {package!r}, got {target!r}")
    return target
