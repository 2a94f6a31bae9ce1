"""Names that would be paths, archives that lead elsewhere, templates in files, and what no message may say."""

import ast
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models

import zoo as library
from zoo.errors import MediaError, PluginError, UsageError, ZooError
from zoo.registry.activation import call_hook, new_manager
from zoo.registry.manifest import read_manifest
from zoo.registry.plugin import Plugin

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("plugins/*/zoo_*/**/*.py"), *ROOT.glob("adapters/zoo_*/**/*.py")])
TINY = ("--model", "smollm/tiny", "--weights", "none")
NAMES = [
    "..", "../..", "a/..", "../../etc/passwd", "/etc/passwd", "a/../../b", "%2e%2e", "%2e%2e%2fetc", "a\\..\\b", "C:\\x",
    "x" * 300, "a\u2215b", "a\u2024\u2024/b", "a\0b", "a/b/c", ".", "~", "~root/x", "-rf", "$(touch pwned)", "a b", "", "\u202egnp",
]  # fmt: skip

SOUGHT = ("../../etc/passwd", "a\0b")


# A14: names are matched before they become paths.


@pytest.mark.covers("A14")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_would_be_a_path_is_refused_where_names_are_taken(main, tmp_path: Path, monkeypatch, name: str) -> None:
    """At the command line; and nothing is written, here or above."""
    here = tmp_path / "one" / "two"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    parts = ("--decoder", "smollm/tiny", "--bridge", "perceiver/resampler-tiny", "--weights", "none", "--out", "out")
    commands = [
        ("new", name), ("enable", name), ("disable", name), ("uninstall", name), ("pin", name, name),
        ("compose", "--encoder", f"{name}=clip/tiny-image", *parts),
    ]  # fmt: skip
    if name in SOUGHT:  # a second each, in which names that are alike are looked for
        commands += [("fetch", name), ("generate", "x", "--model", name, "--weights", "none")]
    for words in commands:
        run = main(*words)
        assert "Traceback" not in run.stderr, words
        assert run.returncode in (1, 2), words
        assert len(run.stderr) < 2_000, words
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if ".state" not in path.parts) == [
        "one", "one/two"
    ]  # fmt: skip


@pytest.mark.covers("A14")
@pytest.mark.parametrize("name", [name for name in NAMES if "\0" not in name])
def test_a_card_is_called_by_a_name(tmp_path: Path, name: str) -> None:
    text = f'api = ">=1,<2"\n[[card]]\nname = {json.dumps(name)}\nkind = "encoder"\nmodalities = ["image"]\n'
    with pytest.raises(ZooError, match="name"):
        read_manifest(
            text.encode(), tmp_path / "zoo.toml", plugin="p", distribution="d", version="1", package="p", api_version=1
        )


@pytest.mark.covers("A14", "A10")
def test_the_source_unpacks_no_archive_and_renders_no_template() -> None:
    """No call of `extract`, `extractall` or `unpack_archive`, and no template engine, anywhere."""
    assert len(SOURCES) > 200
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in {"extract", "extractall", "unpack_archive", "apply_chat_template"}, path
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in imported} & {"jinja2", "mako", "chevron"}, path


# A10: what a model's file brings as a template.

NEVER_ENDS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}"
)
RUNS_CODE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch pwned') }}"


@pytest.mark.covers("A10")
@pytest.mark.parametrize("template", [NEVER_ENDS, RUNS_CODE, "{{ 'x' * 4000000000 }}", "{% include '/etc/passwd' %}"])
def test_no_template_of_a_file_is_rendered(tmp_path: Path, monkeypatch, template: str) -> None:
    """Neither one in the header of a GGUF file nor those that lie in a folder of transformers."""
    from zoo_lm.json_tokenizer import JsonTokenizer
    from zoo_smollm.tokenizer import open_tokenizer

    monkeypatch.chdir(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "\u0120"]
    for key, value in {"model": "gpt2", "pre": "smollm"}.items():
        writer.add_string(f"tokenizer.ggml.{key}", value)
    for key, values in {"tokens": tokens, "token_type": [3, 3, 3, 1, 1, 1, 1], "merges": ["a b"]}.items():
        writer.add_array(f"tokenizer.ggml.{key}", values)
    writer.add_string("tokenizer.chat_template", template)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    chat = open_tokenizer(tmp_path / "a.gguf").chat
    assert chat is not None
    with pytest.raises(UsageError, match="a program in a weight file is not run"):
        chat([("user", "a")])
    letters = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    letters.decoder = decoders.ByteLevel()
    letters.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert JsonTokenizer(tmp_path / "tokenizer.json", start_id=None, end_ids=(), vocabulary=9).chat is None
    assert not (tmp_path / "pwned").exists()


