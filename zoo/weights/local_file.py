"""A weight file that a person names by its path or by its folder."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import UsageError
from zoo.media.file import expanded

# Of Hugging Face, newer and older, and of CTranslate2.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin")


def local_file(path: Path) -> Path:
    """The weight file that a person names by its path, or by the folder that holds it as hubs lay it out. Raises UsageError."""
    path = expanded(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(
            f"--weights {path}: there is no such file (give the path of one, or none for a random initialisation)"
        )
    found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if found is None:
        raise UsageError(f"--weights {path}: the folder holds none of {', '.join(FOLDER_FILES)}: name the file")
    return found
