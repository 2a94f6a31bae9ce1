"""`zoo generate`, `zoo.generate`, `zoo.score` and `zoo classify --text`, on a tiny decoder with random weights."""

import json
import os
import subprocess
import sys

import pytest
import torch

import zoo as library
from zoo.decoding.sampling import Sampling
from zoo.errors import MediaError, UsageError

TINY = ("--model", "smollm/tiny", "--weights", "none")


def tiny(**arguments):
    torch.manual_seed(0)
    return library.open_language_model(library.ModelSpec(name="smollm/tiny", weights=None, **arguments))


def test_the_document_says_what_was_generated_and_by_what(main) -> None:
    run = main("generate", "once", "upon", *TINY, "--max-tokens", "5", "--json")
    document = json.loads(run.stdout)
    assert run.returncode == 0, run.stderr
    assert document["model"] == "smollm/tiny"
    assert document["plugin"] == {"dist": "modalzoo-smollm", "version": "0.1.0"}
    assert (document["kernel"], document["random_parts"], document["random_weights"]) == ("float32", ["smollm/tiny"], True)
    assert len(document["weights"]["smollm/tiny"]["drawn"]) == 64
    (result,) = document["results"]
    assert result["input"] == "once\nupon"
    assert (result["prompt_tokens"], result["finish"]) == (9, "length")
    assert result["tokens"] == 5
    assert "smollm/tiny has random weights: what it answers means nothing" in run.stderr


def test_choices_are_ranked(main) -> None:
    run = main(
        "generate",
        "yes or no?",
        *TINY,
        "--choices",
        "yes, no,maybe",
        "--allow-random",
        "--json",
        "--normalise",
        "calibrated",
    )
    (result,) = json.loads(run.stdout)["results"]
    assert list(result["scores"]) == sorted(result["scores"], key=lambda name: -result["scores"][name])
    assert sum(result["scores"].values()) == pytest.approx(1)
    assert result["choice"] == result["text"] == next(iter(result["scores"]))
    text = main(
        "generate", "yes or no?", *TINY, "--choices", "yes, no,maybe", "--allow-random", "--normalise", "calibrated"
    )
    assert text.stdout.startswith(f"{result['choice']}  ")


def test_a_stream_prints_what_waiting_prints(main) -> None:
    arguments = ("generate", "hello", *TINY, "--max-tokens", "12", "--temperature", "1.2", "--seed", "3")
    assert main(*arguments, "--stream").stdout == main(*arguments).stdout


def test_standard_input_is_a_part() -> None:
    command = [sys.executable, "-m", "zoo", "generate", "a", "-", *TINY, "--max-tokens", "1", "--json"]
    run = subprocess.run(
        command, input="b\n\N{HEBREW LETTER ALEF}\n".encode(), capture_output=True, check=False, timeout=120
    )
    assert json.loads(run.stdout)["results"][0]["input"] == "a\nb\n\N{HEBREW LETTER ALEF}"
    wrong = subprocess.run(command, input=b"\xff", capture_output=True, check=False, timeout=120)
    assert wrong.returncode == 1
    assert b"zoo: standard input: not UTF-8 text (the byte 0xff at byte 0)" in wrong.stderr


def test_samples_and_beams(main) -> None:
    drawn = json.loads(
        main("generate", "x", *TINY, "--samples", "3", "--temperature", "40", "--max-tokens", "6", "--json").stdout
    )
    assert len({result["text"] for result in drawn["results"]}) == 3
    (greedy,) = library.generate("x", model=tiny(), max_tokens=6).results
    (beam,) = library.generate("x", model=tiny(), max_tokens=6, beams=1).results
    assert greedy == beam


def test_a_length_penalty_is_what_hypotheses_are_ranked_by(main) -> None:
    """At the command line as in Python, and no penalty makes the empty answer win that the search never found among its best."""
    for penalty in (0.0, 0.5, 1.0):
        (answer,) = library.generate("x", model=tiny(), max_tokens=6, beams=3, length_penalty=penalty).results
        run = main("generate", "x", *TINY, "--beams", "3", "--length-penalty", str(penalty), "--max-tokens", "6", "--json")
        document = json.loads(run.stdout)
        assert (document["results"][0]["text"], document["settings"]["length_penalty"]) == (answer.text, penalty)
        assert answer.tokens == 6
    with pytest.raises(UsageError, match="length_penalty ranks the hypotheses of a search: give beams as well"):
        library.generate("x", model=tiny(), length_penalty=0.5)


