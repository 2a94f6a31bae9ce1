"""Who asks a model that nobody trained is told so, in words and in the document."""

import json
import shutil
from pathlib import Path

import pytest

import zoo as library


@pytest.mark.parametrize("task", ["classify", "embed", "search", "filter"])
@pytest.mark.parametrize(("model", "weights"), [("clip/tiny", ["--weights", "none"]), ("conse/lite0-minilm", [])])
def test_random_weights_are_said(main, photos: Path, tmp_path: Path, task: str, model: str, weights: list[str]) -> None:
    shutil.copy(photos / "chelsea.jpg", tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a cat")
    words = {
        "classify": [str(tmp_path / "a.jpg"), "--labels", "cat,dog"],
        "embed": [str(tmp_path / "a.jpg"), "--out", str(tmp_path / "e.npz")],
        "search": [str(tmp_path), "a cat"],
        "filter": [str(tmp_path), "--dry-run"],
    }[task]
    line = f"zoo: {model} has random weights: what it answers means nothing\n"
    plain = main(task, *words, "--model", model, *weights)
    assert (plain.returncode, line in plain.stderr) == (0, bool(weights)), plain.stderr
    document = main(task, *words, "--model", model, *weights, "--json")
    assert (line in document.stderr, json.loads(document.stdout)["random_weights"]) == (bool(weights), bool(weights))


def test_what_is_random_is_what_was_drawn(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    drawn = library.open_model("text/minilm-tiny", weights=None)
    assert drawn.random
    save_file(drawn.module.state_dict(), tmp_path / "mine.safetensors")
    assert not library.open_model("text/minilm-tiny", weights=tmp_path / "mine.safetensors").random
    assert not library.open_model("text/all-minilm-l6-v2").random
    assert library.open_model("conse/lite0-minilm", weights=None).random
