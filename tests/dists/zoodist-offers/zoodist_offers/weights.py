"""`plain`: the word, then a line for each tensor: its name and its numbers."""

from pathlib import Path

import torch


def read(path: Path) -> dict[str, torch.Tensor]:
    _, *lines = path.read_text().splitlines()
    rows = [line.split() for line in lines]
    return {name: torch.tensor([float(number) for number in numbers]) for name, *numbers in rows}
