"""Changes, for the whole process, what is not its own."""

import random

import torch

torch.set_default_dtype(torch.float64)
random.seed(0)


def build():
    return torch.nn.Linear(2, 2)
