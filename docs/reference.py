"""The pages for plugin authors that are written from the code alone: one for each kind of card and one for each hook."""

import dataclasses
import inspect
import json
import re
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zoo.adapters.adapter import Part, Virtual
from zoo.adapters.target_modules import Base, Place
from zoo.cli.scaffold import CHOICES, new_plugin
from zoo.media.audio_reader import AudioReader
from zoo.models import contracts
from zoo.models.encoded import Encoded
from zoo.models.transcript import Segment, TranscriptionOptions, Window, Word
from zoo.nn.kernels.contract import CompileRequest, Kernel, LayerFormat
from zoo.nn.kernels.seam import KernelEmbedding, KernelLinear
from zoo.registry import hooks as hookspecs
from zoo.registry.card import KINDS, Card, File, Weights
from zoo.registry.manifest import Family
from zoo.registry.offers import Command, Format, OwnCheck, Reader
from zoo.testing.runner import checks_for

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs/kinds", "docs/hooks", "docs/rows")
NOTE = "<!-- Written from the code by docs/generate.py: make docs. -->\n\n"

# kind -> what a built module keeps, the first of them for every model of the kind
CONTRACTS: dict[str, tuple[type, ...]] = {
    "encoder": (contracts.Encoder, Encoded, contracts.Classifier, contracts.VoiceActivity),
    "dual_encoder": (contracts.DualEncoder,),
    "decoder": (contracts.Decoder, contracts.Tokenizer),
    "bridge": (contracts.Bridge, Encoded),
    "transcriber": (contracts.Transcriber, TranscriptionOptions, Window, Segment, Word, AudioReader),
    "adapter": (Part, Virtual, Base, Place),
    "kernel": (Kernel, LayerFormat, KernelLinear, KernelEmbedding, CompileRequest),
}
RETURNS = {
    "adapter": "`build` is called with the base and the options, and returns a `zoo.api.Adapter`: parts by the name of their place, or "
    "virtual tokens. A part is a module with any of these methods.",
    "kernel": "`build` is called with `variant`, and returns a `zoo.api.Kernel`: formats of layers, a compiler of modules, a step of decoders, or several.",
}
# kind -> fields of a card that this kind alone, or this kind above all, needs
FIELDS = {
    "encoder": ("tokens", "classes", "preprocess"),
    "dual_encoder": ("embedding_width", "parts", "preprocess"),
    "decoder": ("parameters", "variant", "weights"),
    "bridge": ("parameters", "variant", "keys"),
    "transcriber": ("preprocess", "weights", "default_for"),
    "adapter": ("build", "variant", "applies_to", "exchange"),
    "kernel": ("build", "kernel", "applies_to", "devices"),
}
# hook -> a file of this repository that implements it, and is built and used by the tests
EXAMPLES = {
    "zoo_build": "tests/dists/zoodist-onefile/zoodist_onefile.py",
    "zoo_cards": "tests/dists/zoodist-onefile/zoodist_onefile.py",
    "zoo_family": "plugins/timm/zoo_timm/__init__.py",
    "zoo_open_weights": "tests/dists/zoodist-store/zoodist_store/__init__.py",
}
TABLES = ((Card, "[[card]]"), (Weights, "[[card.weights]]"), (File, "[[card.weights.file]]"), (Family, "[[family]]"))
# table of a manifest -> its fields, a plugin of this repository that uses it, and the file with its function
ROWS: dict[str, tuple[type, str, str]] = {
    "command": (Command, "audio", "zoo_audio/commands.py"),
    "reader": (Reader, "timm", "zoo_timm/netpbm.py"),
    "format": (Format, "whisper", "zoo_whisper/ggml.py"),
    "check": (OwnCheck, "adapters", "zoo_adapters/checks.py"),
}
IN_A_MANIFEST = {"size_bytes": "bytes", "files": "file"}
NOT_IN_A_MANIFEST = ("provider",)
TYPES = {
    "str": "string",
    "str | None": "string",
    "int | None": "whole number",
    "tuple[str, ...]": "list of strings",
    "Mapping[str, Any]": "table",
    "KernelFacts | None": "table",
    "Mapping[str, str]": "table of strings",
    "Mapping[str, int]": "table of whole numbers",
    "tuple[Weights, ...]": "tables",
    "tuple[File, ...]": "tables",
    "tuple[str | tuple[str, ...], ...]": "list of strings, or of lists of strings",
}


