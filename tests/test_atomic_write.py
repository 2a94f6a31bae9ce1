"""A file has its name when it is whole; what fails on the way leaves the old one and no rubble."""

import errno
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoo.registry import atomic_write as module
from zoo.registry.atomic_write import atomic_folder, atomic_write, open_own, write_bytes, write_text


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


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as missing, atomic_write(tmp_path / "sub" / "a"):
        pass
    assert missing.value.filename == str(tmp_path / "sub" / "a")
    with pytest.raises(OSError, match="Is a directory") as other, atomic_write(tmp_path / "a") as temporary:
        temporary.unlink()
        temporary.mkdir()
        temporary.write_text("x")
    assert other.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as theirs, atomic_write(tmp_path / "a"):
        (tmp_path / "gone").read_text()
    assert theirs.value.filename == str(tmp_path / "gone")


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
    guessed = tmp_path / f"{target.name[:200]}.part"
    for plant in (guessed.symlink_to, guessed.hardlink_to):
        plant(precious)
        with open_own(guessed) as file:
            file.write(b"y")
        assert (precious.read_text(), guessed.read_text(), guessed.is_symlink()) == ("thesis", "y", False)
        with open_own(guessed, keep=True) as file:
            file.write(b"z")
        assert guessed.read_text() == "yz"
        guessed.unlink()


def test_the_name_on_the_way_can_neither_be_guessed_nor_taken(tmp_path, monkeypatch):
    """A link under that very name, had somebody guessed it, is refused and not written through."""
    precious = tmp_path / "precious"
    precious.write_text("thesis")
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "0" * 16)
    with atomic_write(tmp_path / "a") as temporary:
        taken = temporary.name
    (tmp_path / taken).symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a", "new")
    assert precious.read_text() == "thesis"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o440])
def test_the_old_mode_stays_and_a_library_that_makes_its_own_file_changes_none(tmp_path, mode):
    target = tmp_path / "a.safetensors"
    previous = os.umask(0o027)
    try:
        with atomic_write(target) as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        target.chmod(mode)
        with atomic_write(target) as temporary:
            save_file({"a": torch.ones(1)}, temporary)
    finally:
        os.umask(previous)
    assert (stat.S_IMODE(target.stat().st_mode), load_file(target)["a"].item()) == (mode, 1)


def test_a_link_of_ones_own_stays_one_and_anothers_is_replaced(tmp_path, monkeypatch):
    kept, link = tmp_path / "dotfiles" / "zoo.lock", tmp_path / "zoo.lock"
    kept.parent.mkdir()
    kept.write_text("old")
    link.symlink_to(kept)
    write_text(link, "new")
    assert (kept.read_text(), link.is_symlink()) == ("new", True)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(module, "SYSTEM", -1)
    write_text(link, "newer")
    assert (kept.read_text(), link.read_text(), link.is_symlink()) == ("new", "newer", False)
    with pytest.raises(FileExistsError, match="it is there and is no file"):
        write_text(tmp_path / "dotfiles", "x")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    target = tmp_path / "a"
    dead = subprocess.Popen(["true"])
    dead.wait()
    with atomic_write(target) as living:
        living.write_text("1")
        of_dead = living.with_name(living.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
        of_dead.write_text("half")
        folder_of_dead = living.with_name(of_dead.name.replace(".a.", ".b."))
        folder_of_dead.mkdir()
        module._remove_left.cache_clear()
        write_text(tmp_path / "c", "2")
        assert (living.exists(), of_dead.exists(), folder_of_dead.exists()) == (True, False, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


@pytest.mark.parametrize("swaps", [True, False], ids=["swapped at once", "one after the other"])
def test_a_folder_is_the_old_one_or_the_new_one(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(module, "_exchanged", lambda *_: False)
    folder = tmp_path / "model"

    def fill(text, *, fail=False):
        with atomic_folder(folder) as staging:
            (staging / "a").write_text(text)
            (staging / "inner").mkdir(exist_ok=True)
            (staging / "inner" / "b").write_text(text)
            if fail:
                raise KeyboardInterrupt

    fill("one")
    (folder / "notes.txt").write_text("mine")
    (folder / "inner" / "mine").write_text("mine")
    (folder / "a").chmod(0o600)
    with pytest.raises(KeyboardInterrupt):
        fill("two", fail=True)
    assert (folder / "a").read_text() == "one"
    fill("three")
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"a": "three", "inner/b": "three", "notes.txt": "mine", "inner/mine": "mine"}
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
        pass


def test_a_swap_of_two_steps_that_was_killed_between_them_is_undone(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    with atomic_folder(folder) as staging:
        (staging / "a").write_text("one")
    with subprocess.Popen(["true"]) as killed:
        pass
    aside = module._aside(folder)
    somebodys = tmp_path / ".model.old"
    somebodys.mkdir()
    folder.rename(aside.with_name(aside.name.replace(f"-{os.getpid()}-", f"-{killed.pid}-")))
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder):
        assert (folder / "a").read_text() == "one"
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.old", "model"]


def test_what_is_put_into_a_folder_while_it_is_replaced_stays(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    with atomic_folder(folder) as staging:
        (staging / "a").write_text("one")
    exchanged = module._exchanged

    def meanwhile(new, path):
        (folder / "notes").write_text("mine")
        return exchanged(new, path)

    monkeypatch.setattr(module, "_exchanged", meanwhile)
    with atomic_folder(folder) as staging:
        (staging / "a").write_text("two")
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {"a": "two", "notes": "mine"}


def test_the_current_folder_can_be_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", "../" + tmp_path.name):
        with atomic_folder(Path(name)) as staging:
            (staging / "a").write_text(name)
        assert Path("a").read_text() == name
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the administrator gives files to others")
def test_owner_and_group_stay(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    os.chown(file, 1000, 4321)
    file.chmod(0o640)
    write_text(file, "new")
    found = file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1000, 4321, 0o640)


def test_a_folder_that_cannot_be_renamed_is_filled_file_by_file(tmp_path, monkeypatch):
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
    with atomic_folder(folder) as staging:
        assert staging.parent == folder
        (staging / "a").write_text("one")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "mine"]


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
