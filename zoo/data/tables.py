"""Files of embeddings: `.npz`, `.parquet` and `.jsonl`, written and read row by row, so that size costs disk and not memory.

Each says what it holds (`About`): the model and the identity of everything that shaped its numbers.
"""

from __future__ import annotations

import itertools
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.errors import UsageError, ZooError
from zoo.registry.documents import parse_json
from zoo.registry.plugin import one_line

SUFFIXES = (".npz", ".parquet", ".jsonl")
ROWS_AT_ONCE = 512
PARQUET_KEY = b"modalzoo"
# What the readers of the three formats raise.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
TIME = (1980, 1, 1, 0, 0, 0)  # of the members of an npz: the same rows make the same bytes


class Row(NamedTuple):
    """What was embedded: how it was named, its modality, and the hex sha256 of its content."""

    item: str
    modality: str
    sha256: str


@dataclass(frozen=True, slots=True)
class About:
    """Whose vectors a file holds. normalised: they have length 1."""

    model: str
    identity: str
    normalised: bool


def check_out(path: Path) -> None:
    """Raises UsageError for a file of another kind or in no folder, and where the library for its kind is missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {path}: the suffix says the format, expected one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent} (mkdir -p {path.parent})")
    if path.is_dir():
        raise UsageError(f"--out {path}: a folder, expected the name of a file")


def write_table(path: Path, suffix: str, about: About, width: int, rows: Sequence[Row], vectors: Iterable[bytes]) -> None:
    """Write a file of the kind that `suffix` names. vectors: one float32[width] a row, as bytes, in the order of the rows."""
    {".npz": _write_npz, ".parquet": _write_parquet, ".jsonl": _write_jsonl}[suffix](path, about, width, rows, vectors)


def read_table(path: Path) -> tuple[About, list[Row]]:
    """What a file holds, without its vectors. Raises ZooError when it is not one that this module wrote."""
    with _damage(path):
        about, rows = {".npz": _read_npz, ".parquet": _read_parquet, ".jsonl": _read_jsonl}[path.suffix.lower()](path)
        if not all(isinstance(value, str) for row in rows for value in row):
            raise ValueError("a name, modality or hash is no text")
    return about, rows


def read_vectors(path: Path) -> Iterator[bytes]:
    """The vectors of a file, float32[E] as bytes, in the order of its rows. Raises ZooError where they are damaged."""
    kinds = {".npz": _npz_vectors, ".parquet": _parquet_vectors, ".jsonl": _jsonl_vectors}
    width = None
    with _damage(path):
        for number, vector in enumerate(kinds[path.suffix.lower()](path), 1):
            values = np.frombuffer(vector, "<f4")
            width = len(values) if width is None else width
            if len(values) != width or not width:
                raise ValueError(f"the vector of row {number:,} has {len(values):,} numbers, expected {width or 'some'}")
            if not np.isfinite(values).all():
                raise ValueError(f"the vector of row {number:,} holds NaN or infinity")
            yield vector


def check_vectors(path: Path, count: int) -> None:
    """Read a file through. Raises ZooError unless it has a whole vector for each of its rows."""
    found = sum(1 for _ in read_vectors(path))
    if found != count:
        raise ZooError(f"{path}: not a whole file of embeddings ({found:,} vectors for {count:,} rows)")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its readers raise becomes a ZooError that names it."""
    try:
        yield
    except ZooError:
        raise
    except DAMAGE as error:
        raise ZooError(f"{path}: not a whole file of embeddings ({one_line(error)})") from error


def _write_npz(path: Path, about: About, width: int, rows: Sequence[Row], vectors: Iterable[bytes]) -> None:
    def open_member(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], method: int) -> Any:
        member = zipfile.ZipInfo(f"{name}.npy", TIME)
        member.compress_type = method
        stream = archive.open(member, "w", force_zip64=True)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream

    with zipfile.ZipFile(path, "w") as archive:
        with open_member("embeddings", np.dtype("<f4"), (len(rows), width), zipfile.ZIP_STORED) as stream:
            for vector in vectors:
                stream.write(vector)
        # One text after the other, and where each begins: an array of texts makes each as wide as the longest.
        ends = np.cumsum([0, *(len(row.item.encode()) for row in rows)], dtype=np.int64)
        with open_member("items_utf8", np.dtype(np.uint8), (int(ends[-1]),), zipfile.ZIP_DEFLATED) as stream:
            for row in rows:
                stream.write(row.item.encode())
        with open_member("items_offsets", np.dtype("<i8"), ends.shape, zipfile.ZIP_DEFLATED) as stream:
            stream.write(ends.astype("<i8").tobytes())
        for position, name in ((1, "modality"), (2, "sha256")):
            longest = max((len(row[position]) for row in rows), default=0)
            dtype = np.dtype(f"<U{max(1, longest)}")
            with open_member(name, dtype, (len(rows),), zipfile.ZIP_DEFLATED) as stream:
                for row in rows:
                    stream.write(np.array(row[position], dtype).tobytes())
        text = np.array(json.dumps(asdict(about)))
        with open_member("about", text.dtype, (), zipfile.ZIP_STORED) as stream:
            stream.write(text.tobytes())


