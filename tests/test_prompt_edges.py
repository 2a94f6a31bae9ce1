"""Texts at every edge: empty, full, too long, of no characters, and those that a tokenizer might read as more than text."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import zoo as library
from zoo.errors import UsageError, WeightsMissingError, ZooError
from zoo.nn.expressions import PUBLISHED, may_run
from zoo.nn.tokenizer import check_expressions

TINY = ("--model", "smollm/tiny", "--weights", "none")
CLIP = ("--model", "clip/tiny", "--weights", "none")
ROOM = 512  # tokens, each a byte of the text


@pytest.fixture(scope="module")
def language() -> Any:
    torch.manual_seed(0)
    return library.open_language_model(library.ModelSpec(name="smollm/tiny", weights=None))


# M8: each is answered as it is defined, or refused in one line.


@pytest.mark.covers("M8")
def test_a_prompt_that_is_exactly_full_and_one_more(main, language: Any) -> None:
    for length, asked, tokens, finish in (
        (ROOM - 1, 5, 1, "context"),
        (ROOM - 3, 3, 3, "length"),
        (ROOM - 3, 4, 3, "context"),
    ):
        run = main("generate", "x" * length, *TINY, "--max-tokens", str(asked), "--json")
        (result,) = json.loads(run.stdout)["results"]
        if result["finish"] != "end":
            assert (result["prompt_tokens"], result["tokens"], result["finish"]) == (length, tokens, finish)
    (full,) = library.generate("x" * ROOM, model=language, max_tokens=0).results
    assert (full.prompt_tokens, full.text) == (ROOM, "")
    for words in (("generate", "x" * (ROOM + 1)), ("generate", "x" * ROOM, "--choices", "a,b", "--allow-random")):
        run = main(*words, *TINY)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run.stderr
        assert "512" in run.stderr
    run = main("generate", "x" * (ROOM - 2), "--choices", "a,b", "--allow-random", *TINY, "--json")  # a blank and a letter
    assert set(json.loads(run.stdout)["results"][0]["scores"]) == {"a", "b"}, run.stderr


TEXTS = {
    "nothing": "",
    "a blank": " ",
    "NUL": "\0nul\0",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202eevil\u202c \u0639\u0631\u0628\u064a",
    "marks without a letter": "\u0301" * 20,
    "beyond the first plane": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U000e0041",
    "no character": "\ufffe\uffff\U0010ffff",
}


@pytest.mark.covers("M8")
@pytest.mark.parametrize("name", TEXTS)
def test_odd_texts_are_texts(main, tmp_path: Path, name: str) -> None:
    """What is generated after one, embedded of one and searched for by one is defined, and the same each time."""
    text = TEXTS[name]
    first, again = (main("generate", f"text:{text}", *TINY, "--max-tokens", "3", "--json") for _ in range(2))
    assert first.stdout == again.stdout
    (result,) = json.loads(first.stdout)["results"]
    assert (result["input"], result["prompt_tokens"]) == (text, len(text.encode()))
    run = main("embed", f"text:{text}", *CLIP, "--out", str(tmp_path / "e.jsonl"), "--json")
    if text.strip():
        assert (run.returncode, json.loads(run.stdout)["rows"] if "rows" in run.stdout else 1) == (0, 1), run.stderr
    else:
        assert run.returncode in (0, 1, 2)
        assert run.stderr.count("\n") <= 1
    assert "Traceback" not in run.stderr


BAD_TEXTS = {"half a character": ("a\ud800b", 2), "ten megabytes": ("x" * 10_000_000, 1)}


@pytest.mark.covers("M8")
@pytest.mark.parametrize("name", BAD_TEXTS)
@pytest.mark.parametrize("command", ["generate", "choices", "text", "label", "embed", "query", "system", "stop"])
def test_what_is_no_text_or_far_too_long_is_one_line_soon(
    main, photos: Path, tmp_path: Path, command: str, name: str
) -> None:
    text, _ = BAD_TEXTS[name]
    photo = str(photos / "chelsea.jpg")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "folder" / "a.png")
    words = {
        "generate": ("generate", text, *TINY),
        "choices": ("generate", "x", "--choices", f"{text},b", "--allow-random", *TINY),
        "text": ("classify", "--text", text, "--labels", "a,b", *TINY),
        "label": ("classify", photo, "--labels", f"{text},dog", *CLIP),
        "embed": ("embed", text, "--out", str(tmp_path / "e.npz"), *CLIP),
        "query": ("search", str(tmp_path / "folder"), text, *CLIP),
        "system": ("generate", "x", "--chat", "--system", text, *TINY),
        "stop": ("generate", "x", "--stop", text, "--max-tokens", "2", *TINY),
    }[command]
    begun = time.perf_counter()
    run = main(*words)
    assert time.perf_counter() - begun < 2
    assert "Traceback" not in run.stderr
    if command == "stop" and run.returncode == 0:  # a text that is never written stops nothing
        return
    assert run.returncode in (1, 2)
    about = [line for line in run.stderr.splitlines() if "random weights" not in line and "zero-shot" not in line]
    assert len(about) == 1, run.stderr[:300]
    assert len(about[0]) < 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("classify", "photo.png", "--labels", "a\nb,c", *CLIP), "no list with commas between"),
        (("generate", "x", "--choices", "a\nb,c", "--allow-random", *TINY), "no list with commas between"),
        (("classify", "photo.png", "--labels", "a,b", "--template", "a \udcff {}", *CLIP), "half a character"),
        (("classify", "photo.png", "--labels", "a,b\udcff", *CLIP), "half a character"),
    ],
)
def test_lists_and_labels_that_are_none_are_one_line(main, tmp_path: Path, monkeypatch, words, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    run = main(*words)
    assert (run.returncode, run.stdout, run.stderr.count("\n"), message in run.stderr) == (2, "", 1, True), run.stderr


# A11, M8: the time that each tokenizer takes.

UNITS = ["a", "ab", ">>", "\n", "\u0301", " ", "1", "'", "[", "\u4e2d", "\U0001f600", "a ", "random"]


def of_100_kilobytes(unit: str) -> str:
    if unit == "random":  # one word, whose pairs are all there are
        generator = torch.Generator().manual_seed(0)
        return "".join(chr(97 + number) for number in torch.randint(0, 26, (100_000,), generator=generator).tolist())
    return unit * (100_000 // len(unit.encode()))


def json_tokenizer(path: Path, expression: str) -> Tokenizer:
    """Tokens that are bytes, of what an expression cuts."""
    numbers = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(numbers, []))
    from tokenizers import Regex

    split = pre_tokenizers.Split(Regex(expression), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
    return tokenizer


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[str], object]]:
    """What turns a text into tokens, of every plugin that reads texts."""
    torch.manual_seed(0)
    clip, minilm = library.build("clip/tiny", weights=None), library.build("text/minilm-tiny", weights=None)
    found: dict[str, Callable[[str], object]] = {
        "clip": lambda text: clip.preprocess("text", [text]),
        "text, bytes": lambda text: minilm.preprocess([text]),
        "bytes": library.build("lm/llama-tiny", weights=None).tokenizer.encode,
    }
    for name, reader in (
        ("text/all-minilm-l6-v2", lambda module: lambda text: module.preprocess([text])),
        ("smollm/135m-instruct", lambda module: module.tokenizer.encode),
    ):
        try:
            found[name] = reader(library.build(name))
        except WeightsMissingError:
            continue
    from zoo_lm.json_tokenizer import JsonTokenizer
    from zoo_whisper.tokens import controls
    from zoo_whisper.vocabulary import Vocabulary

    found["whisper"] = Vocabulary(controls(51_865)).encode
    folder = tmp_path_factory.mktemp("tokenizers")
    for number, expression in enumerate(PUBLISHED):
        json_tokenizer(folder / f"{number}.json", expression)
        found[expression[:20]] = JsonTokenizer(folder / f"{number}.json", start_id=None, end_ids=(), vocabulary=256).encode
    return found


@pytest.mark.covers("A11", "M8")
@pytest.mark.parametrize("unit", UNITS)
def test_a_hundred_kilobytes_are_tokens_in_less_than_a_second(readers, unit: str, figure: Callable[[str], None]) -> None:
    text, worst = of_100_kilobytes(unit), 0.0
    for name, read in readers.items():
        begun = time.process_time()
        read(text)
        spent = time.process_time() - begun
        assert spent < 1, name
        worst = max(worst, spent)
    if unit == "random":
        figure(f"{len(readers)} tokenizers, at most {worst:.2f} s")


@pytest.mark.covers("A11")
@pytest.mark.parametrize("expression", ["(a+)+$", r"\s+$", "(a|aa)*b"])
def test_no_expression_of_a_file_is_run(tmp_path: Path, expression: str) -> None:
    """Neither beside the weights of a sentence encoder nor in the folder of a language model."""
    from zoo_lm.json_tokenizer import JsonTokenizer

    path = tmp_path / "tokenizer.json"
    json_tokenizer(path, expression)
    for opened in (
        lambda: JsonTokenizer(path, start_id=None, end_ids=(), vocabulary=256),
        lambda: library.build("text/minilm-tiny", weights=None, tokenizer_path=path),
        lambda: check_expressions(path),
    ):
        with pytest.raises(UsageError, match="it is not run, since it may never end") as raised:
            opened()
        assert "\n" not in str(raised.value)
    twice = path.read_text().replace('"Regex"', '"Regex":" {2,}","Regex"', 1)
    path.write_text(twice)
    with pytest.raises(UsageError, match="the name 'Regex' occurs twice"):
        check_expressions(path)


FORWARD = (
    *PUBLISHED, " {2,}", r"\s?\p{L}+", r"[\r\n]", r"\d", r"\s+", r"\p{N}{1,3}", "[\u4e00-\u9fa5\u0800-\u4e00]+", r"[!-/:-~]+", "x",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)  # fmt: skip
BACK = (
    "(a+)+$", "a*a*b", r"\p{L}+b", "(a|aa)+", r"(\w)\1", "a+$", "(?:a|b)*c", r"\s+\s+x", "(a?){30}b", "a{1,}b", "[[a]+]+x", "(", "a**",
    r"a+(?!b)c", "a?" * 30 + "a" * 30, "a{0,999}" * 3 + "b", "(?=a+)b"
)  # fmt: skip


@pytest.mark.parametrize(("expressions", "allowed"), [(FORWARD, True), (BACK, False)])
def test_what_never_goes_back_may_run(expressions: tuple[str, ...], allowed: bool) -> None:
    assert [one for one in expressions if may_run(one) is not allowed] == []


def test_what_may_run_takes_the_time_of_its_text() -> None:
    """In the library that runs it, on texts at which going back would show."""
    from tokenizers import Regex, pre_tokenizers

    for expression in FORWARD:
        cut = pre_tokenizers.Split(Regex(expression), "isolated")
        for text in ("a" * 100_000, "a1" * 50_000, " a" * 50_000):
            begun = time.process_time()
            cut.pre_tokenize_str(text)
            assert time.process_time() - begun < 2, expression


# A18, M7: control tokens that somebody writes.


@pytest.mark.covers("A18", "M7")
def test_control_tokens_in_a_text_are_text(readers, main, tmp_path: Path) -> None:
    clip = library.build("clip/tiny", weights=None)
    for said in (
        "<end_of_text>",
        "<END_OF_TEXT>",
        "&lt;end_of_text&gt;",
        "<start_of_text>",
        "<<end_of_text>>",
        "<end_of_text>" * 3,
    ):
        (ids,) = clip.preprocess("text", [f"{said} a cat"]).tolist()
        assert (ids.count(49406), ids.count(49407)) == (1, 1), said
        (other,) = clip.preprocess("text", [f"{said} a dog"]).tolist()
        assert ids != other, "what follows counts"
    (ids,) = clip.preprocess("text", ["<end_of_text>"]).tolist()
    assert (
        ids[: ids.index(49407) + 1] == clip.preprocess("text", ["< end _ of _ text >"])[0].tolist()[: ids.index(49407) + 1]
    )
    if "text/all-minilm-l6-v2" in readers:
        ids, _ = readers["text/all-minilm-l6-v2"]("a [SEP] b [CLS] c [PAD] [MASK] [UNK]")
        assert ids.tolist()[0].count(102) == ids.tolist()[0].count(101) == 1
        assert not {0, 100, 103} & set(ids.tolist()[0])
    for said in ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|0.00|>", "<|notimestamps|>"):
        assert max(readers["whisper"](said)) < 50_257
    run = main("embed", "<end_of_text> a cat", "<end_of_text> a dog", *CLIP, "--out", str(tmp_path / "e.jsonl"))
    assert run.returncode == 0, run.stderr
    first, second = (json.loads(line)["embedding"] for line in (tmp_path / "e.jsonl").read_text().splitlines()[-2:])
    assert first != second


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    return library.compose(
        decoder="smollm/tiny",
        encoders={"image": "clip/tiny-image"},
        bridge="perceiver/resampler-tiny",
        weights=None,
        every=1,
    )


@pytest.mark.covers("M7", "A18")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["<image>"], "the text has 1 <image> and 0 of image were given"),
        (["<image>" * 10_000], "the text has 10000 <image> and 0 of image were given"),
        (["<image>a<image>", 1], "the text has 2 <image> and 1 of image were given"),
        (["<image>", 3], "the text has 1 <image> and 3 of image were given"),
        (["a", 300], "a prompt holds at most 256 media items, got 300"),
        ([1, "<image> b", 1], "the items stand between texts already|a text says <image>"),
    ],
)  # fmt: skip
def test_places_and_media_that_differ_are_refused_before_anything_is_computed(seeing, monkeypatch, parts, message) -> None:
    """Numbers stand for so many pictures."""
    language = library.open_language_model(seeing)
    pictures = [[Image.new("RGB", (8, 8))] * part if isinstance(part, int) else [part] for part in parts]
    prompt = [part for group in pictures for part in group]

    def computed(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    for module in seeing.module.modules():
        monkeypatch.setattr(module, "forward", computed)
    for ask in (
        lambda: library.generate([prompt], model=language, max_tokens=1),
        lambda: library.score([prompt], ["a", "b"], model=language),
    ):
        with pytest.raises(UsageError, match=message):
            ask()


def test_markers_are_counted_where_they_fit(seeing) -> None:
    (answer,) = library.generate(
        [["<image> a <image>", *[Image.new("RGB", (8, 8))] * 2]], model=seeing, max_tokens=1
    ).results
    assert answer.prompt == "<image> a <image>"
    with pytest.raises(ZooError):
        library.generate([["<image>"]], model=seeing, max_tokens=1)
