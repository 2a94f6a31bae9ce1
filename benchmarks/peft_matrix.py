"""HF PEFT's kinds of adapters on kinds of layers, beside ours: the same numbers, or refused and why.

    python benchmarks/peft_matrix.py [--out benchmarks/results/peft_matrix.txt]

In each cell PEFT adapts a layer with random weights, its adapter is given random numbers and saved. Three things are held to it, each to
1e-5 of the largest output: its folder read here (forward), merged into the weights here and there (merge), and the folder that we write
read there (file). Two LoRA are combined with the weights .7 and .4, and .7 and -.4. docs/adapters.md shows the table, which
adapters/tests/test_peft_models.py holds.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from zoo import adapters_of
from zoo.errors import ZooError

TOLERANCE = 1e-5
PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"
BEGIN, END = "<!-- python benchmarks/peft_matrix.py -->", "<!-- the end of the table -->"
TOGETHER = ("Linear", "Conv1D (GPT-2)", "Embedding", "Conv2d")
WEIGHTS = ((0.7, 0.4), (0.7, -0.4))
RESULTS = Path(__file__).parent / "results" / "peft_matrix.txt"


class Model(nn.Module):
    """The layer of a cell, a norm, and a head."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = layer
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)
        self.width = width

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if isinstance(getattr(self.inner, "base_layer", self.inner), nn.MultiheadAttention):
            found = self.inner(inputs, inputs, inputs, need_weights=False)[0]
        else:
            found = self.inner(inputs)
        if found.shape[-1] != self.width:  # a convolution has its channels second
            found = found.transpose(1, -1)
        return self.head(self.norm(found))


def _channels(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(7))


LAYERS: dict[str, tuple[Callable[[], nn.Module], int, Callable[[], torch.Tensor]]] = {
    "Linear": (lambda: nn.Linear(8, 12), 12, lambda: _channels(3, 8)),
    "Linear, no bias": (lambda: nn.Linear(8, 12, bias=False), 12, lambda: _channels(3, 8)),
    "Conv1D (GPT-2)": (lambda: Conv1D(12, 8), 12, lambda: _channels(3, 8)),
    "Embedding": (lambda: nn.Embedding(9, 12), 12, lambda: torch.tensor([[1, 5, 2], [8, 0, 1]])),
    "Conv1d": (lambda: nn.Conv1d(4, 12, 3, padding=1), 12, lambda: _channels(4, 7)),
    "Conv2d": (lambda: nn.Conv2d(4, 12, 3, stride=2, padding=1), 12, lambda: _channels(4, 7, 5)),
    "Conv2d, 1 by 1": (lambda: nn.Conv2d(8, 12, 1, bias=False), 12, lambda: _channels(8, 5, 5)),
    "Conv2d, dilated": (lambda: nn.Conv2d(4, 12, 3, dilation=2), 12, lambda: _channels(4, 7, 7)),
    "Conv2d, 2 groups": (lambda: nn.Conv2d(4, 12, 3, groups=2), 12, lambda: _channels(4, 7, 5)),
    "Conv3d": (lambda: nn.Conv3d(2, 12, 2), 12, lambda: _channels(2, 4, 3, 3)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), 8, lambda: _channels(3, 8)),
}


def _lora(**options: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["inner"], **options})


def _ia3(**options: Any) -> Callable[[], Any]:
    return lambda: peft.IA3Config(**{"target_modules": ["inner"], "feedforward_modules": [], **options})