def _read_npz(path: Path) -> tuple[About, list[Row]]:
    # Opened here, since numpy leaves a file open that it cannot read.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        about = About(**parse_json(str(arrays["about"])))
        if "items" in arrays:
            raise ValueError("an earlier release wrote it, in another form")
        text, offsets = arrays["items_utf8"].tobytes(), arrays["items_offsets"].tolist()
        items = [text[start:stop].decode() for start, stop in itertools.pairwise(offsets)]
        columns = [items, *(arrays[name].tolist() for name in ("modality", "sha256"))]
    return about, [Row(*values) for values in zip(*columns, strict=True)]


def _npz_vectors(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive, archive.open("embeddings.npy") as stream:
        np.lib.format.read_magic(stream)
        (count, width), by_column, dtype = np.lib.format.read_array_header_1_0(stream)
        if by_column or dtype != np.dtype("<f4"):
            raise ValueError(f"embeddings of {dtype}, expected float32 row by row")
        for _ in range(count):
            yield stream.read(4 * width)
        if stream.read(1):  # also has the whole's checksum compared
            raise ValueError("more numbers than its shape says")


def _write_parquet(path: Path, about: About, width: int, rows: Sequence[Row], vectors: Iterable[bytes]) -> None:
    arrow, parquet = _pyarrow()
    names = ("item", "modality", "sha256")
    schema = arrow.schema([*((name, arrow.string()) for name in names), ("embedding", arrow.list_(arrow.float32()))])
    schema = schema.with_metadata({PARQUET_KEY: json.dumps(asdict(about)).encode()})
    source = iter(vectors)
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chunk = rows[start : start + ROWS_AT_ONCE]
            values = np.frombuffer(b"".join(itertools.islice(source, len(chunk))), "<f4")
            offsets = np.arange(len(chunk) + 1, dtype=np.int32) * width
            lists = arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(values))
            columns = [arrow.array([row[position] for row in chunk], arrow.string()) for position in range(len(names))]
            writer.write_batch(arrow.record_batch([*columns, lists], schema=schema))


def _read_parquet(path: Path) -> tuple[About, list[Row]]:
    with _opened_parquet(path) as file:
        about = About(**parse_json(file.schema_arrow.metadata[PARQUET_KEY]))
        rows = [
            Row(row["item"], row["modality"], row["sha256"])
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["item", "modality", "sha256"])
            for row in batch.to_pylist()
        ]
    return about, rows


def _parquet_vectors(path: Path) -> Iterator[bytes]:
    with _opened_parquet(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=["embedding"]):
            for value in batch.column(0):
                yield value.values.to_numpy(zero_copy_only=False).astype("<f4").tobytes()


@contextmanager
def _opened_parquet(path: Path) -> Iterator[Any]:
    file = _pyarrow()[1].ParquetFile(path)
    try:
        if PARQUET_KEY not in (file.schema_arrow.metadata or {}):
            raise ValueError("it does not say which model made it")
        yield file
    finally:
        file.close()


def _write_jsonl(path: Path, about: About, width: int, rows: Sequence[Row], vectors: Iterable[bytes]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row, vector in zip(rows, vectors, strict=True):
            values = np.frombuffer(vector, "<f4", count=width).tolist()
            fields = json.dumps({**row._asdict(), **asdict(about)}, ensure_ascii=False)
            numbers = ",".join(map("{:.9g}".format, values))  # nine digits are a float32 exactly
            stream.write(f'{fields[:-1]}, "embedding": [{numbers}]}}\n')


def _read_jsonl(path: Path) -> tuple[About, list[Row]]:
    about, rows = None, []
    for line in _jsonl_lines(path):
        found = About(line["model"], line["identity"], line["normalised"])
        if about not in (None, found):
            raise ValueError("its lines come from several models")
        about = found
        rows.append(Row(line["item"], line["modality"], line["sha256"]))
    if about is None:
        raise ValueError("it is empty")
    return about, rows


def _jsonl_vectors(path: Path) -> Iterator[bytes]:
    for line in _jsonl_lines(path):
        yield np.asarray(line["embedding"], "<f4").tobytes()


def _jsonl_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for text in stream:
            yield json.loads(text)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as arrow  # noqa: ICN001 - a word, as everything here
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            "writing .parquet needs pyarrow: pip install 'modalzoo[parquet]' (or choose --out with .npz or .jsonl)"
        ) from error
    return arrow, parquet
