"""Rules of the house that a machine can check."""

import ast
import itertools
import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from warm_interpreter import WarmInterpreter

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("plugins/*/zoo_*/**/*.py"), *ROOT.glob("adapters/zoo_*/**/*.py")])
# Whole words. Free to use: `llama3`, a rule for rotary positions as configuration files spell it; `ctranslate2`, `gguf` and `peft`, which are
# file formats; `lora`, a method; `laion...` and `openai-80`, which publications named; `clip` in small letters, a piece of sound or a limit.
FAMILIES = "whisper smollm2? silero wav2vec2? hubert wavlm llama timm minilm conse efficientnet resnet vit dinov[23] siglip openclip open_clip "
FAMILIES += "bert roberta gpt2 t5 mistral qwen gemma flamingo llava blip2? perceiver"
NAMES = re.compile(
    rf"(?<![a-z0-9])(?i:{'|'.join(FAMILIES.split())})(?![a-zA-Z0-9])|\bCLIP\b|(?<=[a-z])-clip\b|\bclip(?=/|-vit)|zoo_clip|zoo_(?:text|lm|audio)\b"
)
OUR_NAMES = re.compile(
    r"\b(?:zoo_(?:timm|text|conse|clip|lm|smollm|perceiver|whisper|audio)|modalzoo-(?!adapters\b)[a-z]+|efficientnet_lite0|timm)\b"
)
CORE = [path for path in SOURCES if path.is_relative_to(ROOT / "zoo")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.covers("A2", "A3", "A24")
def test_a_file_is_small_named_for_its_concept_and_safe(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert path.stem not in {"utils", "common", "helpers", "misc"}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), "validation must survive python -O"
        if isinstance(node, ast.FunctionDef) and node.name == "forward":
            documented = ast.get_docstring(node) or ""
            assert "[" in documented or path.name == "contracts.py", "a forward says its shapes"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "torch.save"}
            if name in {"Image.open", "PIL.Image.open"}:
                assert path.match("zoo/media/image.py") or path.match("zoo/cli/demo/tour.py"), "images pass one gate"
            if name == "torch.load":
                assert any(
                    keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords
                )
    assert "trust_remote_code=True" not in text


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_names_no_plugin_and_no_model(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL)
    assert not NAMES.findall(code)
    assert not OUR_NAMES.findall(text), "comments and docstrings cite papers, not our plugins"


def test_the_names_of_models_are_found_where_they_stand() -> None:
    for code in (
        '"CLIP ViT-B/32"',
        '"openai-clip-vit-b-32"',
        "zoo_whisper.decoding",
        '"smollm/135m"',
        "silero_vad",
        "class Llama:",
        "BERT_MASK",
    ):
        assert NAMES.search(code), code
    for code in (
        "np.clip(x, 0, 1)",
        "clip_grad_norm_",
        '"--clip-timestamps"',
        '"llama3"',
        '"laion400m"',
        "ctranslate2",
        "openai-80",
    ):
        assert not NAMES.search(code), code


def test_plugins_ask_for_a_range_of_the_core_and_of_its_api() -> None:
    """No version of the core is the only one that fits: that is how zoos died."""
    import zoo

    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert zoo.__version__ == core["version"]
    for path in (*ROOT.glob("plugins/*/pyproject.toml"), ROOT / "adapters" / "pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        siblings = [Requirement(one) for one in project["dependencies"] if one.startswith("modalzoo")]
        assert any(one.name == "modalzoo" for one in siblings)
        for requirement in siblings:
            assert {one.operator for one in requirement.specifier} == {">=", "<"}
            assert requirement.specifier.contains(core["version"])
        (manifest,) = path.parent.glob("zoo_*/zoo.toml")
        assert tomllib.loads(manifest.read_text())["api"] == ">=1,<2"


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    wanted = [
        line
        for line in (ROOT / "requirements-dev.txt").read_text().splitlines()
        if line.strip() and not line.startswith(("#", "-"))
    ]
    for path in (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"), ROOT / "adapters" / "pyproject.toml"):
        document = tomllib.loads(path.read_text())
        wanted += document["build-system"]["requires"] + document["project"]["dependencies"]
        wanted += itertools.chain.from_iterable(document["project"].get("optional-dependencies", {}).values())
    names = {canonicalize_name(Requirement(line).name) for line in wanted}
    assert {"torch", "setuptools", "huggingface-hub", "open-clip-torch", "ruff"} <= names, "they are read"
    missing = {name for name in names if not name.startswith("modalzoo")} - pins
    assert not missing, "pin them in constraints.txt"


def test_the_bundled_photos_have_licences() -> None:
    import json

    folder = ROOT / "zoo" / "cli" / "demo" / "photos"
    rows = {row["file"]: row for row in json.loads((folder / "photos.json").read_text())}
    assert set(rows) == {path.name for path in folder.glob("*.jpg")}
    for row in rows.values():
        assert row["licence"] in {"CC0-1.0", "public domain", "CC-BY-2.0"}
        assert row["author"]
        assert row["title"]
        if row["licence"] == "CC-BY-2.0":
            assert row["file"] in (ROOT / "NOTICE").read_text()


def test_commands_of_tests_run_warm_whatever_torch_has_written(warm: WarmInterpreter) -> None:
    assert warm.reads_alike({**os.environ, "TORCHINDUCTOR_CACHE_DIR": "/elsewhere"})
    assert not warm.reads_alike({**os.environ, "PYTHONHASHSEED": "1"})
