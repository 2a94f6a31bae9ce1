"""The images of a folder that are nearest to a text or to an image, through an index that is brought up to date first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.data.inputs import printable, refuse_empty, require_folder, search_query
from zoo.errors import MediaError, UsageError
from zoo.media.file import expanded
from zoo.models.build import Built, ModelSpec, device_of
from zoo.models.provenance import Provenance, provenance_of
from zoo.registry.modality import IMAGE, TEXT
from zoo.tasks.encoding import open_for, refuse_nonfinite, vectors
from zoo.tasks.photo_index import Index, faiss_library, index_home, load_index, locked
from zoo.tasks.photo_index_update import paths_of, unreadable_files, update_index


@dataclass(frozen=True, slots=True)
class Hit:
    """An image and its score: the cosine of its embedding and the query's, in [-1, 1]."""

    path: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Hits, best first, and where they come from.

    images: how many files were searched. computed: how many images had to be embedded for it. unreadable: (file, why).
    notes: what the user should know: the index lies elsewhere, or had to be built anew.
    """

    provenance: Provenance
    query: str
    query_modality: str
    index: Path
    images: int
    computed: int
    unreadable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    results: tuple[Hit, ...]


def search(
    folder: str | Path,
    query: str | Path | Image.Image | None = None,
    *,
    query_image: Any = None,
    top: int = 10,
    model: str | ModelSpec | Built | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Search:
    """The `top` images of a folder (with its subfolders) that fit a query best.

    query: a text, or an image: a path (as `Path`, or as a string that ends like the name of an image file) or a PIL image.
    query_image: an image, whatever it is called. model: any dual encoder; the installed default when None.
    The index is kept in `<folder>/.zoo-index`, or in the cache where that cannot be written, one for each identity of a model.
    Raises UsageError for arguments that make no sense, MediaError when the query or every image is unreadable.
    """
    refuse_empty(folder, "a folder of images")
    folder = expanded(folder)
    if top < 1:
        raise UsageError(f"top is at least 1, got {top}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size is at least 1, got {batch_size}")
    modality, content, label = search_query(query, query_image)
    require_folder(folder)
    faiss_library()
    both = (IMAGE, TEXT) if modality == TEXT else (IMAGE,)
    built = open_for("search", model, kinds=("dual_encoder",), modalities=both)
    device = str(device_of(built))
    with torch.inference_mode():
        query_E = refuse_nonfinite(vectors(built, modality, [content], device=device), built, "the query")[0].numpy()
    home, note = index_home(folder, built)
    with locked(home):
        index, rebuilt = load_index(home, len(query_E))
        computed, problems = update_index(
            index, folder, home, built, batch_size=batch_size, device=device, progress=progress
        )
    files = unreadable_files(index, folder)
    complaints = (*files, *problems)
    if not index.rows and complaints:
        path, why = complaints[0]
        raise MediaError(f"{folder}: none of its {len(index.files)} images can be read; {path}: {why}")
    return Search(
        provenance=provenance_of(built),
        query=label,
        query_modality=modality,
        index=home,
        images=len(index.files) - len(files),
        computed=computed,
        unreadable=complaints,
        notes=tuple(text for text in (note, rebuilt) if text),
        results=tuple(_hits(index, folder, query_E, top)),
    )


def _hits(index: Index, folder: Path, query_E: np.ndarray[Any, Any], top: int) -> list[Hit]:
    if not index.rows:  # the last image went away between looking and reading
        return []
    scores, numbers = index.vectors.search(query_E[None], min(top, len(index.rows)))
    paths = paths_of(index)
    found = [
        (-float(score), name)
        for score, number in zip(scores[0], numbers[0], strict=True)
        for name in paths[index.rows[number]]
    ]
    return [Hit(printable(str(folder / name)), -score) for score, name in sorted(found)[:top]]
