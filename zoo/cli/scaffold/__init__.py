"""`zoo new`: a small distribution that installs, runs and passes `zoo check` as it is."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from zoo.errors import UsageError
from zoo.registry.atomic_write import atomic_folder
from zoo.registry.modality import AUDIO, IMAGE, TEXT

TEMPLATES = Path(__file__).with_name("templates")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

PIXELS = 'preprocess = { size = %d, crop = 1.0, interpolation = "bicubic", mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }'

# kind -> the modality it is made for first -> what the manifest says of the model that the template builds
CHOICES: dict[str, dict[str, dict[str, str]]] = {
    "encoder": {
        IMAGE: {
            "modalities": '"image"',
            "build": "build",
            "parameters": "49216",
            "output": "tokens = { count = 16, width = 64 }",
            "extra": f"variant = {{ patch = 16, width = 64 }}\n{PIXELS % 64}",
        },
        TEXT: {
            "modalities": '"text"',
            "build": "build",
            "parameters": "20544",
            "output": "tokens = { count = 0, width = 64 }  # 0: it depends on the text",
            "extra": "variant = { width = 64 }",
        },
        AUDIO: {
            "modalities": '"audio"',
            "build": "build",
            "parameters": "29824",
            "output": "tokens = { count = 0, width = 64 }  # 0: it depends on the sound",
            "extra": "variant = { width = 64 }\npreprocess = { sample_rate_hz = 16000, max_s = 60 }",
            "core": "modalzoo[audio]",
        },
    },
    "dual_encoder": {
        IMAGE: {
            "modalities": '"image", "text"',
            "build": "PatchesAndBytes",
            "parameters": "46657",
            "output": "embedding_width = 32",
            "extra": f"variant = {{ width = 32 }}\n{PIXELS % 80}",
        },
    },
    "decoder": {
        TEXT: {
            "modalities": '"text"',
            "build": "build",
            "parameters": "57664",
            "output": "",
            "extra": "variant = { width = 64, heads = 4, layers = 1, context = 256 }",
        },
    },
    "transcriber": {
        AUDIO: {
            "modalities": '"audio"',
            "build": "Beeps",
            "parameters": "0",
            "output": "",
            "extra": "variant = { loudness = 0.05 }\npreprocess = { sample_rate_hz = 16000 }",
            "core": "modalzoo[audio]",
        },
    },
    "bridge": {
        IMAGE: {
            "modalities": '"image", "video", "audio", "series"',
            "build": "build",
            "parameters": "21184",
            "output": "",
            "extra": "variant = { input_width = 64, latents = 8, heads = 4 }  # input_width: any; compositions give the encoder's",
        },
    },
    "adapter": {
        TEXT: {
            "modalities": '"text"',
            "build": "build",
            "parameters": "0",
            "output": 'applies_to = ["decoder"]',
            "extra": "variant = {}  # options that differ from the builder's own",
        },
    },
    "kernel": {
        TEXT: {
            "modalities": '"text", "image", "audio", "video", "series"',
            "build": "build",
            "parameters": "0",
            "output": 'kernel = { takes = ["layer"], bits = 8.2, gradients = true }',
            "extra": "variant = {}  # options that differ from the builder's own",
        },
    },
}


def new_plugin(name: str, *, kind: str, modality: str | None = None, folder: Path) -> list[Path]:
    """Write a distribution `modalzoo-<name>` into `folder`; returns the files.

    Raises UsageError for a name that no distribution can have, a kind or modality without a template, and a folder that exists.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"a plugin's name has small letters, digits and single hyphens, as in birdsong-net; got {name!r}")
    if kind not in CHOICES:
        raise UsageError(f"there is no template for the kind {kind!r} yet; there are for {', '.join(CHOICES)}")
    modality = modality or next(iter(CHOICES[kind]))
    if modality not in CHOICES[kind]:
        raise UsageError(
            f"there is no template for the kind {kind} and {modality} yet; for {kind} there are for {', '.join(CHOICES[kind])}"
        )
    if folder.exists():
        raise UsageError(f"{folder} exists already: choose another place with --into, or remove it")
    values = {"name": name, "package": f"zoo_{name.replace('-', '_')}", "kind": kind, "core": "modalzoo"}
    values |= CHOICES[kind][modality]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as staging:
        files = _written(staging, kind, modality, values)
    return [folder / file for file in files]


def _written(folder: Path, kind: str, modality: str, values: dict[str, str]) -> list[Path]:
    """Fill the folder; returns the files, as they are called in it."""
    files = []
    for templates in (TEMPLATES / "plugin", TEMPLATES / f"{kind}-{modality}"):
        for template in sorted(path for path in templates.rglob("*.tmpl") if path.is_file()):
            relative = template.relative_to(templates).with_suffix("").as_posix().replace("PACKAGE", values["package"])
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(template.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
            files.append(path.relative_to(folder))
    return sorted(files)