CONFIGS: dict[str, Callable[[], Any]] = {
    "LoRA": _lora(),
    "rank-stabilised": _lora(use_rslora=True),
    "rank_pattern, alpha_pattern": _lora(target_modules=["inner", "head"], rank_pattern={"inner": 2}, alpha_pattern={"inner": 5}),
    "modules_to_save": _lora(modules_to_save=["head", "norm"]),
    "the layer in modules_to_save": _lora(target_modules=["head"], modules_to_save=["inner"]),
    "target_parameters": _lora(target_modules=[], target_parameters=["inner.weight"]),
    "lora_bias": _lora(lora_bias=True),
    "DoRA": _lora(use_dora=True),
    "IA3": _ia3(),
    "IA3, of the input": _ia3(feedforward_modules=["inner"]),
}  # fmt: skip
COMBINED: dict[str, dict[str, Any]] = {
    "cat": {},
    "linear": {},
    "svd": {"svd_rank": 3},
    "ties": {"density": 0.6},
    "ties_svd": {"density": 0.6, "svd_rank": 3},
    "magnitude_prune": {"density": 0.6},
    "magnitude_prune_svd": {"density": 0.6, "svd_rank": 3},
    "dare_linear": {"density": 0.6},
    "dare_ties": {"density": 0.6},
    "dare_linear_svd": {"density": 0.6, "svd_rank": 3},
    "dare_ties_svd": {"density": 0.6, "svd_rank": 3},
}
OURS = {"cat": "concatenation", "linear": "sum"}


def model_of(layer: str) -> Model:
    make, width, _ = LAYERS[layer]
    torch.manual_seed(0)
    model = Model(make(), width).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def shaken(model: nn.Module, seed: int = 1) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_((0.02 if "magnitude" in name else 0.2) * torch.randn_like(parameter))


def same(found: torch.Tensor, expected: torch.Tensor) -> str:
    error = float((found - expected).abs().max() / expected.abs().max())
    return "pass" if error < TOLERANCE else f"DIFFERS by {error:.0e}"


def refused(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).partition("\n")[0]).rstrip(" (")


def _attempt(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except ZooError as error:
        return f"refused: {refused(error)}"


@torch.no_grad()
def cell(layer: str, config: str) -> dict[str, str]:
    """forward, merge and file -> "pass", "refused: why" or "PEFT: why not there"."""
    inputs = LAYERS[layer][2]()
    try:
        theirs: Any = peft.get_peft_model(model_of(layer), CONFIGS[config]()).eval()
        shaken(theirs)
        expected = theirs(inputs)
    except Exception as error:  # noqa: BLE001 - whatever PEFT raises says that it does not have this
        return dict.fromkeys(("forward", "merge", "file"), f"PEFT: {refused(error)}")
    if torch.allclose(expected, model_of(layer)(inputs), atol=1e-3):
        raise AssertionError(f"the adapter of {config} on {layer} does nothing")
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(f"{folder}/theirs")
        ours = model_of(layer)
        adapters = adapters_of(ours)
        try:
            adapters.load(f"{folder}/theirs", name="own")
        except ZooError as error:
            return dict.fromkeys(("forward", "merge", "file"), f"refused: {refused(error)}")
        found = {"forward": same(ours(inputs), expected)}

        def written() -> str:
            adapters.export("own", f"{folder}/ours")
            back = peft.PeftModel.from_pretrained(model_of(layer), f"{folder}/ours").eval()
            return same(back(inputs), expected)

        def merged() -> str:
            adapters.merge()
            return same(ours(inputs), expected)

        found["file"] = _attempt(written)
        found["merge"] = _attempt(merged)
        if found["merge"] == "pass" and not isinstance(ours.inner, nn.MultiheadAttention):
            try:
                there = same(theirs.merge_and_unload()(inputs), expected)
            except Exception as error:  # noqa: BLE001 - as above
                there = refused(error)
            if there != "pass":
                found["merge"] = f"pass (PEFT's own merge: {there})"
    return found


@torch.no_grad()
def combination(layer: str, how: str, weights: tuple[float, float]) -> str:
    """Two LoRA combined there and here."""
    inputs = LAYERS[layer][2]()
    try:
        theirs: Any = peft.get_peft_model(model_of(layer), _lora()()).eval()
        theirs.add_adapter("second", _lora()())
        for seed, name in enumerate(("default", "second"), 1):
            theirs.set_adapter(name)
            shaken(theirs, seed)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder, selected_adapters=["default", "second"])
            ours = model_of(layer)
            adapters = adapters_of(ours)
            adapters.load(folder, name="first")
            adapters.load(f"{folder}/second", name="second")
        options = dict(COMBINED[how])
        theirs.add_weighted_adapter(["default", "second"], list(weights), "drawn", combination_type=how, **options)
        theirs.eval()
        theirs.set_adapter("drawn")
        if how.startswith("dare"):  # the same numbers are drawn again, without those that begin an adapter
            pair = theirs.base_model
            target = pair.model.inner
            _redraw(pair, target, how, weights, options)
        expected = theirs(inputs)
    except Exception as error:  # noqa: BLE001 - whatever PEFT raises says that it does not have this
        return f"PEFT: {refused(error)}"
    given = {"r" if name == "svd_rank" else name: value for name, value in COMBINED[how].items()}
    torch.manual_seed(5)

    def combined() -> str:
        adapters.combine("both", dict(zip(("first", "second"), weights, strict=True)), how=OURS.get(how, how), **given)
        adapters.use("both")
        return same(ours(inputs), expected)

    return _attempt(combined)