def test_a_score_per_byte_counts_the_bytes_of_the_choice_alone() -> None:
    """The blank that is put between prompt and choice is no part of it."""
    (summed,) = library.score("x", ["a", "hello"], model=tiny()).results
    (by_byte,) = library.score("x", ["a", "hello"], model=tiny(), normalise="byte").results
    for choice in ("a", "hello"):
        assert by_byte.logprobs[choice] == pytest.approx(summed.logprobs[choice] / len(choice), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x" * 600,), "prompt 0 has 600 tokens, and the model reads and writes at most 512 together: shorten it"),
        (("x", "--max-tokens", "-1"), "--max-tokens must be at least 0, got -1"),
        (("x", "--choices", "a"), "--choices are at least two different answers with commas between (in quotes with commas inside), got ['a']"),
        (("x", "--choices", "a,a"), "(in quotes with commas inside), got ['a', 'a']"),
        (("x", "--temperature", "-2"), "temperature must be from 0 (greedy) up, got -2.0"),
        (("x", "--chat"), "smollm/tiny was not trained on conversations: leave out --chat"),
        (("x", "--system", "s"), "--system is the beginning of a conversation: add --chat"),
        (("x", "--stream", "--json"), "--stream shows one answer while it comes: leave out --json"),
        (("x", "--beams", "2", "--top-k", "3"), "--top-k is about drawing tokens: leave it out with --choices and --beams"),
        (("x", "--samples", "0", "--temperature", "1"), "--samples must be at least 1, got 0"),
        (("x", "--top-k", "3"), "--top-k is about drawing tokens, and greedy answers draw none: add --temperature 1, say"),
        (("x", "--seed", str(2**64)), "--seed must fit 64 bits, got 18446744073709551616"),
        (("x", "--stop", ""), "--stop ends an answer at a text, got an empty one"),
        (("-", "-"), "- reads standard input, which is there once: give it once"),
        (("photo.jpg",), "there is no file photo.jpg; if it is meant as text, put text: before it ('text:photo.jpg')"),
        (("x", "--explain", "page.txt"), "--explain writes an HTML file, got page.txt; to see the prompt alone, put --explain last"),
        (("x", "--samples", "3"), "--samples are drawn, and greedy answers are all the same: add --temperature 1"),
        (("x", "--choices", ","), "(in quotes with commas inside), got []"),
        (("x", "--choices", "a,b", "--stop", "x"), "--choices ranks given answers: leave out --stop, --max-tokens"),
        (("x", "--normalise", "byte"), "--normalise is about --choices: give some, or leave it out"),
        (("x", "--stream", "--beams", "2"), "--stream shows one answer while it comes"),
        (("x", "--length-penalty", "0"), "--length-penalty ranks the hypotheses of a search: add --beams 4, say"),
        (("x", "--beams", "2", "--length-penalty", "-1"), "--length-penalty must be from 0 to 10, got -1"),
        (("x", "--beams", "0"), "--beams must be at least 1, got 0"),
        (("a\udcff",), "a text must be valid Unicode, got a lone surrogate at character 1: decode it as UTF-8"),
        (("x", "--kernel", "int4", "--dtype", "bfloat16"), "kernel int4 takes a model in float32, got torch.bfloat16: leave out dtype"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(main, arguments, message) -> None:
    run = main("generate", *arguments, *TINY)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_a_model_of_another_kind_and_a_media_file_are_named(main, photos) -> None:
    run = main("generate", "x", "--model", "text/minilm-tiny", "--weights", "none")
    assert "zoo generate needs a decoder, text/minilm-tiny is of kind encoder" in run.stderr
    run = main("generate", str(photos / "chelsea.jpg"), "what is this?", *TINY)
    assert "smollm/tiny reads text alone, and was given image (" in run.stderr


@pytest.mark.parametrize("text", ["", "\x00", "\x00nul\x00", "שלום עולם", "😀" * 30, "tab\t\r\n", " "])
def test_any_text_is_a_prompt(text) -> None:
    (result,) = library.generate(text, model=tiny(), max_tokens=3).results
    assert result.prompt == text
    assert result.tokens <= 3


def test_zero_tokens_and_no_room_are_defined() -> None:
    (none,) = library.generate("x", model=tiny(), max_tokens=0).results
    assert (none.text, none.finish, none.tokens) == ("", "length", 0)
    (full,) = library.generate("x" * 510, model=tiny(), max_tokens=50).results
    assert full.tokens <= 2
    assert full.finish in ("context", "end")


def test_a_language_model_reads_what_prompts_share_once() -> None:
    language = tiny()
    shots = "Text: a\nLabel: b\n\n" * 4
    alone = [library.score(shots + question, ["yes", "no"], model=tiny()).results[0] for question in "abc"]
    shared = [library.score(shots + question, ["yes", "no"], model=language).results[0] for question in "abc"]
    assert language.prefixes.hits == 2
    for one, other in zip(alone, shared, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_python_says_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="a prompt is a string, or a list of texts and media, prompt 1 is int"):
        library.generate(["a", 1], model=tiny())
    with pytest.raises(UsageError, match="no prompt given"):
        library.generate([], model=tiny())
    with pytest.raises(UsageError, match="choices are a list of texts, got the single string 'ab'"):
        library.score("x", "ab", model=tiny())
    with pytest.raises(UsageError, match="normalise is one of sum, token, byte, calibrated, got 'mean'"):
        library.score("x", ["a", "b"], model=tiny(), normalise="mean")
    with pytest.raises(UsageError, match="a kernel is one of float32, .*, got 'int3'; did you mean"):
        tiny(kernel="int3")
    with pytest.raises(UsageError, match="beams search for the likeliest answer: leave out sampling and samples"):
        library.generate("x", model=tiny(), beams=2, sampling=Sampling(temperature=1.0))


def test_texts_are_classified_by_examples(main, tmp_path) -> None:
    shots = tmp_path / "shots.jsonl"
    shots.write_text(
        '{"text": "free money", "label": "spam"}\n\n{"text": "see you at 5", "label": "ham"}\n', encoding="utf-8"
    )
    run = main("classify", "--text", "free\nlunch", "hello", "--shots", str(shots), *TINY, "--json")
    document = json.loads(run.stdout)
    assert run.returncode == 0, run.stderr
    assert document["method"] == "2 examples in the prompt"
    assert [result["input"] for result in document["results"]] == ["free\nlunch", "hello"]
    assert all(set(result["scores"]) == {"spam", "ham"} for result in document["results"])
    table = tmp_path / "shots.csv"
    table.write_text('text,label\n"free, money",spam\nsee you at 5,ham\n', encoding="utf-8")
    same = library.classify_texts(["hello"], shots=[("free, money", "spam"), ("see you at 5", "ham")], model=tiny())
    assert library.classify_texts("hello", shots=table, model=tiny()).results == same.results
    lines = main("classify", "--text", "free\nlunch " * 10, "--labels", "spam,ham", *TINY).stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("free lunch free lunch free lunch free lunch free lunch fr...  ")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            '{"text": "a"}\n',
            MediaError,
            r'shots.jsonl:1: an example has the fields text and label, both texts, got {"text": "a"}',
        ),
        ("[1]\n", MediaError, r"shots.jsonl:1: expected an object with named fields, got \[1\]"),
        ("{\n", MediaError, "shots.jsonl:1: no JSON"),
        ("", MediaError, "holds no examples"),
        ('{"text": "a", "label": "x"}\n', UsageError, "texts need labels: name at least two, or give examples of two"),
    ],
)
def test_examples_that_are_none_are_named(tmp_path, content, error, message) -> None:
    shots = tmp_path / "shots.jsonl"
    shots.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        library.classify_texts("x", shots=shots, model=tiny())


