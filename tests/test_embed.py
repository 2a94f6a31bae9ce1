"""`zoo embed` and `zoo.embed`: three formats, real vectors, and work that is killed, changed and damaged."""

import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_process import kill_when
from PIL import Image

import zoo as library
from zoo.data import journal as journals
from zoo.data.tables import read_table, read_vectors
from zoo.errors import MediaError, UsageError, ZooError

TINY = ("--model", "timm/test_vit", "--weights", "none", "--threads", "2")


@pytest.fixture(scope="module")
def tiny() -> object:
    torch.manual_seed(0)
    return library.open_model("timm/test_vit", weights=None)


def many(photos: Path, folder: Path, count: int) -> Path:
    """Small JPEGs, each another crop of a bundled photo."""
    folder.mkdir()
    images = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    for number in range(count):
        image = images[number % len(images)]
        left, top = number % 50, number * 7 % 50
        image.crop((left, top, left + 100, top + 80)).save(folder / f"{number:04}.jpg", quality=80)
    return folder


def test_vectors_are_the_models_own_in_every_format(photos: Path, tmp_path: Path) -> None:
    built = library.open_model("conse/lite0-minilm")
    files = [photos / "chelsea.jpg", photos / "coffee.jpg"]
    tables = {}
    for suffix in (".npz", ".parquet", ".jsonl"):
        outcome = library.embed([*files, "a cat", "a cup of coffee"], out=tmp_path / f"e{suffix}", model=built)
        assert (outcome.shape, outcome.normalised, outcome.computed) == ((4, 1665), True, 4)
        about, rows = read_table(tmp_path / f"e{suffix}")
        assert about.identity == built.identity
        assert [row.modality for row in rows] == ["image", "image", "text", "text"]
        assert [row.item for row in rows] == [*map(str, files), "a cat", "a cup of coffee"]
        tables[suffix] = np.stack([np.frombuffer(vector, "<f4") for vector in read_vectors(tmp_path / f"e{suffix}")])
    with np.load(tmp_path / "e.npz") as arrays:
        embeddings, sha256 = arrays["embeddings"], arrays["sha256"]
    assert embeddings.dtype == np.float32
    assert (tables[".parquet"] == embeddings).all()
    assert (tables[".jsonl"] == embeddings).all()
    assert sha256[0] == hashlib.sha256(files[0].read_bytes()).hexdigest()
    with torch.inference_mode():
        expected = torch.cat(
            [built.module.embed("image", [Image.open(file).convert("RGB") for file in files]),
             built.module.embed("text", ["a cat", "a cup of coffee"])]
        ).numpy()  # fmt: skip
    assert np.abs(embeddings - expected).max() < 1e-5
    scores = embeddings[:2] @ embeddings[2:].T
    assert scores[0, 0] > scores[0, 1]
    assert scores[1, 1] > scores[1, 0]


def test_parquet_is_read_by_others(photos: Path, tmp_path: Path, tiny: object) -> None:
    from pyarrow import parquet

    library.embed(photos / "chelsea.jpg", out=tmp_path / "e.parquet", model=tiny)
    table = parquet.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["item", "modality", "sha256", "embedding"]
    assert str(table.schema.field("embedding").type).startswith("list<element: float") or "float" in str(table.schema)


def test_a_plain_encoder_gives_pooled_vectors(photos: Path, tmp_path: Path, tiny: object) -> None:
    outcome = library.embed(photos, out=tmp_path / "e.npz", model=tiny)
    assert not outcome.normalised
    with np.load(tmp_path / "e.npz") as arrays:
        lengths = np.linalg.norm(arrays["embeddings"], axis=1)
    assert abs(lengths - 1).max() > 0.01
    with pytest.raises(UsageError, match=r"timm/test_vit takes image and was given text \(zoo list --modality text"):
        library.embed("a cat", out=tmp_path / "t.npz", model=tiny)


