"""An argument that may be a text or the name of a file: one rule for every command, at the command line and in Python."""

import json
import sys
import time
from pathlib import Path

import pytest

import zoo as library
from zoo.cli.generate import read_parts
from zoo.data.arguments import file_texts, holds_text, known_suffixes, read_argument
from zoo.data.inputs import media_items, mixed_sources, search_query
from zoo.errors import MediaError, UsageError
from zoo.registry.modality import IMAGE, TEXT

TINY = ("--model", "smollm/tiny", "--weights", "none")
NOON = "The meeting is at noon."


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> Path:
    """The current folder, with one file of each kind."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text(f"\ufeff{NOON}\n", encoding="utf-8")
    Path("notes").write_text(NOON, encoding="utf-8")
    Path("rows.csv").write_text('title,text\nfilm,"good, really"\nbook,bad\n', encoding="utf-8")
    Path("rows.jsonl").write_text('{"text": "good, really"}\n{"text": "bad"}\n', encoding="utf-8")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("photo.jpg").write_bytes((photos / "chelsea.jpg").read_bytes())
    Path("photo").write_bytes((photos / "chelsea.jpg").read_bytes())
    Path("folder").mkdir()
    return tmp_path


def test_the_rule(here: Path) -> None:
    for given, meant in (
        ("notes.txt", Path("notes.txt")),
        ("folder", Path("folder")),
        ("photo.jpg", Path("photo.jpg")),
        ("text:notes.txt", "notes.txt"),
        ("text:", ""),
        ("text:text:x", "text:x"),
        ("what is it?", "what is it?"),
        ("a\nb.txt", "a\nb.txt"),
        ("e.g.", "e.g."),
        ("x" * 5000, "x" * 5000),
        ("a\0b.txt", "a\0b.txt"),
        ("and/ or/", "and/ or/"),
    ):
        assert read_argument(given) == meant
    Path("dangling").symlink_to("nowhere")
    assert read_argument("dangling") == Path("dangling")
    for suffix in known_suffixes():
        with pytest.raises(UsageError, match=r"there is no file absent.*; if it is meant as text, put text: before it"):
            read_argument(f"absent{suffix}")
    with pytest.raises(UsageError, match="there is no folder absent/"):
        read_argument("absent/")


def test_what_a_file_holds(here: Path) -> None:
    assert file_texts(Path("notes.txt")) == file_texts(Path("notes")) == [NOON]
    assert file_texts(Path("rows.csv"), "text") == file_texts(Path("rows.jsonl"), "text") == ["good, really", "bad"]
    assert [name for name in sorted(path.name for path in here.iterdir()) if holds_text(here / name)] == [
        "latin.txt", "notes", "notes.txt", "rows.csv", "rows.jsonl",
    ]  # fmt: skip
    for name, column, error, message in (
        ("rows.csv", None, UsageError, r"say which column holds the texts \(--column NAME\); its columns are title, text"),
        ("rows.csv", "author", UsageError, "no column 'author'; its columns are title, text"),
        ("notes.txt", "text", UsageError, "notes.txt: --column is about tables"),
        ("folder", None, UsageError, "folder: a folder, where a text or a text file is expected"),
        ("photo.jpg", None, UsageError, "photo.jpg: an image, a sound or a film by its name"),
        ("photo", None, MediaError, "photo: not UTF-8 text .the byte 0xff at byte 0"),
        ("latin.txt", None, MediaError, "latin.txt: not UTF-8 text .the byte 0xe9 at byte 3"),
    ):
        with pytest.raises(error, match=message):
            file_texts(Path(name), column)


def test_classify_reads_the_file(main, here: Path) -> None:
    given = ("notes.txt", "text:notes.txt", "lunch", "rows.csv", "--column", "text")
    run = main("classify", "--text", *given, "--labels", "meeting,food", *TINY, "--json")
    rows = json.loads(run.stdout)["results"]
    assert [(row["input"], row.get("file")) for row in rows] == [
        (NOON, "notes.txt"), ("notes.txt", None), ("lunch", None), ("good, really", "rows.csv"), ("bad", "rows.csv"),
    ]  # fmt: skip
    read = library.classify_texts([Path("notes.txt"), "lunch"], ["meeting", "food"], model=library.ModelSpec("smollm/tiny", weights=None))  # fmt: skip
    assert [answer.input for answer in read.results] == [NOON, "lunch"]


def test_labels_of_a_table(main, here: Path) -> None:
    words = ("classify", "--text", "text:x", *TINY, "--json", "--labels-file", "rows.csv")
    assert set(json.loads(main(*words, "--column", "title").stdout)["results"][0]["scores"]) == {"film", "book"}
    for extra, message in (
        ((), "--labels-file rows.csv: say which column holds the texts (--column NAME); its columns are title, text"),
        (("--column", "x"), "--labels-file rows.csv: no column 'x'"),
    ):
        run = main(*words, *extra)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("classify", "--text", "absent.txt", "--labels", "a,b"), "there is no file absent.txt; if it is meant as text"),
        (("classify", "--text", "rows.csv", "--labels", "a,b"), "rows.csv: say which column holds the texts"),
        (("classify", "--text", "folder", "--labels", "a,b"), "folder: a folder, where a text or a text file is expected"),
        (("classify", "--text", "photo.jpg", "--labels", "a,b"), "photo.jpg: an image, a sound or a film by its name"),
        (("classify", "--text", "x", "--labels", "notes.txt"), "--labels notes.txt: a file, where labels are expected"),
        (("classify", "--text", "x", "--labels", "a,b", "--column", "c"), "--column is about tables (.csv, .tsv, .jsonl)"),
        (("classify", "photo.jpg", "--labels", "a,b", "--column", "c"), "--column is about tables of texts: add --text"),
        (("classify", "photo.jpg", "--shots", "rows.csv"), "--shots rows.csv: a file; expected one folder of examples for each class (examples of texts: add --text)"),
        (("classify", "--text", "x", "--shots", "notes.txt"), "examples of texts are a .jsonl or .csv file"),
        (("generate", "absent.md"), "there is no file absent.md"),
        (("generate", "absent.npy", "What comes next?"), "there is no file absent.npy"),
        (("generate", "rows.csv", "What comes next?"), "rows.csv: say which column holds the texts"),
        (("generate", "folder"), "folder holds no images, so it is no film"),
        (("generate", "x", "--system", "absent.txt", "--chat"), "there is no file absent.txt"),
        (("generate", "x", "--column", "c"), "--column is about tables"),
        (("embed", "absent.txt", "--out", "e.npz"), "there is no file absent.txt"),
        (("embed", "rows.csv", "--out", "e.npz"), "rows.csv: say which column holds the texts"),
        (("embed", "--texts", "rows.csv", "--out", "e.npz"), "--texts rows.csv: say which column holds the texts"),
        (("embed", "x", "--out", "e.npz", "--column", "c"), "--column is about tables"),
        (("search", "folder", "absent.txt"), "there is no file absent.txt"),
        (("search", "folder", "rows.csv"), "rows.csv: a table, where one text or an image is expected"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_before_any_work(main, here: Path, words: tuple[str, ...], message: str) -> None:
    run = main(*words)
    assert (run.returncode, run.stdout, message in run.stderr) == (2, "", True), run.stderr


def test_generate_reads_the_files(main, here: Path) -> None:
    assert read_parts(["notes.txt", "Why?"]) == f"{NOON}\nWhy?"
    assert read_parts(["rows.csv", "text:notes.txt"], "text") == "good, really\nbad\nnotes.txt"
    assert read_parts(["photo.jpg", "notes.txt"]) == [Path("photo.jpg"), NOON]
    run = main("generate", "notes.txt", "Why?", *TINY, "--max-tokens", "1", "--json")
    assert json.loads(run.stdout)["results"][0]["input"] == f"{NOON}\nWhy?"
    spec = library.ModelSpec("smollm/tiny", weights=None)
    read = library.generate([[Path("notes.txt"), "Why?"]], model=spec, max_tokens=1)
    assert read.results[0].prompt == f"{NOON}\nWhy?"
    with pytest.raises(UsageError, match="prompt 0 has the text 'notes.txt', which names a file"):
        library.generate([["notes.txt", "Why?"]], model=spec, max_tokens=1)
    with pytest.raises(MediaError, match="prompt 0: the text is longer than the limit of 1,000,000 bytes"):
        library.generate("x" * 1_000_001, model=spec, max_tokens=1)


def test_embed_reads_the_files(main, here: Path) -> None:
    words = ("embed", "notes.txt", "text:notes.txt", "rows.csv", "latin.txt", "photo", "--column", "text")
    run = main(*words, "--out", "e.jsonl", "--json")
    rows = json.loads(run.stdout)["results"]
    assert run.returncode == 1
    assert [(row["input"], row["modality"], "error" in row) for row in rows] == [
        ("notes.txt", TEXT, False),
        ("notes.txt", TEXT, False),
        ("good, really", TEXT, False),
        ("bad", TEXT, False),
        ("latin.txt", TEXT, True),
        ("photo", IMAGE, False),
    ]
    assert rows[0]["sha256"] != rows[1]["sha256"]
    assert "zoo: latin.txt: not UTF-8 text (the byte 0xe9 at byte 3)" in run.stderr
    same = library.embed([], texts=[NOON], out="same.jsonl")
    assert same.results[0].sha256 == rows[0]["sha256"]
    found = [source.modality for source in mixed_sources(["*.txt", Path("notes"), "is it a dog?"], [])]
    assert found == [TEXT, TEXT, TEXT, TEXT]


def test_a_query_is_read_by_the_same_rule(here: Path) -> None:
    assert search_query("notes.txt", None)[:2] == (TEXT, NOON)
    assert search_query("text:folder", None)[:2] == (TEXT, "folder")
    assert search_query("photo", None)[0] == IMAGE
    with pytest.raises(UsageError, match="folder: a folder, where a text or an image is expected"):
        search_query("folder", None)
    with pytest.raises(MediaError, match="the query: the text is longer than the limit"):
        search_query("x" * 1_000_001, None)


# What reads a path must end by itself, and say what was given: attacks on names (reliability.md, 13 and 14).
HOSTILE = (
    "../" * 40 + "etc/passwd",
    "a/../../b",
    "C:\\x",
    "a\0b",
    "x" * 300,
    "x/" * 3000 + "x",
    "%2e%2e/x",
    "a\u2215b",
    "CON",
    "..",
    "~nobody-has-this-name",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_no_file_has_are_said(here: Path, main, name: str) -> None:
    (item,) = media_items([name]) if name != ".." else media_items(["photo.jpg"])
    assert item.label in (name, "photo.jpg")
    run = main(
        "classify", f"{name}.png", "photo.jpg", "--labels", "a,b", "--model", "clip/tiny", "--weights", "none", "--json"
    )
    rows = json.loads(run.stdout)["results"]
    assert (run.returncode, len(rows), "error" in rows[0], "label" in rows[1]) == (1, 2, True, True), run.stderr
    assert len(run.stderr.strip("\n").split("\n")) <= 1


# Attack 11: what is tried on each text takes time in proportion to its length. Counted in steps of the interpreter, not in seconds.
@pytest.mark.parametrize("unit", ["a", ">>", "?", "*", "[", "{", "../", "e\u0301", " ", ".txt"])
def test_reading_an_argument_is_linear(here: Path, unit: str) -> None:
    def steps(given: str) -> int:
        count = 0

        def step(*_: object) -> object:
            nonlocal count
            count += 1
            return step

        sys.settrace(step)
        try:
            mixed_sources([f"{given} ."], [])
        except UsageError:
            pass
        finally:
            sys.settrace(None)
        return count

    began = time.process_time()
    short, long = steps(unit * 400), steps(unit * 4_000)
    assert long <= 15 * short
    assert (
        time.process_time() - began < 20
    )  # seconds of work: what grows by squares or worse inside a library takes minutes
