"""Names, labels and paths are shown and not obeyed by a terminal; JSON keeps them exactly."""

import ast
import json
from pathlib import Path

import pytest

from zoo.registry.terminal import LONGEST_LINE, UNSAFE, clean, message, on_one_line

ROOT = Path(__file__).parents[1]
CLIP = ("--model", "clip/tiny", "--weights", "none")
ESCAPES = "\x1b]0;owned\x07\x1b[2Kx\rzoo: all is well\x9b1m\u202egnp\u2066\x7f"


def safe(text: str) -> bool:
    return not UNSAFE.search(text)


def test_what_commands_a_terminal_is_shown() -> None:
    assert clean(ESCAPES) == "\\x1b]0;owned\\x07\\x1b[2Kx\\rzoo: all is well\\x9b1m\\u202egnp\\u2066\\x7f"
    kept = "na\u00efve\t\u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f527\n"  # two directions of writing, and one sign of three characters
    assert clean(kept) == kept
    assert clean("a\udcffb") == "a\\udcffb"
    assert on_one_line("a\nzoo: done") == "a\\nzoo: done"
    assert message("first\nzoo: done\n  set in") == "first\n  zoo: done\n  set in"
    long = message("x" * 10**6)
    assert long == "x" * LONGEST_LINE + f"... ({10**6 - LONGEST_LINE:,} more characters)"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_file_with_such_a_name(main, photos: Path, tmp_path: Path, monkeypatch, as_json: bool) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{ESCAPES}.jpg"
    Path(name).write_bytes((photos / "chelsea.jpg").read_bytes())
    Path(f"{ESCAPES}2.jpg").write_bytes(b"no image")
    label = "cat\x1b[31m"
    extra = ("--json",) if as_json else ()
    for words in (
        ("classify", ".", "--labels", f"{label},dog", *CLIP),
        ("search", ".", f"a cat {ESCAPES}", *CLIP),
        ("embed", ".", f"a text {ESCAPES}", "--out", f"{ESCAPES}.npz", *CLIP),
        ("compose", "--decoder", ESCAPES, "--encoder", "image=clip/tiny-image", "--bridge", ESCAPES),
        ("lock", f"{ESCAPES}/zoo.lock"),
        ("classify", f"absent{ESCAPES}.jpg", "--labels", "a,b"),
        ("classify", "x.jpg", "--labels", "a,b", "--model", ESCAPES),
        ("generate", f"absent{ESCAPES}.txt"),
        ("show", ESCAPES),
        ("classify", "x.jpg", f"--{ESCAPES}"),
    ):
        run = main(*words, *extra)
        assert safe(run.stdout), (words[0], run.stdout)
        assert safe(run.stderr), (words[0], run.stderr)
        assert "zoo: all is well\n" not in f"{run.stdout}{run.stderr}"
        if as_json and words[:2] == ("classify", "."):
            rows = json.loads(run.stdout)["results"]
            assert {row["input"] for row in rows} == {name, f"{ESCAPES}2.jpg"}
            assert label in next(row["scores"] for row in rows if "scores" in row)


def test_a_warning_is_clean(main, photos: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "a.jpg").write_bytes((photos / "chelsea.jpg").read_bytes())
    (tmp_path / f"b{ESCAPES}").write_text("left out")
    assert main("classify", str(tmp_path), "--labels", "a,b", *CLIP).returncode == 0
    assert "1 file left out" in caplog.text
    assert safe(caplog.text)


def test_commands_print_by_one_function() -> None:
    """`say` and `print_json` of zoo/cli/output.py: no module of commands prints by itself."""
    for path in sorted((ROOT / "zoo" / "cli").glob("**/*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not found or path.name == "output.py", f"{path}:{found[0].lineno}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clasify", "x"), "zoo: argument COMMAND: invalid choice: 'clasify'; did you mean classify? (see: zoo --help)"),
        (
            ("adapt", "trian"),
            "zoo adapt: argument ACTION: invalid choice: 'trian'; did you mean train? (see: zoo adapt --help)",
        ),
        (
            ("classify", "x", "--lables", "a"),
            "zoo: unrecognized arguments: --lables a; did you mean --labels? (see: zoo --help)",
        ),
        (("adapt", "list", "x", "--steps", "3"), "zoo: unrecognized arguments: --steps 3 (see: zoo --help)"),
        (
            ("generate", "x", "--temperature", "abc"),
            "zoo generate: argument --temperature: expected a finite number, got 'abc' (see: zoo generate --help)",
        ),
        (("list", "--qqq"), "zoo: unrecognized arguments: --qqq (see: zoo --help)"),
    ],
)
def test_what_may_have_been_meant(main, words: tuple[str, ...], message: str) -> None:
    run = main(*words)
    assert (run.returncode, run.stderr) == (2, f"{message}\n")
