"""Texts in files: where a line ends, what is no UTF-8, how long a text may be. The inputs are made here."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest

import zoo as library
from zoo.data.lines import MAX_LINE_BYTES, MAX_TEXT_BYTES, byte_lines, read_column, read_text, table_rows, text_lines
from zoo.data.pairs import read_text as read_caption
from zoo.errors import MediaError, UsageError
from zoo.tasks.adapter_training import read_pairs
from zoo.tasks.text_classification import read_shots

# What str.splitlines takes for the end of a line, and an editor does not.
NO_ENDS = ("\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
LLAMA = ("--model", "lm/llama-tiny", "--weights", "none")


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("character", NO_ENDS)
def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path, character: str) -> None:
    text = f"one{character}text"
    assert [line for _, line in text_lines(written(tmp_path / "a.txt", f"{text}\r\nsecond\n"))] == [text, "second"]
    row = json.dumps({"prompt": text, "completion": "b"}, ensure_ascii=False)
    assert read_pairs(written(tmp_path / "a.jsonl", f"{row}\n{row}\n")) == [(text, "b")] * 2
    assert read_shots(written(tmp_path / "a.csv", f"text,label\n{text},x\n")) == [(text, "x")]


def test_lines_of_labels_and_stdin_are_cut_in_one_way(zoo, tmp_path: Path) -> None:
    labels = written(tmp_path / "labels.txt", "\ufeffspam\u2028mail\nham\n")
    run = zoo("classify", "--text", "-", "--labels-file", str(labels), *LLAMA, "--json", stdin="a\u2028b\r\nc\n".encode())
    document = json.loads(run.stdout)
    assert [row["input"] for row in document["results"]] == ["a\u2028b", "c"]
    assert set(document["results"][0]["scores"]) == {"spam\u2028mail", "ham"}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"caf\xe9\n", "0xe9 at byte 3"),
        (b"\xef\xbb\xbfcaf\xe9\n", "0xe9 at byte 6"),
        (b"first\nsecond \xff", "0xff at byte 13"),
        ("naïve".encode("utf-16"), "0xff at byte 0; it begins as UTF-16 does"),
        (b"\xed\xa0\x80", "0xed at byte 0"),
        (b"cut \xe2\x82", "0xe2 at byte 4"),
    ],
)
def test_what_is_no_utf_8_is_refused_with_its_place(tmp_path: Path, data: bytes, place: str) -> None:
    path = written(tmp_path / "a.txt", data)
    for read in (read_text, lambda file: list(text_lines(file))):
        with pytest.raises(MediaError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: not UTF-8 text (the byte {place})")
    assert "not UTF-8 text" in read_caption(data)[1][1]


def test_no_reader_replaces_characters(main, tmp_path: Path) -> None:
    row = b'{"prompt": "caf\xe9", "completion": "b", "text": "caf\xe9", "label": "a"}\n'
    jsonl, labels = written(tmp_path / "a.jsonl", row), written(tmp_path / "labels.txt", b"caf\xe9\ndog\n")
    for words in (
        ("adapt", "train", str(jsonl), *LLAMA, "--out", str(tmp_path / "a.safetensors"), "--steps", "1"),
        ("classify", "--text", "x", "--shots", str(jsonl), *LLAMA),
        ("classify", "--text", "x", "--labels-file", str(labels), *LLAMA),
        ("embed", "--texts", str(labels), "--out", str(tmp_path / "e.npz")),
        ("embed", "--list", str(labels), "--out", str(tmp_path / "e.npz")),
    ):
        run = main(*words)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (1, "", 1), run.stderr
        assert "not UTF-8 text (the byte 0xe9 at byte " in run.stderr
    assert read_caption(b"\xef\xbb\xbfa cat") == ("a cat", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'text,label\n"free, money",spam\nsee, you,ham\n',
            "t.csv:3: 3 cells for 2 columns .text, label.: a text with a comma",
        ),
        ("text,label\nfree\n", "t.csv:2: 1 cells for 2 columns"),
        ("text,text\na,b\n", "t.csv:1: two columns have one name"),
        ('text,label\n"open,x\n', "t.csv:2: cannot be read as a table .unexpected end of data"),
    ],
)
def test_a_table_that_is_none_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path / "t.csv", content)
    with pytest.raises(MediaError, match=message):
        list(table_rows(path))
    with pytest.raises(MediaError, match=message):
        library.classify_texts("x", ["spam", "ham"], shots=path)


def test_a_column_is_asked_for_and_named(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", '\ufefftext,label\r\n"a\r\nb",x\r\n\r\nc,y\r\n')
    assert read_column(path, "text") == ["a\r\nb", "c"]
    assert read_column(written(tmp_path / "t.tsv", "a\tb\n1,5\t2\n"), "a") == ["1,5"]
    with pytest.raises(
        UsageError, match=r"say which column holds the texts \(--column NAME\); its columns are text, label"
    ):
        read_column(path, None)
    with pytest.raises(UsageError, match="no column 'titel'"):
        read_column(path, "titel")
    lines = written(tmp_path / "t.jsonl", '{"text": "a", "n": 1}\n')
    with pytest.raises(MediaError, match="t.jsonl:1: n is a text, got 1"):
        read_column(lines, "n")


def test_deep_json_and_long_numbers_are_an_error_of_their_line(tmp_path: Path) -> None:
    for line, message in (("[" * 200_000, "nested too deeply"), ('{"prompt": ' + "9" * 5000 + "}", "no JSON")):
        path = written(tmp_path / "a.jsonl", f"{line}\n")
        with pytest.raises(MediaError, match=f"a.jsonl:1: .*{message}"):
            read_pairs(path)


class Endless(io.RawIOBase):
    """A line without an end, and how much of it was asked for."""

    asked = 0

    def readline(self, size: int = -1, /) -> bytes:
        self.asked += size
        assert self.asked < 3 * MAX_LINE_BYTES
        return bytes(size)


def test_a_line_without_an_end_is_neither_held_nor_read_on(tmp_path: Path) -> None:
    assert next(byte_lines(Endless())).data is None
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b"\nshort\n")
    tracemalloc.start()
    with path.open("rb") as file:
        assert [(line.number, line.start, line.data) for line in byte_lines(file)][1] == (2, 100_000_001, b"short\n")
    for read in (read_text, lambda file: list(text_lines(file))):
        with pytest.raises(MediaError, match=f"longer than the limit of {MAX_TEXT_BYTES:,} bytes"):
            read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    "words",
    [
        ("classify", "--text", "-", "--labels", "a,b"),
        ("classify", "--text", "x", "--labels-file", "{long}.txt"),
        ("classify", "--text", "x", "--shots", "{long}.jsonl"),
        ("classify", "--text", "x", "--shots", "{long}.csv"),
        ("generate", "-"),
        ("embed", "--texts", "{long}.txt", "--out", "e.npz"),
        ("embed", "--list", "{long}.txt", "--out", "e.npz"),
        ("adapt", "train", "{long}.jsonl", "--out", "a.safetensors"),
    ],
)
def test_a_long_line_is_refused_and_not_printed(zoo, tmp_path: Path, words: tuple[str, ...]) -> None:
    data = b"x" * (MAX_LINE_BYTES + 2)
    for suffix in ("txt", "jsonl", "csv"):
        (tmp_path / f"long.{suffix}").write_bytes(data)
    given = [word.replace("{long}", str(tmp_path / "long")) for word in words]
    run = zoo(*given, *(() if words[0] == "embed" else LLAMA), stdin=data if "-" in words else b"")
    assert (run.returncode, run.stdout) == (1, "")
    assert len(run.stderr) < 1000
    assert "longer than the limit of 1" in run.stderr


def test_labels_are_the_same_only_where_they_read_the_same(main, photos: Path) -> None:
    photo, model = str(photos / "chelsea.jpg"), ("--model", "clip/tiny", "--weights", "none")
    assert main("classify", photo, "--labels", "Masse,Maße", *model).returncode == 0
    assert main("classify", photo, "--labels", "ﬁsh,fish", *model).returncode == 0
    for labels, message in (
        ("MASSE,Masse", "differ in capitals alone"),
        ("caf\u00e9,cafe\u0301", "look the same, in other characters of Unicode"),
    ):
        run = main("classify", photo, "--labels", labels, *model)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr
    assert main("classify", "--text", "x", "--labels", "May,may", *LLAMA).returncode == 0


def test_an_empty_text_among_others_is_an_error_of_its_own(main, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    run = main("classify", "--text", "hello", str(tmp_path / "empty.txt"), "--labels", "a,b", *LLAMA, "--json")
    answered, empty = json.loads(run.stdout)["results"]
    assert (run.returncode, answered["label"] in ("a", "b"), "the text is empty" in empty["error"]) == (1, True, True)


def test_half_a_character_is_no_text(main, tmp_path: Path) -> None:
    run = main("embed", "a \udcff b", "--model", "clip/tiny", "--weights", "none", "--out", str(tmp_path / "v.npz"))
    assert run.returncode == 2
    assert "half a character (U+DCFF at character 2)" in run.stderr


def test_cells_are_as_long_as_texts_may_be_and_an_empty_line_of_one_column_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text\n" + "x" * 200_000 + "\n")
    assert len(read_column(table, "text")[0]) == 200_000
    table.write_text("text\none\n\nthree\n")
    with pytest.raises(MediaError, match=r"t.csv:3: an empty line, where each line is a text"):
        read_column(table, "text")