def pages() -> dict[str, str]:
    """Path from the repository's root -> the whole text of each page."""
    texts = {f"docs/kinds/{kind}.md": kind_page(kind) for kind in CONTRACTS}
    texts["docs/kinds/README.md"] = kinds_index()
    texts |= {f"docs/hooks/{hook.__name__}.md": hook_page(hook) for hook in hooks()}
    texts |= {f"docs/rows/{table}.md": row_page(table) for table in ROWS}
    return {path: NOTE + text for path, text in texts.items()}


def hooks() -> list[Any]:
    return [hook for name, hook in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("zoo_")]


def gallery() -> str:
    """One row for each first-party plugin."""
    lines = ["| plugin | models | kinds | lines of Python |", "|---|---|---|---|"]
    for folder in _plugins():
        manifest = _manifest(folder)
        rows = [*manifest.get("card", ()), *manifest.get("family", ())]
        names = [
            *(row["name"] for row in manifest.get("card", ())),
            *(row["pattern"] for row in manifest.get("family", ())),
        ]
        count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("zoo_*/**/*.py"))
        kinds = ", ".join(sorted({row["kind"] for row in rows}))
        models = ", ".join(f"`{folder.name}/{name}`" for name in names)
        lines.append(f"| [`{folder.name}`](../{folder.relative_to(ROOT)}/README.md) | {models} | {kinds} | {count} |")
    return "\n".join(lines)


def kind_page(kind: str) -> str:
    """What a card of this kind promises, the smallest one that works, and how it is checked."""
    parts = [f"# Kind `{kind}`", "## The contract"]
    returns = "What `build` returns is a `torch.nn.Module` with these methods. Nothing is inherited; having them is enough."
    parts.append(RETURNS.get(kind, returns))
    parts += [
        f"### `zoo.api.{contract.__name__}`\n\n```python\n{inspect.getsource(contract).rstrip()}\n```"
        for contract in CONTRACTS[kind]
    ]
    documented = fields_of(Card)
    parts.append("## Fields that matter here\n\n" + _table((name, documented[name]) for name in FIELDS[kind]))
    parts.append("[All fields](README.md#fields).")
    for modality in CHOICES.get(kind, ()):
        parts += _example(kind, modality)
    rows = [f"| `{check.name}` | {check.level} | {check.promise} |" for check in checks_for(kind)]
    parts.append("## What `zoo check` holds it to\n\n| check | level | promise |\n|---|---|---|\n" + "\n".join(rows))
    parts.append("## Plugins here that have some\n\n" + ", ".join(_with_kind(kind)) + ".")
    return "\n\n".join(parts) + "\n"


def kinds_index() -> str:
    """Every kind, and every field of a manifest."""
    lines = ["# Kinds of card", "| kind | |\n|---|---|\n" + "\n".join(_kind_row(kind) for kind in KINDS)]
    lines.append(
        "## Fields\n\nOf a `zoo.toml`, and of the mappings that hooks return. Anything else in one is refused with its line."
    )
    for dataclass, title in TABLES:
        lines.append(f"### `{title}`\n\n" + _table(fields_of(dataclass).items()))
    lines.append(
        "### Top level\n\n| field | type | |\n|---|---|---|\n"
        '| `api` | string, required | versions of the plugin API it was written for: `">=1,<2"` |\n'
        "| `schemes` | list of strings | schemes of weight sources that it opens ([zoo_open_weights](../hooks/zoo_open_weights.md)) |\n"
        + "\n".join(f"| `[[{table}]]` | tables | [rows](../rows/{table}.md) |" for table in ROWS)
    )
    return "\n\n".join(lines) + "\n"


def hook_page(hook: Any) -> str:
    """Signature, docstring and a real implementation."""
    name = hook.__name__
    source = (ROOT / EXAMPLES[name]).read_text(encoding="utf-8").rstrip()
    return (
        f"# Hook `{name}`\n\n```python\n{name}{inspect.signature(hook)}\n```\n\n{inspect.getdoc(hook)}\n\n"
        f"Mark it with `zoo.api.hookimpl`; arguments go by these names, and those that are not needed may be left out.\n\n"
        f"## Example\n\n[`{EXAMPLES[name]}`](../../{EXAMPLES[name]}), which the tests install and use:\n\n```python\n{source}\n```\n"
    )


