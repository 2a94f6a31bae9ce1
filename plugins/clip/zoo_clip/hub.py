"""Files beside the weights that only the Hugging Face hub has: tokenizers, and configurations of text towers.

They are loaded by open_clip through transformers, which keeps them in the hub's own cache. Here is only the question whether
they can be had, asked first so that the answer names the file.
"""

from importlib.util import find_spec
from pathlib import Path

from zoo.api import UsageError, WeightsMissingError, hub_file


def need_hub_file(repository: str, filename: str, *, wanted_by: str) -> None:
    """Bring one file into the hub's cache, or find it there.

    repository: `OWNER/NAME` on the hub, or a local folder that holds the same files.
    Raises WeightsMissingError with the file, its repository and the command that brings it; UsageError when the library
    that reads such files is not installed.
    """
    if find_spec("transformers") is None:
        raise UsageError(
            f"{wanted_by} needs transformers, which is not installed: pip install 'modalzoo-clip[transformers]'"
        )
    if Path(repository).is_dir():
        if not (Path(repository) / filename).is_file():
            raise WeightsMissingError(f"{wanted_by} needs {filename}, and the folder {repository} has no such file")
        return
    try:
        hub_file(repository, filename)
    except WeightsMissingError as error:
        raise WeightsMissingError(
            f"{wanted_by} needs {filename} of the Hugging Face repository {repository}, which is not in the hub's cache: "
            f"{error}. Connect once and run: hf download {repository} --include '*.json' '*.model' '*.txt'"
        ) from error