def test_the_command_and_its_document(main, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "texts.txt").write_text("a horse\nchelsea.jpg\n")
    (tmp_path / "list.txt").write_text(f"{photos / 'chelsea.jpg'}\n{tmp_path / 'absent'}\n")
    arguments = ("embed", "is it a dog?", str(tmp_path / "bad.jpg"), "--list", str(tmp_path / "list.txt"), "--texts",
                 str(tmp_path / "texts.txt"), "--out", str(tmp_path / "e.jsonl"), "--json")  # fmt: skip
    first, second = main(*arguments), main(*arguments)
    for run, computed in ((first, 4), (second, 0)):
        assert run.returncode == 1, run.stderr
        document = json.loads(run.stdout)
        assert (document["model"], document["plugin"]["dist"]) == ("conse/lite0-minilm", "modalzoo-conse")
        assert (document["shape"], document["file"]) == ([4, 1665], str(tmp_path / "e.jsonl"))
        assert (document["computed"], document["up_to_date"]) == (computed, computed == 0)
        modalities = [result["modality"] for result in document["results"]]
        assert modalities == ["text", "image", "image", "image", "text", "text"]
        assert [("error" in result) for result in document["results"]] == [False, True, False, True, False, False]
        assert "bad.jpg: not an image that can be read (it holds text)" in run.stderr
        assert "absent: there is no such file" in run.stderr
        assert "zoo: 3 texts, 3 images\n" in run.stderr
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == ["is it a dog?", str(photos / "chelsea.jpg"), "a horse", "chelsea.jpg"]
    assert not list(tmp_path.glob("*.part"))


def test_one_is_not_several(main, photos: Path, tmp_path: Path) -> None:
    run = main("embed", str(photos / "chelsea.jpg"), "--out", str(tmp_path / "e.npz"))
    assert "  1 unit vector of width 1665  1 computed now" in run.stdout
    assert run.stderr.startswith("zoo: 0 texts, 1 image\n")


@pytest.mark.skipif(
    os.environ.get("ZOO_SLOW_TESTS") != "1", reason="at each push benchmarks/faults.py kills it: ZOO_SLOW_TESTS=1"
)
def test_killed_work_ends_with_the_same_bytes(main, photos: Path, tmp_path: Path) -> None:
    folder = many(photos, tmp_path / "images", 300)
    (folder / "0007.jpg").write_text("not an image")
    out = tmp_path / "e.npz"
    command = ["embed", str(folder), *TINY, "--out", str(out), "--json"]
    whole = main(*command[:-2], str(tmp_path / "whole.npz"), "--json")
    expected = json.loads(whole.stdout)
    assert expected["computed"] == 299
    row_bytes = expected["shape"][1] * 4
    part = tmp_path / "e.npz.part"
    for share in (0.2, 0.7):
        kill_when(part, int(share * 299 * row_bytes), command)
        assert not out.exists()
    last = main(*command)
    assert last.returncode == 1
    document = json.loads(last.stdout)
    assert 0 < document["computed"] < 200
    assert document["results"] == expected["results"]
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("e.*")) == ["e.npz"]