def test_what_is_about_images_and_what_about_texts(main, tmp_path, photos) -> None:
    for arguments, message in (
        (("--text", "x", "--labels", "a,b", "--batch-size", "3"), "--batch-size is about images: leave it out with --text"),
        (("--text", "x", "--labels", "a,b", "--template", "{}"), "a template has one {text} where the text goes, got '{}'"),
        (("--text", "x", "--shots", str(tmp_path)), "examples of texts are a .jsonl or .csv file"),
        (("--text", "x", "--shots", str(tmp_path / "no.csv")), "no.csv: there is no such file"),
        ((str(photos), "--labels", "a,b", "--normalise", "sum"), "--normalise is about texts: add --text"),
    ):
        run = main("classify", *arguments, *TINY)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr
    with pytest.raises(UsageError, match="examples have labels that are not among a, b: c"):
        library.classify_texts("x", ["a", "b"], shots=[("y", "c")], model=tiny())


def test_offline_without_the_weights_says_how_to_get_them(zoo, tmp_path) -> None:
    run = zoo("generate", "x", ZOO_OFFLINE="1", ZOO_CACHE=str(tmp_path), PATH=os.environ["PATH"])
    assert run.returncode == 1
    assert "Connect once and run: zoo fetch smollm/135m-instruct.q4_1" in run.stderr


