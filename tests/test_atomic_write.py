"""A file has its name when it is whole; what fails on the way leaves the old one and no rubble."""

import errno
import os
import threading
from pathlib import Path

import pytest

from zoo.registry.atomic_write import atomic_write, write_bytes, write_text


def test_old_or_new_and_nothing_beside_it(tmp_path):
    target = tmp_path / "a.json"
    write_text(target, "one é")
    write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as temporary:
        temporary.write_text("half")
        assert (temporary.parent, temporary.name[0], target.read_bytes()) == (tmp_path, ".", b"two")
        raise KeyboardInterrupt
    assert (target.read_bytes(), list(tmp_path.iterdir())) == (b"two", [target])


def test_a_disk_that_refuses_is_reported_and_changes_nothing(tmp_path, monkeypatch):
    target = tmp_path / "a"
    write_text(target, "old")

    def refused(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(OSError, match="No space left"):
        write_text(target, "new")
    assert (target.read_text(), list(tmp_path.iterdir())) == ("old", [target])
    write_text(target, "new", durable=False)
    assert target.read_text() == "new"


def test_threads_have_names_of_their_own_and_links_are_not_written_through(tmp_path):
    target, precious = tmp_path / ("n" * 250), tmp_path / "precious"
    precious.write_text("thesis")
    names: list[Path] = []
    both = threading.Barrier(2)

    def note():
        with atomic_write(target) as temporary:
            names.append(temporary)
            temporary.write_text("x")
            both.wait(timeout=60)

    threads = [threading.Thread(target=note) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(set(names)), target.read_text()) == (2, "x")
    link = tmp_path / "own.new"
    link.symlink_to(precious)
    with atomic_write(target, temporary=link) as temporary:
        temporary.write_text("y")
    assert (precious.read_text(), target.read_text(), target.is_symlink(), link.exists()) == ("thesis", "y", False, False)


def test_writes_inside_each_other_do_not_share_a_name(tmp_path: Path) -> None:
    """Two long names that begin alike, written by one thread at a time: each ends as it was written."""
    first, second = tmp_path / f"{'n' * 60}-1", tmp_path / f"{'n' * 60}-2"
    with atomic_write(first) as outer:
        outer.write_text("1")
        with atomic_write(second) as inner:
            assert inner != outer
            inner.write_text("2")
    assert (first.read_text(), second.read_text()) == ("1", "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]