def test_a_journal_cut_anywhere_is_gone_on_with(photos: Path, tmp_path: Path, tiny: object, monkeypatch) -> None:
    folder = many(photos, tmp_path / "images", 22)
    shutil.copy(folder / "0001.jpg", folder / "0020.jpg")  # the same content twice, in two batches
    monkeypatch.setattr(journals.Journal, "delete", lambda self: self.close())
    out, part = tmp_path / "e.npz", tmp_path / "e.npz.part"
    library.embed(folder, out=out, model=tiny)
    expected, journal = out.read_bytes(), part.read_bytes()
    computed = []
    for cut in (0, 3, 6, 10, 150, len(journal) // 3, len(journal) // 2, len(journal) - 1, len(journal)):
        out.unlink(missing_ok=True)
        part.write_bytes(journal[:cut])
        computed.append(library.embed(folder, out=out, model=tiny).computed)
        assert out.read_bytes() == expected
    assert computed[0] == 22
    assert computed[-1] == 0
    assert computed == sorted(computed, reverse=True)
    damaged = bytearray(journal)
    damaged[len(journal) // 2] ^= 1
    part.write_bytes(damaged)
    out.unlink()
    assert 0 < library.embed(folder, out=out, model=tiny).computed < 22
    assert out.read_bytes() == expected


def test_what_changed_during_a_pause_is_computed_again(photos: Path, tmp_path: Path, tiny: object, monkeypatch) -> None:
    folder = many(photos, tmp_path / "images", 22)
    out, part = tmp_path / "e.npz", tmp_path / "e.npz.part"
    with monkeypatch.context() as patch:
        patch.setattr(journals.Journal, "delete", lambda self: self.close())
        library.embed(folder, out=out, model=tiny)
    out.unlink()
    shutil.copy(photos / "chelsea.jpg", folder / "0002.jpg")
    (folder / "0021.jpg").unlink()
    assert part.exists()
    assert library.embed(folder, out=out, model=tiny).computed == 1
    shutil.copy(photos / "chelsea.jpg", folder / "0021.jpg")
    fresh = library.embed(folder, out=tmp_path / "fresh.npz", model=tiny)
    assert fresh.computed == 22
    resumed = library.embed(folder, out=out, model=tiny)
    assert resumed.results == fresh.results
    with np.load(out) as ours, np.load(tmp_path / "fresh.npz") as theirs:
        assert (ours["sha256"] == theirs["sha256"]).all()
        assert np.abs(ours["embeddings"] - theirs["embeddings"]).max() < 1e-5


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl"])
def test_what_changed_is_computed_again(photos: Path, tmp_path: Path, tiny: object, suffix: str) -> None:
    folder = many(photos, tmp_path / "images", 10)
    out = tmp_path / f"e{suffix}"
    first = library.embed(folder, out=out, model=tiny)
    before = {row.item: vector for row, vector in zip(read_table(out)[1], read_vectors(out), strict=True)}
    stamp = out.stat().st_mtime_ns
    again = library.embed(folder, out=out, model=tiny)
    assert (again.computed, again.up_to_date, again.results, again.shape) == (0, True, first.results, first.shape)
    assert out.stat().st_mtime_ns == stamp
    shutil.copy(photos / "chelsea.jpg", folder / "0003.jpg")
    (folder / "0008.jpg").rename(folder / "0000a.jpg")
    shutil.copy(photos / "coffee.jpg", folder / "0011.jpg")
    changed = library.embed(folder, out=out, model=tiny)
    assert (changed.computed, changed.up_to_date) == (2, False)
    rows = read_table(out)[1]
    assert [Path(row.item).name for row in rows] == sorted(path.name for path in folder.iterdir())
    after = {row.item: vector for row, vector in zip(rows, read_vectors(out), strict=True)}
    assert after[str(folder / "0003.jpg")] != before[str(folder / "0003.jpg")]
    assert after[str(folder / "0000a.jpg")] == before[str(folder / "0008.jpg")]
    assert after[str(folder / "0001.jpg")] == before[str(folder / "0001.jpg")]


def test_rows_of_a_finished_file_are_not_lost(photos: Path, tmp_path: Path, tiny: object) -> None:
    first, other = many(photos, tmp_path / "first", 10), many(photos, tmp_path / "other", 4)
    shutil.copy(photos / "coffee.jpg", other / "coffee.jpg")
    out = tmp_path / "e.npz"
    library.embed([first, photos / "chelsea.jpg"], out=out, model=tiny)
    before = out.read_bytes()
    # Of `other`, four hold what four files of `first` hold, so those rows would live on under new names.
    with pytest.raises(
        UsageError, match=r"e.npz: 7 of its 11 rows would be lost, whose inputs are not given or cannot be read now"
    ):
        library.embed(other, out=out, model=tiny)
    with pytest.raises(
        UsageError, match=r"1 of its 11 rows .*\(.*chelsea.jpg\): give them too, or another --out, or --overwrite"
    ):
        library.embed(first, out=out, model=tiny)
    (first / "0005.jpg").write_text("damaged since")
    with pytest.raises(UsageError, match=r"1 of its 11 rows .*0005.jpg\): .*, or --overwrite"):
        library.embed([first, photos / "chelsea.jpg"], out=out, model=tiny)
    assert out.read_bytes() == before
    shutil.copy(first / "0006.jpg", first / "0005.jpg")
    assert library.embed([first, other, photos / "chelsea.jpg"], out=out, model=tiny).shape[0] == 16
    assert library.embed(other, out=out, model=tiny, overwrite=True).shape[0] == 5


def test_models_are_never_mixed(photos: Path, tmp_path: Path, tiny: object) -> None:
    out = tmp_path / "e.npz"
    library.embed(photos / "chelsea.jpg", out=out, model=tiny)
    before = out.read_bytes()
    torch.manual_seed(1)
    other = library.open_model("timm/test_vit", weights=None)
    with pytest.raises(
        UsageError, match="holds embeddings of timm/test_vit with other weights, code or settings, and is not"
    ):
        library.embed(photos / "chelsea.jpg", out=out, model=other)
    assert out.read_bytes() == before
    journal = journals.Journal(tmp_path / "n.npz.part", {"model": "a/b", "identity": "0"})
    journal.close()
    with pytest.raises(UsageError, match=r"n.npz.part: it holds embeddings of a/b, and is not mixed with timm/test_vit"):
        library.embed(photos / "chelsea.jpg", out=tmp_path / "n.npz", model=tiny)
    assert library.embed(photos / "chelsea.jpg", out=out, model=other, overwrite=True).computed == 1
    assert out.read_bytes() != before


def test_files_of_others_are_left_alone(photos: Path, tmp_path: Path, tiny: object) -> None:
    for name in ("e.npz", "e.parquet", "e.jsonl"):
        (tmp_path / name).write_text('{"a diary": 1}\n')
        with pytest.raises(UsageError, match="not a whole file of embeddings .*; it is left alone: give another --out"):
            library.embed(photos / "chelsea.jpg", out=tmp_path / name, model=tiny)
        assert (tmp_path / name).read_text() == '{"a diary": 1}\n'
    (tmp_path / "f.npz.part").write_text("half a download")
    with pytest.raises(UsageError, match=r"f.npz.part: not a journal of the zoo; it is left alone"):
        library.embed(photos / "chelsea.jpg", out=tmp_path / "f.npz", model=tiny)
    assert (tmp_path / "f.npz.part").read_text() == "half a download"


def test_one_writer_at_a_time(photos: Path, tmp_path: Path, tiny: object) -> None:
    from zoo.data.journal import alone

    with alone(tmp_path / "e.npz"), pytest.raises(ZooError, match="e.npz: another process is writing it; wait for it"):
        library.embed(photos / "chelsea.jpg", out=tmp_path / "e.npz", model=tiny)
    assert library.embed(photos / "chelsea.jpg", out=tmp_path / "e.npz", model=tiny).computed == 1


def test_an_interruption_says_how_to_go_on(photos: Path, tmp_path: Path, tiny: object, monkeypatch) -> None:
    from zoo.tasks import embedding

    folder = many(photos, tmp_path / "images", 20)
    keep, calls = embedding.keep, []

    def interrupted(*arguments: object) -> None:
        keep(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "keep", interrupted)
    with pytest.raises(
        KeyboardInterrupt, match=r"what was done is kept in .*e.npz.part; the same command goes on from there"
    ):
        library.embed(folder, out=tmp_path / "e.npz", model=tiny)
    assert library.embed(folder, out=tmp_path / "e.npz", model=tiny).computed == 8


def test_pixels_names_and_repeats(photos: Path, tmp_path: Path, tiny: object) -> None:
    image = Image.open(photos / "chelsea.jpg").convert("RGB")
    odd = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(photos / "chelsea.jpg", odd)
    outcome = library.embed([image, np.asarray(image), odd, odd], out=tmp_path / "e.parquet", model=tiny)
    assert outcome.shape[0] == 4
    assert outcome.results[0].sha256 == outcome.results[1].sha256 != outcome.results[2].sha256
    assert outcome.results[2].input.endswith("caf\\udce9.jpg")


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl"])
def test_names_of_any_length_and_with_any_character(tmp_path: Path, suffix: str) -> None:
    model = library.open_model("text/minilm-tiny", weights=None)
    texts = ["a\0", "x" * 20_000, "ü\u2028\U0001f600", *(f"text {number}" for number in range(1000))]
    out = tmp_path / f"e{suffix}"
    library.embed(texts=texts, out=out, model=model)
    assert [row.item for row in read_table(out)[1]] == texts
    assert library.embed(texts=texts, out=out, model=model).up_to_date
    if suffix == ".npz":
        arrays = np.load(out)
        text, at = arrays["items_utf8"].tobytes(), arrays["items_offsets"]
        assert [text[start:stop].decode() for start, stop in itertools.pairwise(at)] == texts
        assert sum(arrays[name].nbytes for name in ("items_utf8", "items_offsets")) < 50_000
        arrays.close()


def edit_npz(path: Path, **changes: object) -> None:
    with np.load(path) as arrays:
        content = {**arrays, **changes}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("suffix", "damage", "reason"),
    [
        (".npz", "flip", "Bad CRC-32 for file 'embeddings.npy'"),
        (".npz", "cut", "File is not a zip file"),
        (".npz", "short", r"2 vectors for 3 rows"),
        (".npz", "nan", "the vector of row 2 holds NaN or infinity"),
        (".npz", "double", "embeddings of float64, expected float32 row by row"),
        (".npz", "old", "an earlier release wrote it, in another form"),
        (".jsonl", "short", "the vector of row 2 has 3 numbers, expected 32"),
        (".jsonl", "nan", "the vector of row 2 holds NaN or infinity"),
        (".jsonl", "word", "could not convert string to float: 'x'"),
        (".jsonl", "none", "'embedding'"),
        (".jsonl", "number", "a name, modality or hash is no text"),
        (".jsonl", "list", "list indices must be integers or slices, not str"),
        (".jsonl", "cut", "Unterminated string|Expecting|Invalid"),
        (".parquet", "flip", "."),
    ],
)
def test_a_damaged_output_is_refused(tmp_path: Path, suffix: str, damage: str, reason: str) -> None:
    model = library.open_model("text/minilm-tiny", weights=None)
    out, texts = tmp_path / f"e{suffix}", ["a b", "c d", "e f"]
    library.embed(texts=texts, out=out, model=model)
    data = bytearray(out.read_bytes())
    if damage == "flip":
        place = data.index(b"PAR1" if suffix == ".parquet" else b"\x93NUMPY") + (2000 if suffix == ".parquet" else 200)
        data[place : place + 60] = bytes(byte ^ 0xFF for byte in data[place : place + 60])
    if damage in ("flip", "cut"):
        out.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    elif suffix == ".npz":
        with np.load(out) as arrays:
            rows = arrays["embeddings"]
        holed = rows.copy()
        holed[1, 3] = np.nan
        edit_npz(out, **{
            "short": {"embeddings": rows[:2]}, "nan": {"embeddings": holed}, "double": {"embeddings": rows.astype(float)},
            "old": {"items": np.array(texts), "items_utf8": None, "items_offsets": None},
        }[damage])  # fmt: skip
    else:
        lines = out.read_text().splitlines()
        row = json.loads(lines[1])
        if damage == "none":
            del row["embedding"]
        elif damage == "number":
            row["item"] = 7
        else:
            row["embedding"] = {"short": row["embedding"][:3], "nan": [float("nan")] * 32}.get(damage, "x")
        lines[1] = "[1]" if damage == "list" else json.dumps(row)
        out.write_text("\n".join(lines) + "\n")
    before = out.read_bytes()
    for inputs in (texts, [*texts, "g h"]):
        with pytest.raises(UsageError, match=rf"e{suffix}: not a whole file of embeddings \(.*({reason})") as error:
            library.embed(texts=inputs, out=out, model=model)
        assert str(error.value).endswith("; it is left alone: give another --out, or --overwrite")
    assert out.read_bytes() == before
    assert library.embed(texts=texts, out=out, model=model, overwrite=True).shape == (3, 32)


def test_what_a_plugin_refuses_costs_the_others_nothing(photos: Path, tmp_path: Path, monkeypatch) -> None:
    model = library.open_model("clip/tiny", weights=None)
    preprocess = type(model.module).preprocess

    def picky(self: object, modality: str, items: list) -> torch.Tensor:
        if "bad words" in items or any(getattr(item, "size", None) == (9, 9) for item in items):
            raise MediaError("I do not\nlike it")
        return preprocess(self, modality, items)

    monkeypatch.setattr(type(model.module), "preprocess", picky)
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    shutil.copy(photos / "chelsea.jpg", tmp_path)
    inputs = [tmp_path / "chelsea.jpg", tmp_path / "small.png", "a cat", "bad words"]
    outcome = library.embed(inputs, out=tmp_path / "e.npz", model=model)
    assert outcome.shape == (2, 32)
    errors = [result.error for result in outcome.results]
    assert errors[::2] == [None, None]
    for error, name in ((errors[1], f"{tmp_path}/small.png"), (errors[3], "bad words")):
        assert error.startswith(f"{name}: plugin 'clip' (modalzoo-clip ")
        assert error.endswith("): clip/tiny refuses it: I do not like it")
    assert library.embed(inputs, out=tmp_path / "e.npz", model=model).up_to_date
    found = library.search(tmp_path, "a cat", model=model)
    assert ([Path(hit.path).name for hit in found.results], found.unreadable[0][0]) == (
        ["chelsea.jpg"],
        str(tmp_path / "small.png"),
    )
    (tmp_path / "small.txt").write_text("a cat")
    (tmp_path / "chelsea.txt").write_text("a cat")
    pairs = library.filter_pairs(tmp_path, dry_run=True, threshold=-1, model=model)
    assert (pairs.counts["kept"], pairs.counts["dropped"]) == (1, {"no-score": 1})
    with pytest.raises(MediaError, match="I do not"):
        library.search(tmp_path, "bad words", model=model)


def test_a_file_of_texts_has_one_in_each_line(main, tmp_path: Path) -> None:
    (tmp_path / "texts").write_bytes("\ufeffone\r\n two \u2028 still\ftwo\x85\nthree\rthree\n".encode())
    arguments = ("--model", "text/minilm-tiny", "--weights", "none", "--out", str(tmp_path / "e.jsonl"))
    run = main("embed", "--texts", str(tmp_path / "texts"), *arguments, "--json")
    assert run.returncode == 0, run.stderr
    assert [result["input"] for result in json.loads(run.stdout)["results"]] == [
        "one",
        " two \u2028 still\ftwo\x85",
        "three\rthree",
    ]
    (tmp_path / "texts").write_text("one\n\ntwo\n")
    run = main("embed", "--texts", str(tmp_path / "texts"), *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert f"--texts {tmp_path}/texts: line 2 is empty; each line is a text and a row" in run.stderr


def test_nothing_to_read_writes_nothing(main, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("a shopping list")
    run = main("embed", str(tmp_path / "x.jpg"), *TINY, "--out", str(tmp_path / "e.npz"))
    assert (run.returncode, run.stdout) == (1, "")
    assert "x.jpg: not an image that can be read" in run.stderr
    assert "none of 1 items can be read: nothing was written" in run.stderr
    assert not list(tmp_path.glob("e.npz*"))


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (["a"], {"out": "e.csv"}, r"--out e.csv: the suffix says the format, expected one of .npz, .parquet, .jsonl"),
        (["a"], {"out": "/no/where/e.npz"}, r"--out /no/where/e.npz: there is no folder /no/where \(mkdir -p /no/where\)"),
        ([], {"out": "e.npz"}, "nothing to embed: name image or audio files, folders, patterns or texts"),
        ([" "], {"out": "e.npz"}, "an empty text among the inputs"),
        (["/no/such/*.jpg"], {"out": "e.npz"}, r"/no/such/\*.jpg: no file matches the pattern"),
        (["a"], {"out": "e.npz", "batch_size": 0}, "batch_size is at least 1, got 0"),
        (["a"], {"out": "e.npz", "texts": "b"}, "texts are a list, got the single string 'b'"),
        (
            [3],
            {"out": "e.npz"},
            "an image is a path, a PIL image or an array, and a sound a path or a zoo.Sound, got int",
        ),
    ],
)
def test_wrong_usage(tmp_path: Path, monkeypatch, items: list, options: dict, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        library.embed(items, **options)
    assert not list(tmp_path.glob("e.*"))


def test_without_pyarrow(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"writing .parquet needs pyarrow: pip install 'modalzoo\[parquet\]'"):
        library.embed("a cat", out=tmp_path / "e.parquet")