def test_a_question_asked_by_a_pipe_is_the_one_asked_by_an_argument() -> None:
    command = [sys.executable, "-m", "zoo", "generate", *TINY, "--max-tokens", "4", "--json"]
    piped = subprocess.run([*command, "-"], input=b"hello\n", capture_output=True, check=True, timeout=120)
    asked = subprocess.run([*command, "hello"], capture_output=True, check=True, timeout=120)
    assert json.loads(piped.stdout) == json.loads(asked.stdout)


def test_the_document_says_how_to_get_the_answer_again(main) -> None:
    run = main("generate", "x", *TINY, "--max-tokens", "2", "--temperature", "0.5", "--seed", "7", "--stop", "q", "--json")
    used = json.loads(run.stdout)["settings"]
    assert (used["temperature"], used["seed"], used["max_tokens"], used["stop"]) == (0.5, 7, 2, ["q"])
    ranked = json.loads(main("generate", "x", *TINY, "--choices", '"a, b",c', "--allow-random", "--json").stdout)
    assert (ranked["settings"]["normalise"], ranked["settings"]["max_tokens"]) == ("sum", None)
    assert set(ranked["results"][0]["scores"]) == {"a, b", "c"}


def test_an_answer_that_was_cut_says_so(main) -> None:
    assert "zoo: the answer was cut after 256 tokens (--max-tokens)" in main("generate", "x", *TINY).stderr
    assert "cut" not in main("generate", "x", *TINY, "--max-tokens", "3").stderr


def test_a_conversation_is_a_list_of_turns() -> None:
    language = library.open_language_model()
    turns = [("user", "My name is Ada."), ("assistant", "Hello Ada!"), ("user", "hi")]
    (result,) = library.generate([turns], model=language, chat=True, max_tokens=3).results
    assert result.prompt_tokens == len(language.tokenizer.chat(turns))
    with pytest.raises(UsageError, match="prompt 0 is a turn of a conversation: the turns of one are a list in the list"):
        library.generate(turns, model=language, chat=True)
    with pytest.raises(
        UsageError, match="turns .role, text. are asked with chat=True, of a model trained on conversations"
    ):
        library.generate([turns], model=language)
    assert repr(language) == "LanguageModel(kernel='float32')"


def test_a_text_that_is_too_long_costs_the_others_nothing(main) -> None:
    run = main("classify", "--text", "x" * 600, "short", "--labels", "a,b", *TINY, "--json")
    results = json.loads(run.stdout)["results"]
    assert run.returncode == 1
    assert "has 613 tokens, and the model reads at most 512 with the label" in results[0]["error"], results
    assert results[1]["label"] in ("a", "b")
    with pytest.raises(
        UsageError, match=r"^the 40 examples have .* tokens, and the model reads at most 512 with the text: give some"
    ):
        library.classify_texts("x", shots=[("text " * 9, label) for label in "ab" * 20], model=tiny())


def test_texts_come_from_standard_input_a_line_each() -> None:
    command = [sys.executable, "-m", "zoo", "classify", "--text", "-", "--labels", "a,b", *TINY, "--json"]
    run = subprocess.run(command, input=b"one\ntwo\n", capture_output=True, check=True, timeout=120)
    assert [result["input"] for result in json.loads(run.stdout)["results"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["Hello"], "prompt 0 must be a list of token ids (tokenizer.encode(text)) or a Prompt, got 'Hello'"),
        ([1, 2], "prompt 0 must be a list of token ids (tokenizer.encode(text)) or a Prompt, got 1"),
        ("Hello", "prompts are a list with at least one prompt, each a list of token ids or a Prompt, got 'Hello'"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(prompts, message) -> None:
    from zoo.decoding import generate, perplexity

    with pytest.raises(UsageError) as caught:
        generate(tiny().decoder, prompts)
    assert str(caught.value) == message
    with pytest.raises(UsageError, match="a decoder is asked .zoo.api.Decoder., got LanguageModel"):
        generate(tiny(), [[1]])
    with pytest.raises(UsageError, match="a text is foretold by its token ids, a flat list"):
        perplexity(tiny().decoder, [[1, 2]])
