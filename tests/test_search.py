"""`zoo search` and `zoo.search`: real photos, and an index that is changed, damaged, shared and moved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo as library
from zoo.errors import MediaError, UsageError


@pytest.fixture(scope="module")
def model() -> object:
    return library.open_model("conse/lite0-minilm")


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("chelsea", "coffee", "rocket", "sheep", "mountains"):
        shutil.copy(photos / f"{name}.jpg", folder / "sub" if name == "rocket" else folder)
    return folder


def names(outcome: object) -> list[str]:
    return [Path(hit.path).name for hit in outcome.results]


def test_text_and_image_find_what_they_show(folder: Path, photos: Path, model: object) -> None:
    for query, name in {
        "a cat": "chelsea.jpg",
        "espresso": "coffee.jpg",
        "rocket": "rocket.jpg",
        "ram": "sheep.jpg",
    }.items():
        outcome = library.search(folder, query, model=model, top=2)
        assert names(outcome)[0] == name
        assert len(outcome.results) == 2
        assert outcome.results[0].score > outcome.results[1].score
    by_image = library.search(folder, photos / "chelsea.jpg", model=model)
    assert names(by_image)[0] == "chelsea.jpg"
    assert by_image.results[0].score == pytest.approx(1, abs=1e-5)
    assert by_image.query_modality == "image"
    flipped = Image.open(photos / "coffee.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert names(library.search(folder, flipped, model=model))[0] == "coffee.jpg"


def test_scores_are_the_models_own(folder: Path, model: object) -> None:
    outcome = library.search(folder, "a cat", model=model)
    with torch.inference_mode():
        text = model.module.embed("text", ["a cat"])[0]
        for hit in outcome.results:
            image = model.module.embed("image", [Image.open(hit.path).convert("RGB")])[0]
            assert hit.score == pytest.approx(float(text @ image), abs=1e-5)


def test_the_command_and_its_document(main, folder: Path, photos: Path) -> None:
    (folder / "bad.jpg").write_text("no image")
    run = main("search", str(folder), "a cat", "--top", "3", "--json")
    assert run.returncode == 1, run.stderr
    document = json.loads(run.stdout)
    assert (document["model"], document["images"], document["computed"]) == ("conse/lite0-minilm", 5, 5)
    assert [set(result) for result in document["results"]] == [{"path", "score"}] * 3
    assert document["results"][0]["path"] == str(folder / "chelsea.jpg")
    assert document["index"].startswith(str(folder / ".zoo-index" / "conse" / "lite0-minilm"))
    assert document["unreadable"][0]["path"] == str(folder / "bad.jpg")
    assert f"zoo: {folder / 'bad.jpg'}: not an image that can be read" in run.stderr
    table = main("search", str(folder), str(photos / "sheep.jpg"))
    assert table.returncode == 1
    assert table.stdout.splitlines()[0].split() == ["SCORE", "IMAGE"]
    assert table.stdout.splitlines()[1].split() == ["1.000", str(folder / "sheep.jpg")]
    assert "0 computed now" in table.stderr
    odd = folder / "no-suffix"
    shutil.copy(photos / "sheep.jpg", odd)
    assert "sheep.jpg" in main("search", str(folder), "--query-image", str(odd), "--top", "1").stdout


def test_never_stale(folder: Path, photos: Path, model: object) -> None:
    def search(query: object = "a cat") -> object:
        return library.search(folder, query, model=model)

    assert search().computed == 5
    assert search().computed == 0
    (folder / "chelsea.jpg").rename(folder / "sub" / "tom.jpg")
    renamed = search()
    assert (names(renamed)[0], renamed.computed) == ("tom.jpg", 0)
    (folder / "sub" / "tom.jpg").unlink()
    deleted = search()
    assert (deleted.images, "tom.jpg" in names(deleted)) == (4, False)
    shutil.copy(photos / "chelsea.jpg", folder / "back.jpg")
    assert names(search())[0] == "back.jpg"
    shutil.copy(photos / "chelsea.jpg", folder / "copy.jpg")
    twice = search()
    assert (names(twice)[:2], twice.computed) == (["back.jpg", "copy.jpg"], 0)
    shutil.copy(photos / "boats.jpg", folder / "copy.jpg")
    assert names(search("boats"))[0] == "copy.jpg"


def test_an_edit_that_hides_is_seen(folder: Path, photos: Path, model: object) -> None:
    """Other content of the same size, in the same file, with its old times put back."""
    file = folder / "chelsea.jpg"
    data = (photos / "chelsea.jpg").read_bytes()
    other = (photos / "boats.jpg").read_bytes()
    size = max(len(data), len(other))
    file.write_bytes(data.ljust(size, b"\0"))
    os.utime(file, ns=(10**18, 10**18))
    assert names(library.search(folder, "a cat", model=model))[0] == "chelsea.jpg"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.write(other.ljust(size, b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
    assert names(library.search(folder, "boats", model=model))[0] == "chelsea.jpg"


def test_unchanged_files_are_not_even_read(folder: Path, model: object, monkeypatch) -> None:
    from zoo.tasks import photo_index_update

    monkeypatch.setattr(photo_index_update, "RACY_NS", -(10**12))
    library.search(folder, "a cat", model=model)
    monkeypatch.setattr(photo_index_update, "read_file", lambda path: pytest.fail(f"{path} was read"))
    assert library.search(folder, "a horse", model=model).images == 5


def test_unreadable_images_are_remembered_until_they_change(folder: Path, photos: Path, model: object, monkeypatch) -> None:
    from zoo.tasks import photo_index_update

    (folder / "bad.jpg").write_bytes((photos / "boats.jpg").read_bytes()[:3000])
    first = library.search(folder, "boats", model=model)
    ((path, why),) = first.unreadable
    assert path == str(folder / "bad.jpg")
    assert why.startswith("a damaged image")
    with monkeypatch.context() as patch:
        patch.setattr(photo_index_update, "open_media", lambda *_, **__: pytest.fail("it was decoded again"))
        assert library.search(folder, "boats", model=model).unreadable == first.unreadable
    shutil.copy(photos / "boats.jpg", folder / "bad.jpg")
    mended = library.search(folder, "boats", model=model)
    assert (mended.unreadable, names(mended)[0]) == ((), "bad.jpg")


def test_models_have_an_index_of_their_own(folder: Path, model: object) -> None:
    library.search(folder, "a cat", model=model)
    other = library.open_model("conse/lite0-minilm", logit_scale=1.0, feature_weight=0.5)
    outcome = library.search(folder, "a cat", model=other)
    assert outcome.computed == 5
    assert outcome.index.parent == library.search(folder, "a cat", model=model).index.parent
    assert len(list(outcome.index.parent.iterdir())) == 2
    assert library.search(folder, "a cat", model=model).computed == 0


@pytest.mark.parametrize(
    "damage", ["cut json", "flip json", "cut vectors", "flip vectors", "no vectors", "no json", "other format"]
)
def test_a_damaged_index_is_built_anew(folder: Path, model: object, damage: str) -> None:
    first = library.search(folder, "a cat", model=model)
    record = first.index / "index.json"
    (vectors,) = first.index.glob("*.faiss")
    file = record if "json" in damage else vectors
    data = bytearray(file.read_bytes())
    if damage.startswith("no"):
        file.unlink()
    elif damage == "other format":
        record.write_text('{"format": 99}')
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if "flip" in damage else data[: len(data) // 2])
    (first.index / f".index.json.00000000-1-{16 * '0'}.part").write_text("half-written")
    outcome = library.search(folder, "a cat", model=model)
    assert outcome.results == first.results
    assert outcome.computed == 5
    assert len(outcome.notes) == (damage != "no json")
    assert all("built anew" in note for note in outcome.notes)
    assert sorted(path.suffix for path in first.index.iterdir()) == ["", ".faiss", ".json"]
    assert library.search(folder, "a cat", model=model).computed == 0


def test_what_is_not_the_indexs_own_is_left_alone(folder: Path, photos: Path, tmp_path: Path, model: object) -> None:
    """A link in the place of an index is refused, wherever it is; names that no index has are kept."""
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("thesis.tex", "vectors-0123456789abcdef.faiss"):
        (precious / name).write_text("mine")
    home = folder / ".zoo-index" / "conse" / "lite0-minilm" / model.identity[:16]
    for link in (home, home.parent, folder / ".zoo-index"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(precious)
        with pytest.raises(UsageError, match=r"a symbolic link leads to .*precious.*; remove the link"):
            library.search(folder, "a cat", model=model)
        assert sorted(path.name for path in precious.iterdir()) == ["thesis.tex", "vectors-0123456789abcdef.faiss"]
        shutil.rmtree(folder / ".zoo-index") if link != folder / ".zoo-index" else link.unlink()
    outcome = library.search(folder, "a cat", model=model)
    (outcome.index / "notes.txt").write_text("mine")
    (outcome.index / "x.new").mkdir()
    (outcome.index / f".index.json.00000000-1-{16 * '0'}.part").symlink_to(precious / "thesis.tex")
    shutil.copy(photos / "boats.jpg", folder)
    assert library.search(folder, "a cat", model=model).computed == 1
    assert {"notes.txt", "x.new"} <= {path.name for path in outcome.index.iterdir()}
    assert (precious / "thesis.tex").read_text() == "mine"
    (outcome.index / "lock").unlink()
    (outcome.index / "lock").symlink_to(precious / "thesis.tex")
    with pytest.raises(UsageError, match=r"lock: a symbolic link leads to .*thesis.tex"):
        library.search(folder, "a cat", model=model)
    assert (precious / "thesis.tex").read_text() == "mine"


def test_only_the_newest_identities_of_a_model_stay(folder: Path, model: object) -> None:
    from dataclasses import replace

    from filelock import FileLock

    home = library.search(folder, "a cat", model=model).index
    for name in ("other", "notes"):
        (home.parent / name).mkdir()
    identities = [f"{number:064x}"[::-1] for number in range(1, 6)]
    for identity in identities[:2]:
        library.search(folder, "a cat", model=replace(model, identity=identity))
    with FileLock(home / "lock"):
        library.search(folder, "a cat", model=replace(model, identity=identities[2]))
        assert home.exists()  # it is in use
    (home.parent / identities[0][:16] / "mine.txt").write_text("mine")
    for identity in identities[3:]:
        library.search(folder, "a cat", model=replace(model, identity=identity))
    left = {path.name for path in home.parent.iterdir()}
    assert left == {"other", "notes", *(identity[:16] for identity in (identities[0], *identities[2:]))}
    assert [path.name for path in (home.parent / identities[0][:16]).iterdir()] == ["mine.txt"]
    assert library.search(folder, "a cat", model=model).computed == 5


def test_an_interrupted_search_goes_on(folder: Path, model: object, monkeypatch) -> None:
    from zoo.tasks import photo_index_update

    take, calls = photo_index_update._take, []

    def interrupted(*arguments: object) -> int:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return take(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(photo_index_update, "_take", interrupted)
        with pytest.raises(KeyboardInterrupt, match="what was indexed is kept; the next search goes on from there"):
            library.search(folder, "a cat", model=model)
    assert library.search(folder, "a cat", model=model).computed == 2


def test_searches_at_the_same_time(photos: Path, tmp_path: Path, model: object) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    commands = [
        [sys.executable, "-m", "zoo", "search", str(folder), query, "--json", "--top", "1"]
        for query in ("a cat", "espresso")
    ]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for words in commands]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    documents = [json.loads(output) for output, _ in answers]
    assert [Path(document["results"][0]["path"]).name for document in documents] == ["chelsea.jpg", "coffee.jpg"]
    assert sum(document["computed"] for document in documents) == len(list(photos.glob("*.jpg")))
    after = library.search(folder, "a cat", model=model)
    assert (after.computed, after.notes) == (0, ())


def test_a_folder_that_cannot_be_written(folder: Path, tmp_path: Path, model: object, monkeypatch) -> None:
    from zoo.registry.settings import cache_dir
    from zoo.tasks import photo_index

    blobs = cache_dir()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (folder / ".zoo-index").write_text("a file where the index would be")
    outcome = library.search(folder, "a cat", model=model)
    assert outcome.index.is_relative_to(tmp_path / "cache" / "search")
    assert "cannot be written" in outcome.notes[0]
    assert str(tmp_path / "cache") in outcome.notes[0]
    assert library.search(folder, "a cat", model=model).computed == 0
    (folder / ".zoo-index").unlink()
    monkeypatch.setattr(
        photo_index, "_make_home", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(library.ZooError, match="cannot be written .Permission denied.; ZOO_CACHE moves the cache"):
        library.search(folder, "a cat", model=model)
    assert blobs.exists()


def test_a_moved_folder_is_not_computed_again(folder: Path, tmp_path: Path, model: object) -> None:
    library.search(folder, "a cat", model=model)
    shutil.copytree(folder, tmp_path / "moved")
    outcome = library.search(tmp_path / "moved", "a cat", model=model)
    assert (outcome.computed, outcome.results[0].path) == (0, str(tmp_path / "moved" / "chelsea.jpg"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{empty}", "a cat"], 2, "{empty}: the folder holds no image (.jpg, "),
        (["{folder}", "  "], 2, "the query is empty: say what to look for, as in zoo search photos 'a red car'"),
        (["{folder}"], 2, "give a query: either a text or an image file, or --query-image FILE"),
        (["{folder}", "a cat", "--query-image", "x.jpg"], 2, "give a query: either a text or an image file"),
        (["{folder}", "a cat", "--top", "0"], 2, "top is at least 1, got 0"),
        (["{folder}/chelsea.jpg", "a cat"], 2, "chelsea.jpg: a file, expected a folder of images (zoo search DIR QUERY)"),
        (["/no/where", "a cat"], 2, "/no/where: there is no such folder, expected a folder of images"),
        (["{folder}", "absent.jpg"], 2, "there is no file absent.jpg; if it is meant as text, put text: before it"),
        (["{folder}", "a cat", "--model", "timm/efficientnet_lite0"], 2,
         "zoo search needs a dual encoder, timm/efficientnet_lite0 is of kind encoder (zoo list --kind dual_encoder"),
        (["{bad}", "a cat"], 1, "none of its 1 images can be read; {bad}/bad.jpg: not an image that can be read"),
        (["{folder}", "{bad}/bad.jpg"], 1, "bad.jpg: not an image that can be read (it holds text)"),
    ],
)  # fmt: skip
def test_wrong_usage(main, folder: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    places = {"empty": tmp_path / "empty", "folder": folder, "bad": tmp_path / "bad"}
    places["empty"].mkdir()
    places["bad"].mkdir()
    (places["bad"] / "bad.jpg").write_text("no image")
    run = main("search", *(argument.format(**places) for argument in arguments))
    assert (run.returncode, run.stdout) == (code, "")
    assert message.format(**places) in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_without_faiss(folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"with faiss, which is missing: pip install 'modalzoo\[search\]'"):
        library.search(folder, "a cat")


def test_names_that_are_not_utf8(folder: Path, photos: Path, model: object) -> None:
    shutil.copy(photos / "boats.jpg", folder / os.fsdecode(b"caf\xe9.jpg"))
    outcome = library.search(folder, "boats", model=model)
    assert outcome.results[0].path == str(folder / "caf\\udce9.jpg")
    assert library.search(folder, "boats", model=model).computed == 0
    with pytest.raises(MediaError, match="not an image"):
        library.search(folder, query_image=Path(__file__), model=model)
