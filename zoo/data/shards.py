"""What a user points at (a folder, a `.jsonl`, tars) -> the shards to filter, each with the place of its result."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from zoo.data.inputs import refuse_empty
from zoo.data.pairs import FolderShard, JsonlShard, Shard
from zoo.data.tar_pairs import TarShard, expand_pattern
from zoo.errors import UsageError
from zoo.media.file import expanded

FILES = (".jsonl", ".tar")


def find_shards(source: str, out: Path | None) -> list[Shard]:
    """What is to be filtered, each with its place in `out`. Raises UsageError."""
    refuse_empty(source, "a folder, a .jsonl, a .tar or a pattern of tars")
    path = expanded(source)
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent} (mkdir -p {out.parent})")
    if path.is_dir():
        if out is not None and out.suffix.lower() in FILES:
            raise UsageError(f"--out {out}: the name of a file, expected that of a folder, the form of {source}")
        if out is not None and out.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"--out {out}: it lies inside {path}, and would be filtered itself next time")
        if next(FolderShard(path, out).pairs(), None) is None:
            tars = next(path.glob("*.tar"), None) is not None
            hint = f"; its tars are named with a pattern: '{path}/*.tar'" if tars else ""
            raise UsageError(f"{source}: the folder holds no pair (a.jpg with a.txt){hint}")
        return [FolderShard(path, out)]
    if path.suffix.lower() == ".jsonl":
        if not path.is_file():
            raise UsageError(f"{source}: there is no such file")
        if out is not None and (out.suffix.lower() != ".jsonl" or out.resolve() == path.resolve()):
            raise UsageError(f"--out {out}: expected the name of another .jsonl, the form of {source}")
        return [JsonlShard(path, out)]
    names = [name for part in ([source] if path.exists() else expand_pattern(str(path))) for name in _matches(part)]
    if not names or not all(name.endswith(".tar") for name in names):
        found = "no file matches it" if not names else "expected a folder, a .jsonl, or one or more .tar"
        raise UsageError(f"{source}: {found}")
    if len(names) == 1 and not Path(names[0]).exists():
        raise UsageError(f"{source}: there is no such file")
    return _tar_shards(names, out, single=len(names) == 1 and names[0] == str(path))


def _tar_shards(names: Sequence[str], out: Path | None, *, single: bool) -> list[Shard]:
    if out is None:
        return [TarShard(Path(name), None) for name in names]
    if single and out.suffix == ".tar" and not out.is_dir():
        if out.resolve() == Path(names[0]).resolve():
            raise UsageError(f"--out {out}: the source itself; give another name")
        return [TarShard(Path(names[0]), out)]
    if out.suffix.lower() in FILES and not out.is_dir():
        several = "one .tar" if single else f"a folder for {len(names)} tars"
        raise UsageError(f"--out {out}: the name of a file, expected that of {several}, or of a folder")
    if out.is_file():
        raise UsageError(f"--out {out}: a file, expected a folder for {len(names)} tars")
    files = [Path(name).name for name in names]
    repeated = sorted(file for file, count in Counter(files).items() if count > 1)
    if repeated:
        raise UsageError(
            f"several shards are called {repeated[0]}, and would meet in {out}: filter their folders one by one"
        )
    if out.resolve() in {Path(name).resolve().parent for name in names}:
        raise UsageError(f"--out {out}: the folder of the source; give another")
    return [TarShard(Path(name), out / file) for name, file in zip(names, files, strict=True)]


def _matches(name: str) -> list[str]:
    if glob.has_magic(name) and not Path(name).exists():
        return sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    return [name]
