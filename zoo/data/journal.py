"""An append-only file of records, each of which is whole or absent: what survives a `kill -9` in the middle of long work.

After six bytes that say what it is, a record is 12 bytes (length of the header, length of the payload, CRC-32 of both), a JSON header and a binary payload. The
first record says what the journal belongs to. Opening one reads it through and cuts off what a crash left half-written.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from zoo.errors import UsageError, ZooError
from zoo.registry.atomic_write import NAME_KEPT, open_own, sync_folder
from zoo.registry.documents import parse_json

MAGIC = b"zoo-j1"
FRAME = struct.Struct("<III")
SYNC_EVERY_S = 2.0  # what a power cut may cost; a killed process loses nothing that was appended
CHUNK_BYTES = 1 << 20
PATIENCE_S = 0.1


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Raises ZooError while another process writes the same file. The lock lies beside it, where every process sees it, whatever its cache.

    It is removed by who holds it; one that waited for it then finds that it has no name any more, and asks for the next.
    """
    place = out.resolve()
    lock = FileLock(
        place.with_name(f".{place.name[:NAME_KEPT]}.{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:8]}.lock")
    )
    try:
        lock.acquire(timeout=PATIENCE_S, poll_interval=PATIENCE_S / 5)
    except Timeout:
        raise ZooError(f"--out {out}: another process is writing it; wait for it, or give another name") from None
    except OSError as error:
        raise ZooError(f"--out {out}: cannot be written ({error.strerror or error}: {lock.lock_file})") from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def read_about(path: Path) -> dict[str, Any] | None:
    """The first record's header: what a journal belongs to. None when there is no journal, or not one whole record in it."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
            if not MAGIC.startswith(begin):
                raise UsageError(f"{path}: not a journal of the zoo; it is left alone: move it away, or give another --out")
            first = _read_record(file, path.stat().st_size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ZooError(f"{path}: cannot be read ({error.strerror or error})") from error
    return first[0] if first else None


class Journal:
    """An open journal; call `read_about` first. Raises ZooError, naming the file, where the disk refuses."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        try:
            self._file = open_own(path, keep=True)
            self._end = self._cut_torn_tail()
            self._synced = time.monotonic()
            if self._end <= len(MAGIC):
                self._file.seek(0)
                self._file.write(MAGIC)
                self._end = len(MAGIC)
                self.append(about, b"")
                self.sync()
                sync_folder(path.parent)
        except OSError as error:
            raise ZooError(f"{path}: cannot be written ({error.strerror or error})") from error

    def records(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        """(header, place of the payload, its length) of every record after the first."""
        self._file.seek(len(MAGIC))
        _read_record(self._file, self._end)
        while (record := _read_record(self._file, self._end)) is not None:
            yield record

    def append(self, header: Mapping[str, Any], payload: bytes) -> int:
        """Write one record; returns the place of its payload, for `read`."""
        encoded = json.dumps(header).encode()
        crc = zlib.crc32(payload, zlib.crc32(encoded))
        place = self._end + FRAME.size + len(encoded)
        try:
            self._file.seek(self._end)
            self._file.write(FRAME.pack(len(encoded), len(payload), crc) + encoded + payload)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                self.sync()
        except OSError as error:
            raise ZooError(
                f"{self.path}: cannot be written ({error.strerror or error}); what was done is kept in it, "
                f"and the same command goes on from there"
            ) from error
        self._end = place + len(payload)
        return place

    def read(self, place: int, size_bytes: int) -> bytes:
        """Part of a payload."""
        self._file.seek(place)
        return self._file.read(size_bytes)

    def sync(self) -> None:
        """Have everything on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        """Close it and remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _cut_torn_tail(self) -> int:
        size_bytes = os.fstat(self._file.fileno()).st_size
        self._file.seek(len(MAGIC))
        end = min(size_bytes, len(MAGIC))
        while (record := _read_record(self._file, size_bytes)) is not None:
            end = record[1] + record[2]
        if end != size_bytes:
            self._file.truncate(end)
        return end


def _read_record(file: BinaryIO, size_bytes: int) -> tuple[dict[str, Any], int, int] | None:
    """The record at the file's position, checked; None at the end, or where what follows is not a whole record."""
    start = file.tell()
    frame = file.read(FRAME.size)
    if len(frame) < FRAME.size:
        return None
    header_bytes, payload_bytes, crc = FRAME.unpack(frame)
    place = start + FRAME.size + header_bytes
    if place + payload_bytes > size_bytes:
        return None
    encoded = file.read(header_bytes)
    found = zlib.crc32(encoded)
    remaining = payload_bytes
    while remaining:
        chunk = file.read(min(CHUNK_BYTES, remaining))
        if not chunk:
            return None
        found = zlib.crc32(chunk, found)
        remaining -= len(chunk)
    if found != crc:
        return None
    try:
        header = parse_json(encoded)
    except ValueError:
        return None
    return (header, place, payload_bytes) if isinstance(header, dict) else None