# A17: no address of memory in a message.

ADDRESS = re.compile(r"0x[0-9a-fA-F]{5,}")


@pytest.mark.covers("A17")
def test_no_error_says_where_an_object_lies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, thing = library.open_model("clip/tiny", weights=None), object()
    language = library.open_language_model(library.ModelSpec(name="smollm/tiny", weights=None))
    calls: list[Callable[[], Any]] = [
        lambda: library.classify(thing, ["a", "b"], model=model),
        lambda: library.classify(np.zeros((4, 4), np.uint8), ["a", thing], model=model),
        lambda: library.classify(np.zeros((4, 4), np.uint8), ["a", "b"], templates=[thing], model=model),
        lambda: library.embed([thing], out=tmp_path / "e.npz", model=model),
        lambda: library.embed(texts=[thing], out=tmp_path / "e.npz", model=model),
        lambda: library.search(tmp_path, thing, model=model),
        lambda: library.generate(thing, model=language),
        lambda: library.generate([[thing]], model=language),
        lambda: library.generate("x", model=language, stop=[thing]),
        lambda: library.score("x", [thing, "a"], model=language),
        lambda: library.classify_texts([thing], ["a", "b"], model=language),
        lambda: library.transcribe(thing),
        lambda: library.open_audio(thing),
        lambda: library.open_image(thing),
        lambda: library.open_image(io.BytesIO(b"x")),
        lambda: library.find(thing),
        lambda: library.open_model(thing),
        lambda: library.build("smollm/tiny", weights=thing),
        lambda: library.build("smollm/tiny", weights=None, width=thing),
        lambda: library.compose(decoder=thing, encoders={}, bridge="a"),
        lambda: library.adapt(model, thing),
        lambda: library.adapt(language, "lora", r=thing),
        lambda: library.Sound(thing, 16_000),
        lambda: library.Sound(np.zeros(9, np.float32), thing),
    ]
    for number, call in enumerate(calls):
        with pytest.raises((ZooError, TypeError, AttributeError, ValueError)) as raised:
            call()
        assert not ADDRESS.search(str(raised.value)), (number, raised.value)
        assert "\n" not in str(raised.value), number


@pytest.mark.covers("A17")
def test_addresses_are_left_out_of_messages_and_other_numbers_stay() -> None:
    for error in (ZooError, MediaError, PluginError, UsageError):
        said = str(error(f"got {object()!r}, {test_no_template_of_a_file_is_rendered!r} and {io.BytesIO()!r}"))
        assert said == "got <object object>, <function test_no_template_of_a_file_is_rendered> and <_io.BytesIO object>"
    for text in (
        "the byte 0xff at byte 3",
        "GGUF type at 0x10",
        "sha256 at 0123456789abcdef",
        "version 0x67676d6c is unknown",
        "photos/0x0123456789abcdef.jpg: there is no such file",
        "unknown label '0x52908400098527886E0F7030069857D2E4169EE7'",
        "GGUF magic at 0x1234567 is wrong",
    ):
        assert str(ZooError(text)) == text
    stack = "Error code 12 (no memory)\nException raised from alloc_cpu at /a/alloc_cpu.cpp:127 (most recent call first):\nframe #0: a + 0x85 (0x7f5cd2245305 in /lib/libc.so.6)"
    assert str(ZooError(f"it raised RuntimeError: {stack}")) == "it raised RuntimeError: Error code 12 (no memory)"
    assert str(ZooError(f"it raised {' '.join(stack.split())}")) == "it raised Error code 12 (no memory)"
    assert str(ZooError()) == ""


@pytest.mark.covers("A17")
def test_a_hook_that_returns_or_raises_an_object_shows_no_address(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd_addresses.py").write_text(
        "from zoo.api import hookimpl\n@hookimpl\ndef zoo_family(pattern): raise ValueError(object())\n"
    )
    plugin = Plugin(
        name="odd", distribution="odd", version="1", module="odd_addresses", location=tmp_path / "odd_addresses.py"
    )
    with pytest.raises(PluginError, match=r"raised ValueError in its hook zoo_family: <object object>$"):
        call_hook(plugin, "zoo_family", new_manager(), pattern="*")