def _redraw(pair: Any, target: Any, how: str, weights: tuple[float, float], options: dict[str, Any]) -> None:
    torch.manual_seed(5)
    names, density = ["default", "second"], options["density"]
    table = hasattr(target, "lora_embedding_A") and "drawn" in target.lora_embedding_A
    down = target.lora_embedding_A["drawn"] if table else target.lora_A["drawn"].weight
    up = target.lora_embedding_B["drawn"] if table else target.lora_B["drawn"].weight
    if how.endswith("_svd"):
        made = pair._svd_generalized_task_arithmetic_weighted_adapter(  # noqa: SLF001 - the public method draws more before
            how, names, list(weights), options["svd_rank"], target, down, up, density, "total"
        )
    else:
        join = pair._generalized_task_arithmetic_weighted_adapter  # noqa: SLF001 - as above
        made = join(how, names, list(weights), target, density, "total")
    down.data, up.data = made


def table() -> str:
    """The whole, as tables and notes."""
    logging.getLogger("peft").setLevel(logging.ERROR)
    notes: dict[str, int] = {}

    def mark(text: str) -> str:
        return text if text == "pass" else f"[{notes.setdefault(text, len(notes) + 1)}]"

    lines = [
        f"HF PEFT {peft.__version__}, forward, merge and file; a number is a note below.",
        "",
        *_row(["", *LAYERS], head=True),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for config in CONFIGS:
            marks = []
            for layer in LAYERS:
                found = {what: mark(text) for what, text in cell(layer, config).items()}
                other = [f"{what} {sign}" for what, sign in found.items() if sign != "pass"]
                alike = len(set(found.values())) == 1
                marks.append(found["forward"] if alike else f"pass, {', '.join(other)}")
            lines += _row([config, *marks])
        lines += ["", *_row(["two LoRA combined", *TOGETHER], head=True)]
        for how in COMBINED:
            pairs = [[mark(combination(layer, how, weights)) for weights in WEIGHTS] for layer in TOGETHER]
            lines += _row([how, *(one[0] if one[0] == one[1] else ", ".join(one) for one in pairs)])
    lines += ["", *(f"[{number}] {text}  " for text, number in notes.items())]
    return "\n".join(lines) + "\n"


def _row(cells: list[str], *, head: bool = False) -> list[str]:
    return [f"| {' | '.join(cells)} |", *([f"|{'---|' * len(cells)}"] if head else [])]


def shown(page: str, text: str) -> str:
    """A page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    out.write_text(table(), encoding="utf-8")
    PAGE.write_text(shown(PAGE.read_text(encoding="utf-8"), out.read_text(encoding="utf-8")), encoding="utf-8")
    print(out.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
