"""One walk of a tree of files for all commands: nothing that a person named is left out without a word."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import zoo as library
from zoo.data.inputs import media_items
from zoo.data.pairs import UNREADABLE_FOLDER
from zoo.data.walk import listing, matching, walk
from zoo.errors import MediaError
from zoo.tasks.search import search

CLIP = ("--model", "clip/tiny", "--weights", "none")
SPEC = library.ModelSpec("clip/tiny", weights=None)


def image(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, and what stands in the way: a folder nobody may look into, one that is gone, a link, and names with a dot."""
    top = tmp_path / "photos"
    for name in ("a.png", "b/c.png", "b/d/e.png", "locked/f.png", "gone/g.png"):
        image(top / name, "blue" if name == "a.png" else "red")
    image(tmp_path / "elsewhere" / "h.png")
    (top / "link").symlink_to(tmp_path / "elsewhere")
    (top / "round").symlink_to("round")
    for name in ("._a.png", ".hidden/i.png", "b/.c.png"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(b"\0\5\26\7")
    scandir = os.scandir

    def refusing(path: os.PathLike[str] | str = ".") -> object:
        """As the system refuses: whoever runs the tests may look into every folder."""
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        if str(path).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return top


def test_the_walk_names_what_it_cannot_look_into(folder: Path) -> None:
    found = [(one.path.relative_to(folder).as_posix(), one.problem, one.linked) for one in walk(folder)]
    assert found == [
        ("a.png", "", False),
        ("b/c.png", "", False),
        ("b/d/e.png", "", False),
        ("gone", "the folder cannot be read (No such file or directory)", False),
        ("link", "", True),
        ("locked", "the folder cannot be read (Permission denied)", False),
        ("round", "", False),
    ]
    assert [len(part) for part in listing(folder / "b")[1:4]] == [1, 1, 0]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["a.png"]),
        ("*/*.png", ["b/c.png", "gone", "link/h.png", "locked"]),
        ("**/*.png", ["a.png", "b/c.png", "b/d/e.png", "gone", "locked"]),
        ("**/d/*.png", ["b/d/e.png", "gone", "locked"]),
        ("b/**", ["b"]),
        ("[a]*", ["a.png"]),
        ("?.png", ["a.png"]),
        (".hidden/*", [".hidden/i.png"]),
        (".h*/*", [".hidden/i.png"]),
        ("*/i.png", []),
        ("link/*.png", ["link/h.png"]),
        ("*/h.png", ["link/h.png"]),
        ("x*", []),
    ],
)
def test_a_pattern_is_the_same_walk(folder: Path, pattern: str, found: list[str]) -> None:
    names = [one.path.relative_to(folder).as_posix() for one in matching(str(folder / pattern)) if one.path != folder]
    assert names == found


def test_each_costs_itself_alone(main, folder: Path, caplog) -> None:
    run = main("classify", str(folder), "--labels", "a,b", *CLIP, "--json")
    rows = {Path(row["input"]).name: row.get("error", "") for row in json.loads(run.stdout)["results"]}
    assert run.returncode == 1
    assert {name: bool(error) for name, error in rows.items()} == {
        "a.png": False, "c.png": False, "e.png": False, "gone": True, "locked": True,
    }  # fmt: skip
    assert rows["locked"] == f"{folder / 'locked'}: cannot be read (Permission denied)"
    assert f"{folder}: 1 link to a folder is not followed ({folder / 'link'}): name the folder itself" in caplog.text
    same = main("classify", f"{folder}/**/*.png", "--labels", "a,b", *CLIP, "--json")
    assert [row["input"] for row in json.loads(same.stdout)["results"]] == list(map(str, (
        folder / "a.png", folder / "b/c.png", folder / "b/d/e.png", folder / "gone", folder / "locked",
    )))  # fmt: skip
    assert same.returncode == 1


def test_embed_and_search_name_them_too(main, folder: Path, tmp_path: Path) -> None:
    run = main("embed", str(folder), *CLIP, "--out", str(tmp_path / "e.npz"), "--json")
    document = json.loads(run.stdout)
    assert (run.returncode, document["shape"][0]) == (1, 3)
    assert f"zoo: {folder / 'locked'}: cannot be read (Permission denied)\n" in run.stderr
    run = main("search", str(folder), "a photo", *CLIP, "--json")
    document = json.loads(run.stdout)
    assert (run.returncode, document["images"], len(document["results"])) == (1, 3, 3)
    assert {Path(row["path"]).name for row in document["unreadable"]} == {"gone", "locked"}


def test_filter_counts_what_it_could_not_look_into(main, folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/d/e"):
        (folder / f"{name}.txt").write_text("a red square")
    (folder / "pipe.txt").symlink_to("/dev/zero")
    run = main("filter", str(folder), *CLIP, "--out", str(tmp_path / "out"), "--threshold", "-1", "--json")
    assert run.returncode == 1, run.stderr
    assert json.loads(run.stdout)["counts"]["dropped"] == {"outside-link": 1, UNREADABLE_FOLDER: 2}


def test_examples_and_films_leave_out_what_begins_with_a_dot(main, folder: Path, tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    for name in ("red/a.png", "blue/b.png"):
        image(shots / name, Path(name).parent.name)
    (shots / "red" / "._a.png").write_bytes(b"\0\5\26\7")
    (shots / ".git").mkdir()
    run = main("classify", str(folder / "a.png"), "--shots", str(shots), *CLIP, "--json")
    document = json.loads(run.stdout)
    assert (run.returncode, set(document["results"][0]["scores"])) == (0, {"red", "blue"}), run.stderr


def test_a_tree_deeper_than_a_path_may_be(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    back = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(22):
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        shutil.copy(tmp_path / "a.png", "b.png")
        items = media_items([tmp_path])
        assert [Path(item.label).name for item in items] == ["a.png", "d" * 200]
        outcome = library.classify([tmp_path], ["a", "b"], model=SPEC)
        assert [bool(answer.label) for answer in outcome.results] == [True, False]
        assert "File name too long" in outcome.results[1].error
        found = search(tmp_path, "a photo", model=SPEC)
        assert (len(found.results), [why for _, why in found.unreadable]) == (
            1,
            ["the folder cannot be read (File name too long)"],
        )
    finally:
        os.chdir(back)
        os.system(f"rm -rf {tmp_path / ('d' * 200)}")


def test_what_vanishes_while_it_is_read_is_named(folder: Path, monkeypatch) -> None:
    items = media_items([str(folder / "*.png"), str(folder / "b")])
    (folder / "b" / "c.png").unlink()
    outcome = library.classify(items, ["a", "b"], model=SPEC)
    assert [bool(answer.label) for answer in outcome.results] == [True, False, True]
    assert outcome.results[1].error == f"{folder / 'b/c.png'}: there is no such file"
    (folder / "b" / "left.png").symlink_to("nowhere")
    found = search(folder / "b", "a photo", model=SPEC)
    assert found.unreadable == ((f"{folder}/b/left.png", "cannot be read (No such file or directory)"),)


def test_a_folder_in_which_nothing_can_be_looked_at(main, folder: Path) -> None:
    with pytest.raises(MediaError, match="locked: the folder cannot be read .Permission denied."):
        search(folder / "locked", "a photo", model=SPEC)
    run = main("classify", str(folder / "locked"), "--labels", "a,b", *CLIP)
    assert (run.returncode, run.stdout) == (1, "")
    assert f"zoo: {folder / 'locked'}: cannot be read (Permission denied)" in run.stderr