def row_page(table: str) -> str:
    """What a row is for, its fields, and one that a plugin here has."""
    row, plugin, file = ROWS[table]
    folder = next(folder for folder in _plugins() if folder.name == plugin)
    words, _, _ = (inspect.getdoc(row) or "").partition("\n\n")
    rows = "\n\n".join(_toml(table, one) for one in _manifest(folder)[table])
    path = f"{folder.relative_to(ROOT)}/{file}"
    source = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return (
        f"# Row `[[{table}]]`\n\n{' '.join(words.split())}\n\nLike a card it is data: it is known without importing anything, and the function "
        f"that it names, inside the plugin's own package, is imported at its first use.\n\n{_table(fields_of(row).items())}\n\n"
        f"## Example\n\nThe manifest of `{plugin}` has\n\n```toml\n{rows}\n```\n\nand [`{path}`](../../{path}):\n\n"
        f"```python\n{source}\n```\n\nA stranger's plugin with rows of every kind is [`zoodist-offers`](../../tests/dists/zoodist-offers/zoodist_offers/"
        f"zoo.toml), which the tests install and use.\n"
    )


def _toml(table: str, row: dict[str, Any]) -> str:
    return "\n".join((f"[[{table}]]", *(f"{key} = {json.dumps(value)}" for key, value in row.items())))


def fields_of(dataclass: type) -> dict[str, tuple[str, str]]:
    """Name in a manifest -> (type, meaning), from the class and its docstring. Raises KeyError for a field without words."""
    words = dict(re.findall(r"^(\w+): (.*(?:\n    .*)*)", inspect.getdoc(dataclass) or "", flags=re.MULTILINE))
    rows = {}
    for field in dataclasses.fields(dataclass):
        if field.name in NOT_IN_A_MANIFEST:
            continue
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
            or "None" in str(field.type)
        )
        name = IN_A_MANIFEST.get(field.name, field.name)
        kind = TYPES[str(field.type)] + ("" if optional or field.name == "role" else ", required")
        rows[name] = (kind, " ".join(words[field.name].split()))
    return rows


def _table(rows: Iterable[tuple[str, tuple[str, str]]]) -> str:
    lines = [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in rows]
    return "| field | type | |\n|---|---|---|\n" + "\n".join(lines)


def _kind_row(kind: str) -> str:
    if kind in CHOICES:
        return f"| [`{kind}`]({kind}.md) | `zoo new NAME --kind {kind}` |"
    if kind in CONTRACTS:
        return f"| [`{kind}`]({kind}.md) | has no template: begin from a plugin that has one |"
    return f"| `{kind}` | has a name and no contract yet |"


def _example(kind: str, modality: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        files = new_plugin("example", kind=kind, modality=modality, folder=Path(folder, "modalzoo-example"))
        texts = {path.name: path.read_text(encoding="utf-8").rstrip() for path in files}
    manifest = texts["zoo.toml"].partition("\n\n#")[0]
    return [
        f"## The smallest one, for {modality}",
        f"What `zoo new example --kind {kind} --modality {modality}` writes (and more beside it):",
        f"`zoo_example/zoo.toml`\n\n```toml\n{manifest}\n```",
        f"`zoo_example/model.py`\n\n```python\n{texts['model.py']}\n```",
    ]


def _with_kind(kind: str) -> list[str]:
    named = []
    for folder in _plugins():
        manifest = _manifest(folder)
        if any(row["kind"] == kind for row in (*manifest.get("card", ()), *manifest.get("family", ()))):
            named.append(f"[`{folder.name}`](../../{folder.relative_to(ROOT)}/README.md)")
    return named


def _plugins() -> list[Path]:
    """The folders of the first-party plugins."""
    return sorted([ROOT / "adapters", *(ROOT / "plugins").iterdir()], key=lambda folder: folder.name)


def _manifest(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / f"zoo_{folder.name}" / "zoo.toml").read_text(encoding="utf-8"))
